"""Table 2: which proposals Fast R-CNN is trained on, and which it is tested on."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.config import Settings
from rcnn.data.given import ProposalSet
from rcnn.data.proposals import open_proposals
from rcnn.detector import Detector
from rcnn.paper.experiment import SCORES, Experiment, Measurement, Numbers, more
from rcnn.paper.lab import Lab, Training
from rcnn.paper.measure import Change, OfRPN, scores, trained, without_boxes, without_scores

COUNT = 2000
"""Proposals of Selective Search per image, in training and test."""

ALTERNATING = Training("alternating", {"train": {"scheme": "alternating"}})
"""Stage 1 is an RPN alone, stage 2 a Fast R-CNN with a backbone of its own on its proposals: unshared features. After
stage 4 both share one backbone."""

SS, SHARED, UNSHARED = "SS -> SS 2000", "RPN shared -> RPN 300", "RPN unshared -> RPN 300"


class Test(NamedTuple):
    """Proposals that the detector trained on Selective Search is tested on.

    Attributes:
        paper: the paper's mAP.
        top: proposals per image.
        rpn: other changes of the RPN's settings.
        change: made to what the RPN's head says.
    """

    paper: float
    top: int
    rpn: Mapping[str, Any] = {}
    change: Change | None = None


RANDOM = {"pre_test": 10**6, "nms": 1.0}
"""Without scores nothing is ranked: proposals are drawn from all anchors, and none suppresses another."""

TESTS = {
    "SS -> RPN 100": Test(55.1, 100),
    "SS -> RPN 300": Test(56.8, 300),
    "SS -> RPN 1000": Test(56.3, 1000),
    "SS -> RPN 6000, no NMS": Test(55.2, 6000, {"nms": 1.0}),
    "SS -> RPN 100, no cls": Test(44.6, 100, RANDOM, without_scores),
    "SS -> RPN 300, no cls": Test(51.4, 300, RANDOM, without_scores),
    "SS -> RPN 1000, no cls": Test(55.8, 1000, RANDOM, without_scores),
    "SS -> RPN 300, no reg": Test(52.1, 300, {}, without_boxes),
    "SS -> RPN 1000, no reg": Test(51.3, 1000, {}, without_boxes),
}
"""Row -> proposals; `trained on -> tested on`."""


def experiment(settings: Settings) -> Experiment:
    """Two trainings; all rows are tests of their detectors and RPNs."""
    fast = fast_rcnn(settings)
    base = "SS -> RPN 300"
    return Experiment(
        title="proposals in training -> in test",
        source="table 2; Fast R-CNN with ZF, VOC 2007 test",
        columns=SCORES,
        runs=(
            Measurement((SS,), partial(_selective_search, fast), (fast,), given=True),
            trained(SHARED, ALTERNATING, {"rpn": {"post_test": 300}}),
            Measurement((UNSHARED,), _unshared, (ALTERNATING,)),
            *(Measurement((row,), partial(_of_rpn, row, fast), (fast, ALTERNATING)) for row in TESTS),
        ),
        paper={row: {"map50": number} for row, number in {SS: 58.7, SHARED: 59.9, UNSHARED: 58.7}.items()}
        | {row: {"map50": test.paper} for row, test in TESTS.items()},
        claims=(
            more("shared >= unshared features", SHARED, UNSHARED),
            more("RPN 300 (shared) >= SS 2000", SHARED, SS),
            more("tested on RPN: 300 >= 100", base, "SS -> RPN 100"),
            more("NMS does no harm: 300 >= 6000", base, "SS -> RPN 6000, no NMS"),
            more("scores rank: 300 >= 300, no cls", base, "SS -> RPN 300, no cls"),
            more("boxes fit: 300 >= 300, no reg", base, "SS -> RPN 300, no reg"),
        ),
        notes=(
            "SS is Selective Search; in training 2000 proposals per image, of the RPN rpn.post_train",
            "no cls: boxes without scores, drawn at random; no reg: anchors",
        ),
    )


def fast_rcnn(settings: Settings) -> Training:
    """Fast R-CNN on proposals from elsewhere."""
    train = {"scheme": "fast-rcnn", "proposals": source(settings)}
    return Training("fast-rcnn", {"train": train, "rpn": {"post_train": COUNT, "post_test": COUNT}})


def source(settings: Settings) -> str:
    """Where proposals from elsewhere come from: what `train.proposals` names, or else Selective Search."""
    return settings.train.proposals or "selective-search"


def _selective_search(fast: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    detector = lab.load(lab.train(fast, seed).best)
    given = open_proposals(source(lab.settings), lab.dataset, lab.settings)
    return {SS: scores(detector, lab.dataset, ProposalSet(given, COUNT))}


def _unshared(lab: Lab, seed: int) -> Mapping[str, Numbers]:
    done = lab.train(ALTERNATING, seed)
    return {UNSHARED: _on_rpn(lab, lab.load(done.stage(2)), done.stage(1), Test(0.0, 300))}


def _of_rpn(row: str, fast: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    detector, rpn = lab.load(lab.train(fast, seed).best), lab.train(ALTERNATING, seed).stage(1)
    return {row: _on_rpn(lab, detector, rpn, TESTS[row])}


def _on_rpn(lab: Lab, detector: Detector, rpn: Path, test: Test) -> Numbers:
    """Scores of a detector on the proposals of an RPN with another backbone."""
    changes = {"rpn": {**test.rpn, "post_test": test.top}}
    proposals = OfRPN(lab.load(rpn).with_settings(changes), test.change)
    return scores(detector.with_settings(changes), lab.dataset, proposals)
