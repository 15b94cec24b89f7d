"""The AP if all errors of one kind were corrected, for each kind of lost object and of false alarm."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rcnn.diagnose.why.outcomes import ALARMS, MISS_REASONS, Why
from rcnn.metrics.curves import precision_recall
from rcnn.metrics.overlap import match
from rcnn.metrics.types import Prediction, Truth


def ap_of(truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, iou: float) -> float:
    """Return the mean AP over classes at one IoU, of detections of every score: COCO's AP50 if `iou` is 0.5."""
    curves = precision_recall(truths, predictions, num_classes, iou)
    rows = curves.precision_at_recall[curves.counts > 0]
    return float(rows.mean()) if len(rows) else float("nan")


def mended(why: Why) -> dict[str, float]:
    """Return kind -> AP if all errors of that kind alone were corrected; empty without a second stage.

    A lost object gets its own box with score 1. A bad box or wrong class becomes correct if its object is not found and
    no better alarm is about that object; otherwise it is removed. A missing label is added. Duplicates and detections
    on background are removed.
    """
    if not why.predicts_classes:
        return {}
    return {kind: ap_of(*_with_mended(why, kind), len(why.names), why.iou) for kind in (*MISS_REASONS, *ALARMS)}


def _with_mended(why: Why, kind: str) -> tuple[Sequence[Truth], Sequence[Prediction]]:
    truths, predictions = list(why.truths), list(why.predictions)
    for image, rows in _by_image([(outcome.image, outcome.truth) for outcome in why.lost(kind)]).items():
        predictions[image] = _add_right(why, image, rows, np.ones(len(rows)))
    alarms = why.false_alarms(kind)
    best = defaultdict[int, dict[int, float]](dict)  # image -> lost object -> score of the best alarm about it
    if kind in ("bad_box", "wrong_class"):
        lost = {(outcome.image, outcome.truth) for outcome in why.all_lost()}
        for alarm in alarms:
            if (alarm.image, alarm.truth) in lost:
                best[alarm.image][alarm.truth] = max(alarm.score, best[alarm.image].get(alarm.truth, 0.0))
    for image, detections in _by_image([(alarm.image, alarm.detection) for alarm in alarms]).items():
        truth, prediction = truths[image], predictions[image]
        if kind == "missing_label":
            truths[image] = Truth(
                np.concatenate((truth.boxes, prediction.boxes[detections])),
                np.concatenate((truth.labels, prediction.labels[detections])),
                np.concatenate((truth.ignore, np.zeros(len(detections), bool))),
            )
        else:
            rows, scores = np.array(list(best[image]), np.int64), np.array(list(best[image].values()))
            predictions[image] = _add_right(why, image, rows, scores, removed=detections)
    return truths, predictions


def _add_right(
    why: Why, image: int, rows: np.ndarray, scores: np.ndarray, removed: np.ndarray | None = None
) -> Prediction:
    """Return the image's detections without those `removed`, with the objects `rows` found at these scores.

    Detections that matched these objects at a low score are removed too: they would become duplicates.
    """
    truth, prediction = why.truths[image], why.predictions[image]
    matched, _ = match(truth, prediction, why.iou)
    keep = ~np.isin(matched, rows)
    if removed is not None:
        keep[removed] = False
    return Prediction(
        np.concatenate((prediction.boxes[keep], truth.boxes[rows])),
        np.concatenate((prediction.scores[keep], scores)),
        np.concatenate((prediction.labels[keep], truth.labels[rows])),
    )


def _by_image(pairs: Sequence[tuple[int, int]]) -> dict[int, np.ndarray]:
    """Return image -> indices, from (image, index) pairs."""
    groups = defaultdict[int, list[int]](list)
    for image, index in pairs:
        groups[image].append(index)
    return {image: np.array(rows, np.int64) for image, rows in groups.items()}
