"""The setting that would have kept a lost object at the step that lost it."""

import math
from typing import NamedTuple

import numpy as np
import torch

from rcnn.config import RPN, RoI
from rcnn.diagnose.why.outcomes import Outcome, Rules
from rcnn.diagnose.why.steps import ImageSteps
from rcnn.metrics.overlap import box_iou
from rcnn.model.suppress import NMS, Suppressor

NMS_STEP = 0.05
"""Thresholds of NMS are tried in these steps."""

NO_SETTING = {
    "no_anchor": "No anchor is near it. `rcnn anchors` finds some that fit; they need a training.",
    "not_in_top_k": "No box of any anchor fits it. No setting of prediction helps; training or larger images may.",
    "no_proposal": "The proposal that fits it was counted for another object. Is a label there twice?",
    "no_box": "A proposal fits it, but the second stage moved the box away. Only training helps.",
    "other_class": "Its box was found with another class. Only training helps, or other labels.",
    "suppressed": "The box that fits it was counted for another object. Is a label there twice?",
}
"""Reason -> explanation where no setting of prediction helps."""


class Remedy(NamedTuple):
    """A setting with which the step would not have lost the object; a later step still may.

    Attributes:
        setting: its name; `score` is the threshold of the commands. Empty: no setting of prediction helps.
        value: the nearest value that does; NaN if none does.
        text: a sentence that says why.
    """

    setting: str
    value: float
    text: str


class NMSInput(NamedTuple):
    """Boxes that enter an NMS, n of them.

    Attributes:
        boxes: (n, 4).
        scores: (n,).
        groups: (n,) level or class, within which boxes suppress each other.
        fits: (n,) bool: the box fits the object.
    """

    boxes: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    fits: np.ndarray

    def survivors(self, settings: RPN | RoI, suppress: Suppressor, max_output: int) -> np.ndarray:
        """Return (m,) the indices of the boxes that leave NMS, best first."""
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1)
        valid = (sides > 0) & (sides >= settings.min_size) & (self.scores >= settings.score)
        boxes, scores, groups, eligible = (
            torch.from_numpy(array)[None] for array in (self.boxes, self.scores, self.groups, valid)
        )
        index, _, kept = suppress(boxes, scores, groups, eligible, max_output)
        return index[kept].numpy()


def remedy(outcome: Outcome, box: np.ndarray, steps: ImageSteps, rules: Rules) -> Remedy:
    """Return the setting that would have kept a lost object at the step that lost it.

    Args:
        outcome: of the object.
        box: (4,) in pixels of the resized image.
        steps: of its image.
        rules: thresholds and settings that decided.
    """
    where, detail = outcome.where, outcome.detail
    if where == "low_score":
        return Remedy("score", _round_down(outcome.score), "A threshold this low shows its detection.")
    if where == "not_in_top_k" and detail == "cut":
        fits = np.flatnonzero(box_iou(steps.decoded, box[None])[:, 0] >= rules.iou)
        ranks = [
            int((steps.objectness[steps.level == steps.level[anchor]] >= steps.objectness[anchor]).sum())
            for anchor in fits.tolist()
        ]
        text = "With this many boxes per level entering NMS, one that fits is among them."
        return Remedy("rpn.pre_test", min(ranks), text)
    if where == "no_proposal" and detail != "shared":
        boxes = steps.decoded[steps.entered]
        fits = box_iou(boxes, box[None])[:, 0] >= rules.iou
        entries = NMSInput(boxes, steps.objectness[steps.entered], steps.level[steps.entered], fits)
        return _remedy_of_nms("rpn", "post_test", detail, entries, rules.rpn, rules.suppression.proposals)
    if where == "suppressed" and detail != "shared":
        rows, classes = np.nonzero(steps.scores > rules.roi.score)
        boxes, scores = steps.refined[rows, classes], steps.scores[rows, classes]
        fits = (classes == outcome.label) & (box_iou(boxes, box[None])[:, 0] >= rules.iou)
        entries = NMSInput(boxes, scores, classes, fits & (scores >= np.float32(rules.score)))
        return _remedy_of_nms("roi", "detections", detail, entries, rules.roi, rules.suppression.detections)
    return Remedy("", math.nan, NO_SETTING[where])


def _remedy_of_nms(
    stage: str, limit: str, detail: str, entries: NMSInput, settings: RPN | RoI, suppress: Suppressor
) -> Remedy:
    """Return the setting of NMS or of a limit around it that would have kept one of the boxes that fit."""
    best = np.flatnonzero(entries.fits)[entries.scores[entries.fits].argmax()]
    if detail == "score":
        text = "A limit this low lets its box enter NMS."
        return Remedy(f"{stage}.score", _round_down(float(entries.scores[best])), text)
    if detail == "small":
        side = float((entries.boxes[best, 2:] - entries.boxes[best, :2]).min())
        return Remedy(f"{stage}.min_size", _round_down(side), "A limit this low lets its box enter NMS.")
    if detail == "cut":
        survivors = entries.survivors(settings, suppress, len(entries.boxes))
        ranks = np.flatnonzero(entries.fits[survivors])
        if len(ranks):
            text = "With this many boxes kept after NMS, its own is among them."
            return Remedy(f"{stage}.{limit}", int(ranks[0]) + 1, text)
    max_output = getattr(settings, limit)
    for step in range(math.floor(settings.nms / NMS_STEP) + 1, round(1 / NMS_STEP) + 1):
        if entries.fits[entries.survivors(settings, NMS(step * NMS_STEP), max_output)].any():
            text = "With this threshold, NMS keeps a box that fits it beside those of its neighbours."
            return Remedy(f"{stage}.nms", round(step * NMS_STEP, 2), text)
    text = f"It is lost to both NMS and the number of boxes kept: raise `{stage}.nms` and `{stage}.{limit}`."
    return Remedy("", math.nan, text)


def _round_down(value: float) -> float:
    """Return the value to three decimals, never above it."""
    return math.floor(value * 1000) / 1000
