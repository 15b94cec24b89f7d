"""The AP that mending each kind of loss and of false alarm would give, one kind at a time."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rcnn.diagnose.why.outcomes import ALARMS, LOSSES, Alarm, Why
from rcnn.metrics.curves import precision_recall
from rcnn.metrics.overlap import match
from rcnn.metrics.types import Prediction, Truth


def ap_of(truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, iou: float) -> float:
    """Mean AP over classes at one IoU, of detections of every score: COCO's AP50 where `iou` is 0.5."""
    curves = precision_recall(truths, predictions, num_classes, iou)
    rows = curves.precision_at_recall[curves.counts > 0]
    return float(rows.mean()) if len(rows) else float("nan")


def mended(why: Why) -> dict[str, float]:
    """Kind of loss or false alarm -> AP if all of it were mended, and nothing else; empty without a second stage.

    A lost object gets its own box with score 1. A bad box or wrong class becomes right where its object is not found
    and no better alarm is of that object, and goes otherwise. A missing label is added. A duplicate, and what is on
    background, goes.
    """
    if not why.predicts_classes:
        return {}
    kinds = (*LOSSES, *ALARMS)
    return {kind: ap_of(*_with_mended(why, kind), len(why.names), why.iou) for kind in kinds}


def _with_mended(why: Why, kind: str) -> tuple[Sequence[Truth], Sequence[Prediction]]:
    truths, predictions = list(why.truths), list(why.predictions)
    for image, rows in _by_image([(outcome.image, outcome.truth) for outcome in why.lost(kind)]).items():
        predictions[image] = _add_right(why, image, rows, np.ones(len(rows)))
    alarms = why.false_alarms(kind)
    right = _rightful(why, alarms) if kind in ("bad_box", "wrong_class") else {}
    for image, detections in _by_image([(alarm.image, alarm.detection) for alarm in alarms]).items():
        truth, prediction = truths[image], predictions[image]
        if kind == "missing_label":
            truths[image] = Truth(
                np.concatenate((truth.boxes, prediction.boxes[detections])),
                np.concatenate((truth.labels, prediction.labels[detections])),
                np.concatenate((truth.ignore, np.zeros(len(detections), bool))),
            )
            continue
        scores = right.get(image, {})
        rows = np.array(list(scores), np.int64)
        predictions[image] = _add_right(why, image, rows, np.array(list(scores.values())), gone=detections)
    return truths, predictions


def _rightful(why: Why, alarms: Sequence[Alarm]) -> dict[int, dict[int, float]]:
    """Image -> objects that are not found -> score of the best alarm that speaks of each."""
    lost = {(outcome.image, outcome.truth) for outcome in why.all_lost()}
    best: dict[int, dict[int, float]] = {}
    for alarm in alarms:
        if (alarm.image, alarm.truth) in lost:
            scores = best.setdefault(alarm.image, {})
            scores[alarm.truth] = max(alarm.score, scores.get(alarm.truth, 0.0))
    return best


def _add_right(
    why: Why, image: int, rows: np.ndarray, scores: np.ndarray, gone: np.ndarray | None = None
) -> Prediction:
    """The image's detections without those `gone`, with the objects `rows` found at these scores.

    What matched these objects at a low score goes too: it would become a duplicate.
    """
    truth, prediction = why.truths[image], why.predictions[image]
    taken, _ = match(truth, prediction, why.iou)
    keep = ~np.isin(taken, rows)
    if gone is not None:
        keep[gone] = False
    return Prediction(
        np.concatenate((prediction.boxes[keep], truth.boxes[rows])),
        np.concatenate((prediction.scores[keep], scores)),
        np.concatenate((prediction.labels[keep], truth.labels[rows])),
    )


def _by_image(pairs: Sequence[tuple[int, int]]) -> dict[int, np.ndarray]:
    """(image, index) pairs -> image -> indices."""
    groups = defaultdict[int, list[int]](list)
    for image, index in pairs:
        groups[image].append(index)
    return {image: np.array(rows, np.int64) for image, rows in groups.items()}
