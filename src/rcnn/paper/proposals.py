"""Table 2: Fast R-CNN by the proposals in training and in test."""

import numpy as np
import torch
from torch import Tensor

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.proposals.search import EDGE_BOXES, EDGE_MODEL_NEEDED, model_file
from rcnn.errors import SettingsError
from rcnn.model.structures import RPNOutput
from rcnn.paper.experiment import SCORES, Experiment, greater
from rcnn.paper.measure import Change, trained
from rcnn.paper.quoted import TABLE_2
from rcnn.paper.workspace import Training

COUNT = 2000
"""Proposals of Selective Search and of EdgeBoxes per image, in training and test."""

ALTERNATING = Training("alternating", {"train": {"scheme": "alternating"}})
STAGE_1, STAGE_2 = ALTERNATING._replace(stage=1), ALTERNATING._replace(stage=2)
"""Stage 1 is an RPN alone, stage 2 a Fast R-CNN with another backbone on its proposals: unshared features. After stage
4 both share one backbone."""

TOP_300 = {"rpn": {"post_test": 300}}

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


RANDOM = {"pre_test": 10**6, "nms": 1.0}
"""Settings of a test without scores: proposals are drawn from all anchors, without suppression."""

TESTS: dict[str, tuple[dict[str, float], Change | None]] = {
    "SS -> RPN 100": ({"post_test": 100}, None),
    "SS -> RPN 300": ({"post_test": 300}, None),
    "SS -> RPN 1000": ({"post_test": 1000}, None),
    "SS -> RPN 6000, no NMS": ({"post_test": 6000, "nms": 1.0}, None),
    "SS -> RPN 100, no cls": ({"post_test": 100, **RANDOM}, without_scores),
    "SS -> RPN 300, no cls": ({"post_test": 300, **RANDOM}, without_scores),
    "SS -> RPN 1000, no cls": ({"post_test": 1000, **RANDOM}, without_scores),
    "SS -> RPN 300, no reg": ({"post_test": 300}, without_boxes),
    "SS -> RPN 1000, no reg": ({"post_test": 1000}, without_boxes),
}
"""Row, `trained on -> tested on` -> settings of the RPN in test, and the change of the output of its head."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of four trainings, one of them for EdgeBoxes and one for VGG-16.

    Raises:
        SettingsError: `data.edge_model` names no file.
    """
    fast, edges = fast_rcnn("fast-rcnn", source(settings)), fast_rcnn("edge-boxes", EDGE_BOXES)
    if settings.data.edge_model is not None:
        model_file(settings.data)
    base = "SS -> RPN 300"
    return Experiment(
        title="proposals in training -> in test",
        source="table 2; Fast R-CNN with ZF, VOC 2007 test",
        columns=SCORES,
        measurements=(
            trained(SS, fast)._replace(proposals=source(settings)),
            trained(EB, edges)._replace(
                proposals=EDGE_BOXES, omitted="" if settings.data.edge_model else EDGE_MODEL_NEEDED
            ),
            trained(SHARED, ALTERNATING, TOP_300),
            trained(UNSHARED, STAGE_2, TOP_300, STAGE_1),
            *(trained(row, fast, {"rpn": rpn}, STAGE_1, change) for row, (rpn, change) in TESTS.items()),
            trained(VGG, fast, TOP_300, vgg_rpn(settings)),
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


def fast_rcnn(name: str, source: str) -> Training:
    """Return the training of Fast R-CNN on proposals of an external source."""
    train = {"scheme": "fast-rcnn", "proposals": source}
    return Training(name, {"train": train, "rpn": {"post_train": COUNT, "post_test": COUNT}})


def vgg_rpn(settings: Settings) -> Training:
    """Return the training of an RPN alone with VGG-16; neck, anchors and preprocessing are those of the settings.

    Weights of a file or a detector belong to another backbone, so training starts from ImageNet weights instead.
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
