"""The setting that would have kept a lost object at the stage that lost it."""

import math
from typing import NamedTuple

import numpy as np
import torch

import rcnn.ops as ops
from rcnn.config import RPN, RoI
from rcnn.diagnose.why.outcomes import Outcome, Rules
from rcnn.diagnose.why.steps import ImageTrace
from rcnn.metrics.overlap import box_iou

STEP = 0.05
"""Thresholds of NMS are tried in these steps."""

HOPELESS = {
    "no_anchor": "No anchor is near it. `rcnn anchors` finds some that fit; they need a training.",
    "not_in_top_k": "No box of any anchor fits it: no setting of prediction helps; training does, or larger images.",
    "no_proposal": "The proposal that fits it was counted for another object; is a label given twice?",
    "no_box": "A proposal fits it, but the second stage moved the box away; only training helps.",
    "other_class": "Its box is there with another class; only training helps, or other labels.",
    "suppressed": "The box that fits it was counted for another object; is a label given twice?",
}
"""Stage -> what is said where no setting of prediction helps."""


class Remedy(NamedTuple):
    """A setting with which the stage would not have lost the object; a later stage still may.

    Attributes:
        setting: its name; `score` is the threshold of the commands. Empty: no setting of prediction helps.
        value: the nearest that does; NaN if none does.
        text: a sentence that says why.
    """

    setting: str
    value: float
    text: str


class Entries(NamedTuple):
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

    def kept(self, settings: RPN | RoI, nms: float, most: int) -> np.ndarray:
        """(m,) the entries that leave NMS, best first."""
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1)
        there = (sides > 0) & (sides >= settings.min_size) & (self.scores >= settings.score)
        boxes, scores, groups, valid = (
            torch.from_numpy(array)[None] for array in (self.boxes, self.scores, self.groups, there)
        )
        index, valid = ops.nms(boxes, scores, groups, valid, nms, most)
        return index[valid].numpy()


def remedy(outcome: Outcome, box: np.ndarray, trace: ImageTrace, rules: Rules) -> Remedy:
    """What would have kept a lost object where it was lost.

    Args:
        outcome: of the object, as `trace.explain` tells it.
        box: (4,) in pixels of the resized image.
        trace: of its image.
        rules: that decided.
    """
    where, detail = outcome.where, outcome.detail
    if where == "low_score":
        return Remedy("score", _down(outcome.score), "A threshold this low shows its detection.")
    if where == "not_in_top_k" and detail == "cut":
        fits = np.flatnonzero(box_iou(trace.decoded, box[None])[:, 0] >= rules.iou)
        ranks = [
            int((trace.objectness[trace.level == trace.level[anchor]] >= trace.objectness[anchor]).sum())
            for anchor in fits.tolist()
        ]
        return Remedy("rpn.pre_test", min(ranks), "With so many boxes per level entering NMS, one that fits is there.")
    if where == "no_proposal" and detail != "shared":
        boxes = trace.decoded[trace.entered]
        fits = box_iou(boxes, box[None])[:, 0] >= rules.iou
        entries = Entries(boxes, trace.objectness[trace.entered], trace.level[trace.entered], fits)
        return _thinned("rpn", "post_test", detail, entries, rules.rpn, rules.rpn.post_test)
    if where == "suppressed" and detail != "shared":
        rows, classes = np.nonzero(trace.scores > rules.roi.score)
        boxes, label = trace.refined[rows, classes], outcome.label
        fits = (classes == label) & (box_iou(boxes, box[None])[:, 0] >= rules.iou)
        fits &= trace.scores[rows, classes] >= np.float32(rules.score)
        entries = Entries(boxes, trace.scores[rows, classes], classes, fits)
        return _thinned("roi", "detections", detail, entries, rules.roi, rules.roi.detections)
    return Remedy("", math.nan, HOPELESS[where])


def _thinned(stage: str, limit: str, detail: str, entries: Entries, settings: RPN | RoI, most: int) -> Remedy:
    """What would have kept one of the boxes that fit, where NMS and limits thin them out."""
    best = np.flatnonzero(entries.fits)[entries.scores[entries.fits].argmax()]
    if detail == "score":
        text = "A limit this low lets its box enter NMS."
        return Remedy(f"{stage}.score", _down(float(entries.scores[best])), text)
    if detail == "small":
        side = float((entries.boxes[best, 2:] - entries.boxes[best, :2]).min())
        return Remedy(f"{stage}.min_size", _down(side), "A limit this low lets its box enter NMS.")
    if detail == "cut":
        kept = entries.kept(settings, settings.nms, len(entries.boxes))
        places = np.flatnonzero(entries.fits[kept])
        if len(places):
            return Remedy(
                f"{stage}.{limit}", int(places[0]) + 1, "With so many boxes kept after NMS, its own is there."
            )
    for step in range(math.floor(settings.nms / STEP) + 1, round(1 / STEP) + 1):
        if entries.fits[entries.kept(settings, step * STEP, most)].any():
            text = "With this threshold, NMS leaves a box that fits it beside its neighbours'."
            return Remedy(f"{stage}.nms", round(step * STEP, 2), text)
    text = f"NMS and the number of boxes kept lose it together: raise `{stage}.nms` and `{stage}.{limit}`."
    return Remedy("", math.nan, text)


def _down(value: float) -> float:
    """To three decimals, never above."""
    return math.floor(value * 1000) / 1000
