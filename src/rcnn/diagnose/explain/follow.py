"""Follow one image through the network and keep the tensors of every step.

A anchors of all levels one after another, G ground-truth boxes, P proposals, D detections. Boxes are pixels of the
resized image. All tensors are of this one image, without a batch axis.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.config import RPN
from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import FOUND, Outcome, Rules, miss_reason, outcomes_of
from rcnn.diagnose.why.remedy import Remedy, remedy
from rcnn.diagnose.why.steps import ImageSteps, check_has_steps, run_steps
from rcnn.metrics.types import Prediction, Truth
from rcnn.model import boxes as box_ops
from rcnn.model.structures import Batch, Pass, Proposals, Targets, to_device
from rcnn.model.suppress import NMS

IOU = 0.5
"""Lowest IoU of a box that fits an object, as in `rcnn why`."""


class AnchorLabels(NamedTuple):
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


class RankedBoxes(NamedTuple):
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


class Origin(NamedTuple):
    """Where a detection came from.

    Attributes:
        name: name of its class.
        score: its score, 0..1.
        objectness: objectness of its anchor, 0..1.
        level: of the anchor, counted from the finest.
        cell: (row, column) of the anchor.
        boxes: (n, 4): the anchor, the proposal made of it, the box after each head but the last, the final box; n is 3
            with one head.
        ious: (n,) IoU of these boxes with the labelled object that the final box overlaps most; None without objects.
    """

    name: str
    score: float
    objectness: float
    level: int
    cell: tuple[int, int]
    boxes: Tensor
    ious: tuple[float, ...] | None


class Explanation(NamedTuple):
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
        refined: (H - 1, P, 4): the proposals after each of the H heads of the second stage but the last.
        detections: None without a second stage.
        truth: None if the labels are not known.
        steps: the boxes of both stages of every anchor, proposal and class.
        outcomes: outcome of each ground-truth box that counts, with the remedy if it is lost; empty if the labels are
            not known.
    """

    image: np.ndarray
    names: tuple[str, ...]
    strides: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    levels: Tensor
    anchors: Tensor
    objectness: Tensor
    before: RankedBoxes
    proposals: RankedBoxes
    refined: Tensor
    detections: FinalBoxes | None
    truth: AnchorLabels | None
    steps: ImageSteps
    outcomes: tuple[tuple[Outcome, Remedy | None], ...]

    @property
    def per_cell(self) -> int:
        """Anchors per cell."""
        return len(self.anchors) // sum(height * width for height, width in self.grids)

    def cell_of(self, anchor: int) -> tuple[int, int, int, int]:
        """Return level, row, column and number within the cell of an anchor."""
        level = int(self.levels[anchor])
        cell, number = divmod(anchor - int((self.levels < level).sum()), self.per_cell)
        return level, *divmod(cell, self.grids[level][1]), number

    def anchors_of(self, level: int, row: int, column: int) -> Tensor:
        """Return the indices of the anchors of one cell."""
        start = int((self.levels < level).sum()) + (row * self.grids[level][1] + column) * self.per_cell
        return torch.arange(start, start + self.per_cell)

    def counts(self) -> dict[str, int]:
        """Return the number of boxes at every step."""
        counts = {"anchors": len(self.anchors)}
        if (truth := self.truth) is not None:
            positive, negative = int((truth.label == 1).sum()), int((truth.label == 0).sum())
            counts |= {"objects": len(truth.boxes), "positive": positive, "negative": negative}
            counts |= {"not_trained": len(self.anchors) - positive - negative, "sampled": len(truth.sampled)}
            counts["sampled_positive"] = int((truth.label[truth.sampled] == 1).sum())
        counts |= {"before_nms": len(self.before.boxes), "proposals": len(self.proposals.boxes)}
        return counts | ({"detections": len(self.detections.boxes)} if self.detections else {})

    def origins(self) -> list[Origin]:
        """Return where every detection came from, best first."""
        origins = []
        for box, score, label, proposal in zip(*(self.detections or ()), strict=True):
            anchor = int(self.proposals.anchor[proposal])
            level, row, column, _ = self.cell_of(anchor)
            boxes = torch.stack((self.anchors[anchor], self.proposals.boxes[proposal], *self.refined[:, proposal], box))
            ious = None
            if self.truth is not None and len(self.truth.boxes):
                overlap = box_ops.pairwise_iou(boxes, self.truth.boxes)
                ious = tuple(overlap[:, overlap[-1].argmax()].tolist())
            objectness = float(self.proposals.scores[proposal])
            name = self.names[int(label)]
            origins.append(Origin(name, float(score), objectness, level, (row, column), boxes, ious))
        return origins

    def survivors(self, settings: RPN) -> np.ndarray:
        """Return which boxes are proposals at each of `thresholds(settings.nms)`.

        Args:
            settings: `post_test` limits the number of proposals.

        Returns:
            (T, n) bool, in the order of `before`.
        """
        boxes, scores, anchor = (part[None] for part in self.before)
        valid = torch.ones_like(scores, dtype=torch.bool)
        survivors = np.zeros((len(thresholds(settings.nms)), scores.shape[1]), bool)
        for row, threshold in zip(survivors, thresholds(settings.nms), strict=True):
            index, _, survives = NMS(threshold)(boxes, scores, self.levels[anchor], valid, settings.post_test)
            row[index[survives].numpy()] = True
        return survivors


def thresholds(nms: float) -> tuple[float, ...]:
    """Return the thresholds of NMS to try, ascending: 0, 0.05, ..., 1 and that of the settings."""
    return tuple(sorted({*(round(step * 0.05, 2) for step in range(21)), nms}))


def follow(
    detector: Detector,
    image: np.ndarray,
    truth: Truth | None = None,
    *,
    seed: int = 0,
    score: float | None = None,
) -> Explanation:
    """Run a detector on an image (H, W, C) uint8 and keep the result of every step.

    Args:
        detector: proposals and detections are those of its `propose` and `predict`.
        image: as `images.decode.read_image` returns it.
        truth: labelled objects in pixels of the file, for the steps of training.
        seed: seed of the draw of anchors.
        score: lowest score of a detection; None: the detector's threshold.

    Raises:
        SettingsError: it is a one-stage detector or an exported file.
        NonFiniteError: the network's output is not finite.
    """
    check_has_steps(detector)
    resized = detector.preprocessor.resize(image)
    batch = detector.preprocessor.collate([resized], [(image.shape[0], image.shape[1])])
    net = detector.runner
    rpn, settings = net.rpn, net.settings.rpn
    with torch.inference_mode():
        batch = to_device(batch, detector.device)
        pass_ = net.execute(batch)
        out, proposals, detections = pass_.rpn, pass_.proposals, pass_.detections
        assert out is not None
        assert proposals is not None
        assert detections is not None
        per_level = torch.tensor([len(anchors) for anchors in out.anchors])
        entries = int(per_level.clamp(max=settings.pre_test).sum())
        # No IoU is above 1: nothing is suppressed.
        before = rpn.propose(out, batch.sizes, pre=settings.pre_test, post=entries, suppress=NMS(1.0))
    threshold = detector.threshold if score is None else score
    (steps,), (result,) = run_steps(detector, batch, pass_)
    final = None
    if pass_.rois:
        shown = detections.valid[0] & (detections.scores[0] >= threshold)
        parts = (detections.boxes, detections.scores, detections.labels, detections.proposal)
        final = FinalBoxes(*(part[0][shown].cpu() for part in parts))
    outcomes: list[tuple[Outcome, Remedy | None]] = []
    if truth is not None:
        boxes = truth.boxes * batch.scales[0].flip(0).repeat(2).cpu().numpy()
        rules = Rules(IOU, threshold, settings, net.settings.roi, net.suppression)
        reasons = {
            row: partial(miss_reason, box[None], label, steps, rules)
            for row, (box, label) in enumerate(zip(boxes, truth.labels.tolist(), strict=True))
        }
        prediction = Prediction(result.boxes, result.scores, result.labels)
        outcomes = [
            (outcome, None if outcome.where == FOUND else remedy(outcome, boxes[outcome.truth], steps, rules))
            for outcome in outcomes_of(
                0, truth, prediction, reasons, rules, predicts_classes=bool(steps.refined.shape[1])
            )
        ]
    pixels = resized[:3] if len(resized) >= 3 else resized[:1].expand(3, -1, -1)  # grey without three channels
    return Explanation(
        image=pixels.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy(),
        names=detector.names,
        strides=rpn.strides,
        grids=tuple((level.shape[2], level.shape[3]) for level in pass_.levels),
        levels=torch.arange(len(per_level)).repeat_interleave(per_level),
        anchors=torch.cat(out.anchors).cpu(),
        objectness=torch.cat([rpn.scores(logits)[0] for logits in out.logits]).sigmoid().cpu(),
        before=_ranked(before),
        proposals=_ranked(proposals),
        refined=_refined(pass_, proposals),
        detections=final,
        truth=None if truth is None else _anchor_labels(detector, batch, pass_, truth, seed),
        steps=steps,
        outcomes=tuple(outcomes),
    )


def _ranked(proposals: Proposals) -> RankedBoxes:
    valid = proposals.valid[0]
    return RankedBoxes(*(part[0][valid].cpu() for part in (proposals.boxes, proposals.scores, proposals.anchor)))


def _refined(pass_: Pass, proposals: Proposals) -> Tensor:
    """Return the boxes (H - 1, P, 4) that each head of the second stage but the first receives."""
    valid = proposals.valid[0]
    received = [out.boxes[0][valid] for out in pass_.rois[1:]]
    return torch.stack(received).cpu() if received else proposals.boxes.new_zeros(0, int(valid.sum()), 4).cpu()


def _anchor_labels(detector: Detector, batch: Batch, pass_: Pass, truth: Truth, seed: int) -> AnchorLabels:
    """Return the labels of the anchors and one sample of them, as in a step of training."""
    net = detector.runner
    scale = batch.scales[0].flip(0).repeat(2).double()
    boxes = (torch.from_numpy(truth.boxes).to(scale.device) * scale).float()
    labels, ignore = torch.from_numpy(truth.labels).to(boxes.device), torch.from_numpy(truth.ignore).to(boxes.device)
    # The operators need at least one ground-truth box, so a row of zeros is added.
    parts = (boxes, labels, boxes.new_ones(len(boxes), dtype=torch.bool), ignore)
    targets = Targets(*(torch.cat((part, part.new_zeros(1, *part.shape[1:])))[None] for part in parts))
    assert pass_.rpn is not None
    assignment = net.rpn.assign(torch.cat(pass_.rpn.anchors), targets, batch.sizes)
    keys = net.keys(batch, targets, torch.tensor([seed])).rpn
    sample = net.rpn.draw(pass_.rpn, assignment, targets, keys, pass_.levels)
    return AnchorLabels(
        boxes=boxes.cpu(),
        classes=labels.cpu(),
        label=torch.where(assignment.positive, 1, torch.where(assignment.negative, 0, -1))[0].cpu(),
        truth=assignment.truth[0].cpu(),
        sampled=sample.indices[0][sample.valid[0]].cpu(),
    )
