"""Table 2: Fast R-CNN by the proposals in training and in test."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.proposals.external import ProposalSet
from rcnn.data.proposals.read import open_proposals
from rcnn.data.proposals.search import EDGE_BOXES, EDGE_MODEL_NEEDED, model_file
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.model.structures import RPNOutput
from rcnn.paper.experiment import SCORES, Experiment, Measurement, Numbers, greater
from rcnn.paper.measure import Change, RPNProposals, scores, trained
from rcnn.paper.quoted import TABLE_2
from rcnn.paper.workspace import Training, Workspace

COUNT = 2000
"""Proposals of Selective Search and of EdgeBoxes per image, in training and test."""

ALTERNATING = Training("alternating", {"train": {"scheme": "alternating"}})
"""Stage 1 is an RPN alone, stage 2 a Fast R-CNN with another backbone on its proposals: unshared features. After stage
4 both share one backbone."""

EDGES = Training(
    "edge-boxes",
    {"train": {"scheme": "fast-rcnn", "proposals": EDGE_BOXES}, "rpn": {"post_train": COUNT, "post_test": COUNT}},
)
"""Fast R-CNN on EdgeBoxes."""

SS, EB, SHARED, UNSHARED = "SS -> SS 2000", "EB -> EB 2000", "RPN shared -> RPN 300", "RPN unshared -> RPN 300"
VGG = "SS -> RPN+VGG 300"


def without_scores(out: RPNOutput, seeds: Tensor) -> RPNOutput:
    """Remove the effect of the `cls` layer by random scores, so that the N best proposals are N random ones."""
    shape, count = out.logits[0].shape[2:], [level.shape[1] for level in out.logits]
    rows = [np.random.Generator(np.random.Philox(key=seed)).random((sum(count), *shape)) for seed in seeds.tolist()]
    drawn = torch.from_numpy(np.stack(rows)).to(out.logits[0])
    return out._replace(logits=drawn.split(count, dim=1))


def without_boxes(out: RPNOutput, seeds: Tensor) -> RPNOutput:
    """Remove the effect of the `reg` layer, so that proposals are the anchors."""
    return out._replace(deltas=tuple(torch.zeros_like(level) for level in out.deltas))


class Test(NamedTuple):
    """Proposals that a Fast R-CNN is tested on.

    Attributes:
        top: proposals per image.
        rpn: further changes of the RPN's settings.
        change: applied to the output of the RPN's head.
    """

    top: int
    rpn: Mapping[str, Any] = {}
    change: Change | None = None


RANDOM = {"pre_test": 10**6, "nms": 1.0}
"""Settings of a test without scores: proposals are drawn from all anchors, and none suppresses another."""

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
"""Row, `trained on -> tested on` -> proposals."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of four trainings, one of them for EdgeBoxes and one for VGG-16; rows test their networks.

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
        measurements=(
            Measurement((SS,), partial(_searched, SS, fast), (fast,), proposals=source(settings)),
            Measurement(
                (EB,),
                partial(_searched, EB, EDGES),
                (EDGES,),
                proposals=EDGE_BOXES,
                omitted="" if settings.data.edge_model else EDGE_MODEL_NEEDED,
            ),
            trained(SHARED, ALTERNATING, {"rpn": {"post_test": 300}}),
            Measurement((UNSHARED,), partial(unshared, UNSHARED), (ALTERNATING,)),
            *(
                Measurement((row,), partial(_on_stage_1, row, fast, test), (fast, ALTERNATING))
                for row, test in TESTS.items()
            ),
            Measurement((VGG,), partial(_on_vgg, fast, vgg), (fast, vgg)),
        ),
        paper={row: {"map50": number} for row, number in TABLE_2.column().items()},
        claims=(
            greater("shared >= unshared features", SHARED, UNSHARED),
            greater("RPN 300 (shared) >= SS 2000", SHARED, SS),
            greater("RPN 300 (shared) >= EB 2000", SHARED, EB),
            greater("tested on RPN: 300 >= 100", base, "SS -> RPN 100"),
            greater("NMS does no harm: 300 >= 6000", base, "SS -> RPN 6000, no NMS"),
            greater("scores rank: 300 >= 300, no cls", base, "SS -> RPN 300, no cls"),
            greater("boxes fit: 300 >= 300, no reg", base, "SS -> RPN 300, no reg"),
            greater("a better RPN: RPN+VGG 300 >= RPN 300", VGG, base),
        ),
        notes=(
            "SS is Selective Search, EB EdgeBoxes; in training 2000 proposals per image, of the RPN rpn.post_train",
            "no cls: boxes without scores, drawn at random; no reg: anchors",
            "RPN+VGG: an RPN trained alone, with VGG-16 in place of the backbone",
        ),
    )


def fast_rcnn(settings: Settings) -> Training:
    """Return the training of Fast R-CNN on external proposals."""
    train = {"scheme": "fast-rcnn", "proposals": source(settings)}
    return Training("fast-rcnn", {"train": train, "rpn": {"post_train": COUNT, "post_test": COUNT}})


def vgg_rpn(settings: Settings) -> Training:
    """Return the training of an RPN alone with VGG-16; neck, anchors and preprocessing are those of the settings.

    Weights of a file or a detector are those of another backbone, so training starts from ImageNet weights instead.
    """
    model = {"backbone": "vgg16", "frozen_stages": 2}  # as in `paper-vgg16`
    train = {"scheme": "joint", "init": "none" if settings.train.init == "none" else "imagenet"}
    # An RPN has no AP by any rule, and no layers to truncate.
    alone = {"roi": {"head": "none"}, "val": {"voc_ap": "area"}, "predict": {"svd": ()}}
    return Training("rpn-vgg16", {"model": model, "train": train, **alone})


def source(settings: Settings) -> str:
    """Return the source of external proposals: `train.proposals`, by default Selective Search.

    Raises:
        SettingsError: `train.proposals` names sliding windows, which have no ranking.
    """
    if settings.train.proposals == SLIDING_WINDOWS:
        raise SettingsError(
            f"{SLIDING_WINDOWS} have no ranking, and this experiment takes the best proposals of each image: give a "
            "file or selective-search. `rcnn paper one-stage` is the experiment on sliding windows"
        )
    return settings.train.proposals or "selective-search"


def _searched(row: str, fast: Training, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    """Score a detector that is trained and tested on one source of proposals."""
    detector = workspace.load(workspace.train(fast, seed).best)
    found = open_proposals(
        str(workspace.settings_of(fast, seed).train.proposals), workspace.dataset, workspace.settings
    )
    return {row: scores(detector, workspace.dataset, ProposalSet(found, COUNT))}


def unshared(row: str, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    """Score two networks with unshared features: Fast R-CNN of stage 2 on 300 proposals of the RPN of stage 1."""
    run = workspace.train(ALTERNATING, seed)
    return {row: _on_rpn(workspace, workspace.load(run.stage(2)), run.stage(1), Test(300))}


def _on_stage_1(row: str, fast: Training, test: Test, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    detector, rpn = workspace.load(workspace.train(fast, seed).best), workspace.train(ALTERNATING, seed).stage(1)
    return {row: _on_rpn(workspace, detector, rpn, test)}


def _on_vgg(fast: Training, vgg: Training, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    detector, rpn = workspace.load(workspace.train(fast, seed).best), workspace.train(vgg, seed).best
    return {VGG: _on_rpn(workspace, detector, rpn, Test(300))}


def _on_rpn(workspace: Workspace, detector: Detector, rpn: Path, test: Test) -> Numbers:
    """Score a detector on the proposals of an RPN with another backbone."""
    changes = {"rpn": {**test.rpn, "post_test": test.top}}
    proposals = RPNProposals(workspace.load(rpn).with_settings(changes), test.change)
    return scores(detector.with_settings(changes), workspace.dataset, proposals)
