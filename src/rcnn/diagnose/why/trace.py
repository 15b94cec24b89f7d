"""Find the stage that lost an object by checking the stages of its image in order."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rcnn.config import RPN, RoI
from rcnn.diagnose.why.outcomes import FOUND, LEAST_ANCHOR, Outcome, Rules, matched, size_of
from rcnn.diagnose.why.steps import ImageTrace
from rcnn.metrics.overlap import box_iou
from rcnn.metrics.proposal_recall import best_cover
from rcnn.metrics.types import Prediction, Truth

Fate = dict[str, Any]
"""Fields of an `Outcome` that say where an object was lost."""


def explain(
    image: int,
    truth: Truth,
    prediction: Prediction,
    fates: Mapping[int, Callable[[], Fate]],
    rules: Rules,
    *,
    predicts_classes: bool,
) -> list[Outcome]:
    """The outcome of every object of an image that counts.

    Args:
        image: its index.
        truth: its objects, in pixels of the file.
        prediction: all its detections, in pixels of the file; of an RPN alone, its proposals.
        fates: row of an object -> what tells where it was lost, asked only if it was.
        rules: thresholds and settings that decide.
        predicts_classes: as `Settings.predicts_classes`; if False, `prediction` holds proposals.
    """
    if predicts_classes:
        by, index = matched(truth, prediction, rules.iou, rules.score)
        scores = {row: float(prediction.scores[at]) for row, at in zip(by.tolist(), index.tolist(), strict=True)}
    else:
        cover = best_cover(box_iou(truth.boxes[~truth.ignore], prediction.boxes))
        scores = dict.fromkeys(np.flatnonzero(~truth.ignore)[cover >= rules.iou].tolist(), float("nan"))
    outcomes = []
    for row in np.flatnonzero(~truth.ignore).tolist():
        box, label = truth.boxes[row], int(truth.labels[row])
        here = Outcome(image, row, label, size_of(box), FOUND)
        fate: Fate = {"score": scores[row]} if row in scores else fates[row]()
        outcomes.append(here._replace(**fate))
    return outcomes


def where_lost(box: np.ndarray, label: int, trace: ImageTrace, rules: Rules) -> Fate:
    """Return the first stage that lost an object (`where`), and what else is known of it.

    Args:
        box: (1, 4) in pixels of the resized image.
        label: its class.
        trace: of its image.
        rules: what decides.
    """
    if not (box_iou(trace.anchors, box) >= LEAST_ANCHOR).any():
        return {"where": "no_anchor"}
    fits = box_iou(trace.decoded, box)[:, 0] >= rules.iou
    entered = trace.entered[fits[trace.entered]]
    if not len(entered):
        return {"where": "not_in_top_k", "detail": "cut" if fits.any() else "missed"}
    if not fits[trace.proposed].any():
        best = entered[trace.objectness[entered].argmax()]
        return {"where": "no_proposal", "detail": _lost_by_rpn(int(best), trace, rules.rpn)}
    if not trace.refined.shape[1]:
        return {"where": "no_proposal", "detail": "shared"}
    return _lost_by_head(box, label, trace, rules)


def _lost_by_head(box: np.ndarray, label: int, trace: ImageTrace, rules: Rules) -> Fate:
    """As `trace`, of an object that some proposal fits.

    A proposal's box is that of its best class, or that of the object's own. Background is no class here: what the
    network takes for background is below the threshold.
    """
    said, rows = trace.scores.argmax(axis=1), np.arange(len(trace.scores))
    own = box_iou(trace.refined[:, label], box)[:, 0] >= rules.iou
    fits = own | (box_iou(trace.refined[rows, said], box)[:, 0] >= rules.iou)
    if not fits.any():
        return {"where": "no_box"}
    right = np.flatnonzero(own & (said == label))
    if not len(right):
        at = np.flatnonzero(fits)[trace.scores[fits].max(axis=1).argmax()]
        score = float(trace.scores[fits, label].max())
        return {"where": "other_class", "taken_for": int(said[at]), "score": score}
    best = int(right[trace.scores[right, label].argmax()])
    score = trace.scores[best, label]
    if score < np.float32(rules.score) or score <= rules.roi.score:
        return {"where": "low_score", "score": float(score)}
    return {"where": "suppressed", "detail": _lost_at_end(best, label, trace, rules), "score": float(score)}


def _lost_by_rpn(anchor: int, trace: ImageTrace, settings: RPN) -> str:
    """What became of the box of an anchor that entered the RPN's NMS and is no proposal."""
    box, score = trace.decoded[anchor], trace.objectness[anchor]
    if score < settings.score:
        return "score"
    rivals = trace.proposed[trace.level[trace.proposed] == trace.level[anchor]]
    return _fate(box, score, trace.decoded[rivals], trace.objectness[rivals], settings)


def _lost_at_end(proposal: int, label: int, trace: ImageTrace, rules: Rules) -> str:
    """What became of the box of a proposal and class, over the threshold, that matched no object."""
    if (trace.detected == (proposal, label)).all(axis=1).any():
        return "shared"
    box, score = trace.refined[proposal, label], trace.scores[proposal, label]
    rivals = trace.detected[trace.detected[:, 1] == label, 0]
    return _fate(box, score, trace.refined[rivals, label], trace.scores[rivals, label], rules.roi)


def _fate(box: np.ndarray, score: float, rivals: np.ndarray, scores: np.ndarray, settings: RPN | RoI) -> str:
    """Whether a box was too small, or a kept rival suppressed it; if neither, it came too late."""
    if (box[2:] - box[:2]).min() < settings.min_size:
        return "small"
    return "nms" if (box_iou(rivals[scores >= score], box[None]) > settings.nms).any() else "cut"
