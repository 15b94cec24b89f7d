"""Table 2: which proposals Fast R-CNN is trained on, and which it is tested on."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.config import Settings
from rcnn.data.proposals.external import ProposalSet
from rcnn.data.proposals.read import open_proposals
from rcnn.data.proposals.search import EDGE_BOXES, EDGE_MODEL_NEEDED, model_file
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.model.sliding_windows import SLIDING_WINDOWS
from rcnn.paper.experiment import SCORES, Experiment, Measurement, Numbers, more
from rcnn.paper.lab import Lab, Training
from rcnn.paper.measure import Change, OfRPN, scores, trained, without_boxes, without_scores
from rcnn.paper.quoted import TABLE_2

COUNT = 2000
"""Proposals of Selective Search and of EdgeBoxes per image, in training and test."""

ALTERNATING = Training("alternating", {"train": {"scheme": "alternating"}})
"""Stage 1 is an RPN alone, stage 2 a Fast R-CNN with a backbone of its own on its proposals: unshared features. After
stage 4 both share one backbone."""

EDGES = Training(
    "edge-boxes",
    {"train": {"scheme": "fast-rcnn", "proposals": EDGE_BOXES}, "rpn": {"post_train": COUNT, "post_test": COUNT}},
)
"""Fast R-CNN on EdgeBoxes."""

SS, EB, SHARED, UNSHARED = "SS -> SS 2000", "EB -> EB 2000", "RPN shared -> RPN 300", "RPN unshared -> RPN 300"
VGG = "SS -> RPN+VGG 300"


class Test(NamedTuple):
    """Proposals that the detector trained on Selective Search is tested on.

    Attributes:
        top: proposals per image.
        rpn: other changes of the RPN's settings.
        change: made to what the RPN's head says.
    """

    top: int
    rpn: Mapping[str, Any] = {}
    change: Change | None = None


RANDOM = {"pre_test": 10**6, "nms": 1.0}
"""Without scores nothing is ranked: proposals are drawn from all anchors, and none suppresses another."""

TESTS = {
    "SS -> RPN 100": Test(100),
    "SS -> RPN 300": Test(300),
    "SS -> RPN 1000": Test(1000),
    "SS -> RPN 6000, no NMS": Test(6000, {"nms": 1.0}),
    "SS -> RPN 100, no cls": Test(100, RANDOM, without_scores),
    "SS -> RPN 300, no cls": Test(300, RANDOM, without_scores),
    "SS -> RPN 1000, no cls": Test(1000, RANDOM, without_scores),
    "SS -> RPN 300, no reg": Test(300, {}, without_boxes),
    "SS -> RPN 1000, no reg": Test(1000, {}, without_boxes),
}
"""Row -> proposals; `trained on -> tested on`."""


def experiment(settings: Settings) -> Experiment:
    """Two trainings, and one each for EdgeBoxes and VGG-16; all rows are tests of their detectors and RPNs.

    Raises:
        SettingsError: `data.edge_model` names no file.
    """
    fast, vgg = fast_rcnn(settings), vgg_rpn(settings)
    if settings.data.edge_model is not None:
        model_file(settings.data)
    base = "SS -> RPN 300"
    return Experiment(
        title="proposals in training -> in test",
        source="table 2; Fast R-CNN with ZF, VOC 2007 test",
        columns=SCORES,
        runs=(
            Measurement((SS,), partial(_searched, SS, fast), (fast,), given=source(settings)),
            Measurement(
                (EB,),
                partial(_searched, EB, EDGES),
                (EDGES,),
                given=EDGE_BOXES,
                lacks="" if settings.data.edge_model else EDGE_MODEL_NEEDED,
            ),
            trained(SHARED, ALTERNATING, {"rpn": {"post_test": 300}}),
            Measurement((UNSHARED,), partial(unshared, UNSHARED), (ALTERNATING,)),
            *(Measurement((row,), partial(_of_rpn, row, fast), (fast, ALTERNATING)) for row in TESTS),
            Measurement((VGG,), partial(_of_vgg, fast, vgg), (fast, vgg)),
        ),
        paper={row: {"map50": number} for row, number in TABLE_2.column().items()},
        claims=(
            more("shared >= unshared features", SHARED, UNSHARED),
            more("RPN 300 (shared) >= SS 2000", SHARED, SS),
            more("RPN 300 (shared) >= EB 2000", SHARED, EB),
            more("tested on RPN: 300 >= 100", base, "SS -> RPN 100"),
            more("NMS does no harm: 300 >= 6000", base, "SS -> RPN 6000, no NMS"),
            more("scores rank: 300 >= 300, no cls", base, "SS -> RPN 300, no cls"),
            more("boxes fit: 300 >= 300, no reg", base, "SS -> RPN 300, no reg"),
            more("a better RPN: RPN+VGG 300 >= RPN 300", VGG, base),
        ),
        notes=(
            "SS is Selective Search, EB EdgeBoxes; in training 2000 proposals per image, of the RPN rpn.post_train",
            "no cls: boxes without scores, drawn at random; no reg: anchors",
            "RPN+VGG: an RPN trained alone, with VGG-16 in place of the backbone",
        ),
    )


def fast_rcnn(settings: Settings) -> Training:
    """Fast R-CNN on proposals from elsewhere."""
    train = {"scheme": "fast-rcnn", "proposals": source(settings)}
    return Training("fast-rcnn", {"train": train, "rpn": {"post_train": COUNT, "post_test": COUNT}})


def vgg_rpn(settings: Settings) -> Training:
    """An RPN alone with VGG-16 as its backbone; neck, anchors and preprocessing stay those of the settings.

    Weights from a file, or of a detector, are those of another backbone, so that it starts from ImageNet's instead.
    """
    model = {"backbone": "vgg16", "frozen_stages": 2}  # as in `paper-vgg16`
    train = {"scheme": "joint", "init": "none" if settings.train.init == "none" else "imagenet"}
    # An RPN has no AP by any rule, and no layers to truncate.
    alone = {"roi": {"head": "none"}, "val": {"voc_ap": "area"}, "predict": {"svd": ()}}
    return Training("rpn-vgg16", {"model": model, "train": train, **alone})


def source(settings: Settings) -> str:
    """Where proposals from elsewhere come from: what `train.proposals` names, or else Selective Search.

    Raises:
        SettingsError: it names sliding windows, of which there are no best ones.
    """
    if settings.train.proposals == SLIDING_WINDOWS:
        raise SettingsError(
            f"{SLIDING_WINDOWS} have no ranking, and this experiment takes the best proposals of each image: give a "
            "file or selective-search. `rcnn paper one-stage` is the experiment on sliding windows"
        )
    return settings.train.proposals or "selective-search"


def _searched(row: str, fast: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    """Trained and tested on the same source of proposals."""
    detector = lab.load(lab.train(fast, seed).best)
    given = open_proposals(str(lab.of(fast, seed).train.proposals), lab.dataset, lab.settings)
    return {row: scores(detector, lab.dataset, ProposalSet(given, COUNT))}


def unshared(row: str, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    """Measure a row of two networks: Fast R-CNN of stage 2 on 300 proposals of the RPN of stage 1."""
    done = lab.train(ALTERNATING, seed)
    return {row: _on_rpn(lab, lab.load(done.stage(2)), done.stage(1), Test(300))}


def _of_rpn(row: str, fast: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    detector, rpn = lab.load(lab.train(fast, seed).best), lab.train(ALTERNATING, seed).stage(1)
    return {row: _on_rpn(lab, detector, rpn, TESTS[row])}


def _of_vgg(fast: Training, vgg: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    detector, rpn = lab.load(lab.train(fast, seed).best), lab.train(vgg, seed).best
    return {VGG: _on_rpn(lab, detector, rpn, Test(300))}


def _on_rpn(lab: Lab, detector: Detector, rpn: Path, test: Test) -> Numbers:
    """Scores of a detector on the proposals of an RPN with another backbone."""
    changes = {"rpn": {**test.rpn, "post_test": test.top}}
    proposals = OfRPN(lab.load(rpn).with_settings(changes), test.change)
    return scores(detector.with_settings(changes), lab.dataset, proposals)
