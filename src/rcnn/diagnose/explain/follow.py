"""Follow one image through the network and keep the tensors of every stage.

A anchors of all levels one after another, G ground-truth boxes, P proposals, D detections. Boxes are pixels of the
resized image. All tensors are of this one image, without a batch axis.
"""

import copy
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import FOUND, Outcome, Rules
from rcnn.diagnose.why.remedy import Remedy, remedy
from rcnn.diagnose.why.steps import ImageTrace, need_stages, trace_pass
from rcnn.diagnose.why.trace import explain, where_lost
from rcnn.metrics.types import Prediction, Truth
from rcnn.model.structures import Batch, Pass, Proposals, Targets, to_device

IOU = 0.5
"""From this IoU on a box fits an object, as in `rcnn why`."""


class Labels(NamedTuple):
    """Training labels of the anchors of the image.

    Attributes:
        boxes: (G, 4) the ground-truth boxes.
        classes: (G,) int64.
        label: (A,) 1 positive, 0 negative, -1 not trained.
        truth: (A,) index of the ground-truth box of each anchor.
        sampled: (n,) the anchors of one draw.
    """

    boxes: Tensor
    classes: Tensor
    label: Tensor
    truth: Tensor
    sampled: Tensor


class Fate(NamedTuple):
    """What became of a ground-truth box.

    Attributes:
        outcome: found, or the stage that lost it.
        remedy: the setting that would have kept it there; None if it is found.
    """

    outcome: Outcome
    remedy: Remedy | None


class Ranked(NamedTuple):
    """Boxes that the network makes from anchors, best first.

    Attributes:
        boxes: (n, 4).
        scores: (n,) objectness probability.
        anchor: (n,) index of the anchor.
    """

    boxes: Tensor
    scores: Tensor
    anchor: Tensor


class FinalBoxes(NamedTuple):
    """The final boxes, best first.

    Attributes:
        boxes: (D, 4).
        scores: (D,).
        classes: (D,) int64.
        proposal: (D,) index into the proposals.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    proposal: Tensor


class Walkthrough(NamedTuple):
    """Everything between an image and its detections.

    Attributes:
        image: (h, w, 3) uint8, as resized.
        names: class names.
        strides: stride of each level, pixels.
        grids: (height, width) of each level, cells.
        levels: (A,) int64, level of each anchor, counted from the finest.
        anchors: (A, 4).
        objectness: (A,) probability.
        before: boxes that enter NMS.
        proposals: those that leave it.
        detections: None without a second stage.
        truth: None where no labels are known.
        trace: the boxes of both stages of every anchor, proposal and class.
        fates: of the ground-truth boxes that count; empty where no labels are known.
    """

    image: np.ndarray
    names: tuple[str, ...]
    strides: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    levels: Tensor
    anchors: Tensor
    objectness: Tensor
    before: Ranked
    proposals: Ranked
    detections: FinalBoxes | None
    truth: Labels | None
    trace: ImageTrace
    fates: tuple[Fate, ...]

    def place(self, anchor: int) -> tuple[int, int, int, int]:
        """Level, row, column and number within the cell of an anchor."""
        level = int(self.levels[anchor])
        inside = anchor - int((self.levels < level).sum())
        cell, which = divmod(inside, self.per_cell)
        return level, *divmod(cell, self.grids[level][1]), which

    def of_cell(self, level: int, row: int, column: int) -> Tensor:
        """The anchors of one cell."""
        start = int((self.levels < level).sum()) + (row * self.grids[level][1] + column) * self.per_cell
        return torch.arange(start, start + self.per_cell)

    @property
    def per_cell(self) -> int:
        """Anchors per cell."""
        return len(self.anchors) // sum(height * width for height, width in self.grids)


def follow(
    detector: Detector,
    image: np.ndarray,
    truth: Truth | None = None,
    *,
    seed: int = 0,
    score: float | None = None,
) -> Walkthrough:
    """Show an image (H, W, C) uint8 to a detector and keep what every stage says.

    Args:
        detector: proposals and detections are those of its `propose` and `predict`.
        image: as `preprocess.decode.read_image` returns it.
        truth: labelled objects in pixels of the file, for the stages of training.
        seed: seed of the draw of anchors.
        score: least score of a detection; None: the detector's threshold.

    Raises:
        SettingsError: it is a one-stage detector.
        NonFiniteError: the network's output is not finite.
    """
    need_stages(detector)
    preprocessor = detector.preprocessor
    resized = preprocessor.resize(image)
    batch = preprocessor.collate([resized], [(image.shape[0], image.shape[1])])
    net = detector.runner
    rpn, settings = net.rpn, net.settings.rpn
    with torch.inference_mode():
        batch = to_device(batch, detector.device)
        pass_ = net.execute(batch)
        out, proposals = pass_.rpn, pass_.proposals
        assert out is not None
        assert proposals is not None
        counts = torch.tensor([len(anchors) for anchors in out.anchors])
        entries = int(counts.clamp(max=settings.pre_test).sum())
        everything = copy.copy(rpn)
        everything.settings = settings.model_copy(update={"nms": 1.0})  # no IoU is above 1: nothing is suppressed
        before = everything.propose(out, batch.sizes, pre=settings.pre_test, post=entries)
    threshold = detector.threshold if score is None else score
    (trace,), (result,) = trace_pass(detector, batch, pass_)
    prediction = Prediction(result.boxes, result.scores, result.labels)
    rules = Rules(IOU, threshold, settings, net.settings.roi)
    return Walkthrough(
        image=_picture(resized),
        names=detector.names,
        strides=rpn.strides,
        grids=tuple((level.shape[2], level.shape[3]) for level in pass_.levels),
        levels=torch.arange(len(counts)).repeat_interleave(counts),
        anchors=torch.cat(out.anchors).cpu(),
        objectness=torch.cat([rpn.scores(logits)[0] for logits in out.logits]).sigmoid().cpu(),
        before=_ranked(before),
        proposals=_ranked(proposals),
        detections=_found(pass_, threshold),
        truth=None if truth is None else _labels(detector, batch, pass_, truth, seed),
        trace=trace,
        fates=() if truth is None else _fates(truth, batch, prediction, trace, rules),
    )


def _fates(truth: Truth, batch: Batch, prediction: Prediction, trace: ImageTrace, rules: Rules) -> tuple[Fate, ...]:
    """What became of the objects that count."""
    scale = batch.scales[0].flip(0).repeat(2).cpu().numpy()
    rows = enumerate(zip(truth.boxes * scale, truth.labels.tolist(), strict=True))
    fates = {row: partial(where_lost, box[None], label, trace, rules) for row, (box, label) in rows}
    outcomes = explain(0, truth, prediction, fates, rules, predicts_classes=bool(trace.refined.shape[1]))
    return tuple(
        Fate(one, None if one.where == FOUND else remedy(one, truth.boxes[one.truth] * scale, trace, rules))
        for one in outcomes
    )


def _ranked(proposals: Proposals) -> Ranked:
    kept = proposals.valid[0]
    parts = (part[0][kept].cpu() for part in (proposals.boxes, proposals.scores, proposals.anchor))
    return Ranked(*parts)


def _found(pass_: Pass, threshold: float) -> FinalBoxes | None:
    """The final boxes; None without a second stage."""
    detections = pass_.detections
    if pass_.rois is None or detections is None:
        return None
    kept = detections.valid[0] & (detections.scores[0] >= threshold)
    parts = (detections.boxes, detections.scores, detections.labels, detections.proposal)
    return FinalBoxes(*(part[0][kept].cpu() for part in parts))


def _labels(detector: Detector, batch: Batch, pass_: Pass, truth: Truth, seed: int) -> Labels:
    """Labels and one draw of anchors, as a step of training makes them."""
    net = detector.runner
    scale = batch.scales[0].flip(0).repeat(2).double()
    boxes = (torch.from_numpy(truth.boxes).to(scale.device) * scale).float()
    some = boxes.new_ones(len(boxes), dtype=torch.bool)
    labels, ignore = torch.from_numpy(truth.labels).to(boxes.device), torch.from_numpy(truth.ignore).to(boxes.device)
    # One row of zeros more: the operators want at least one ground-truth box.
    parts = (boxes, labels, some, ignore)
    targets = Targets(*(torch.cat((part, part.new_zeros(1, *part.shape[1:])))[None] for part in parts))
    assert pass_.rpn is not None
    assignment = net.rpn.assign(torch.cat(pass_.rpn.anchors), targets, batch.sizes)
    keys = net.keys(batch, targets, torch.tensor([seed])).rpn
    drawn = net.rpn.draw(pass_.rpn, assignment, targets, keys, pass_.levels)
    return Labels(
        boxes=boxes.cpu(),
        classes=labels.cpu(),
        label=torch.where(assignment.positive, 1, torch.where(assignment.negative, 0, -1))[0].cpu(),
        truth=assignment.truth[0].cpu(),
        sampled=drawn.indices[0][drawn.valid[0]].cpu(),
    )


def _picture(image: Tensor) -> np.ndarray:
    """(C, h, w) in 0..255 -> (h, w, 3) uint8, grey where there are no three channels."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def counts(walk: Walkthrough) -> dict[str, int]:
    """How many boxes there are at every stage."""
    numbers = {"anchors": len(walk.anchors)}
    if (truth := walk.truth) is not None:
        positive, negative = int((truth.label == 1).sum()), int((truth.label == 0).sum())
        numbers |= {"objects": len(truth.boxes), "positive": positive, "negative": negative}
        numbers |= {"not_trained": len(walk.anchors) - positive - negative, "sampled": len(truth.sampled)}
        numbers["sampled_positive"] = int((truth.label[truth.sampled] == 1).sum())
    numbers |= {"before_nms": len(walk.before.boxes), "proposals": len(walk.proposals.boxes)}
    return numbers | ({"detections": len(walk.detections.boxes)} if walk.detections else {})
