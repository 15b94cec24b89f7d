"""Find the setting with which the step that lost an object would have kept it."""

import math
from typing import NamedTuple

import numpy as np
import torch

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
"""Reason -> explanation, if no prediction setting helps."""


class Remedy(NamedTuple):
    """A setting with which the step would have kept the object; a later step may still lose it.

    Attributes:
        setting: its name; `score` is the threshold of the commands. Empty: no prediction setting helps.
        value: the value nearest to the present one; NaN if no setting helps.
        text: a sentence with the reason.
    """

    setting: str
    value: float
    text: str


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
    # Boxes (n, 4) and scores (n,) that enter an NMS, within whose groups (n,) they suppress each other.
    if where == "no_proposal" and detail != "shared":
        stage, limit, settings, suppress = "rpn", "post_test", rules.rpn, rules.suppression.proposals
        boxes, scores, groups = (part[steps.entered] for part in (steps.decoded, steps.objectness, steps.level))
        fits = box_iou(boxes, box[None])[:, 0] >= rules.iou
    elif where == "suppressed" and detail != "shared":
        stage, limit, settings, suppress = "roi", "detections", rules.roi, rules.suppression.detections
        rows, groups = np.nonzero(steps.scores > rules.roi.score)
        boxes, scores = steps.refined[rows, groups], steps.scores[rows, groups]
        fits = (groups == outcome.label) & (box_iou(boxes, box[None])[:, 0] >= rules.iou)
        fits &= scores >= np.float32(rules.score)
    else:
        return Remedy("", math.nan, NO_SETTING[where])
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    best = np.flatnonzero(fits)[scores[fits].argmax()]
    lowest = {"score": ("score", scores[best]), "small": ("min_size", sides[best])}
    if detail in lowest:
        name, value = lowest[detail]
        return Remedy(f"{stage}.{name}", _round_down(float(value)), "A limit this low lets its box enter NMS.")
    valid = (sides > 0) & (sides >= settings.min_size) & (scores >= settings.score)
    entries = [torch.from_numpy(part)[None] for part in (boxes, scores, groups, valid)]

    def fit(suppress: Suppressor, max_output: int) -> np.ndarray:
        """Return (m,) whether each of the boxes that leave NMS fits, best first."""
        boxes, scores, groups, valid = entries
        index, _, survives = suppress(boxes, scores, groups, valid, max_output)
        return fits[index[survives].numpy()]

    if detail == "cut":
        ranks = np.flatnonzero(fit(suppress, len(boxes)))
        if len(ranks):
            text = "With this many boxes kept after NMS, its own is among them."
            return Remedy(f"{stage}.{limit}", int(ranks[0]) + 1, text)
    for step in range(math.floor(settings.nms / NMS_STEP) + 1, round(1 / NMS_STEP) + 1):
        if fit(NMS(step * NMS_STEP), getattr(settings, limit)).any():
            text = "With this threshold, NMS keeps a box that fits it beside those of its neighbours."
            return Remedy(f"{stage}.nms", round(step * NMS_STEP, 2), text)
    text = f"It is lost to both NMS and the number of boxes kept: raise `{stage}.nms` and `{stage}.{limit}`."
    return Remedy("", math.nan, text)


def _round_down(value: float) -> float:
    """Return the value to three decimals, never above it."""
    return math.floor(value * 1000) / 1000
