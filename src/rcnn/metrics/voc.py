"""Average precision as in PASCAL VOC: VOC07's 11 points, and the area under the curve of later years."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from rcnn.metrics.flat import Found, Objects, best_first_by, flat_predictions, flat_truths, pairs, starts
from rcnn.metrics.overlap import pair_iou
from rcnn.metrics.types import Prediction, Truth

Rule = Literal["area", "11-point"]
"""The area under the monotone envelope of precision over recall, or the mean of the precisions at 11 recalls."""


def voc_ap(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    num_classes: int,
    iou: float = 0.5,
    eleven_point: bool = False,
    offset: float = 0.0,
) -> np.ndarray:
    """Compute the AP of each class over N images, as the VOC devkit does.

    A detection is compared only with the object of its class of largest IoU, and is correct if that is above `iou`
    (as in py-faster-rcnn; the devkit's MATLAB code also accepts an IoU that is equal). If that object is ignored
    (difficult), the detection is neither correct nor wrong; if the object is already taken, it is wrong.

    Args:
        truths: ground truth of N images.
        predictions: detections in the same N images.
        num_classes: K.
        iou: a match needs an IoU strictly above this.
        eleven_point: use VOC07's measure; otherwise the area under the monotone envelope.
        offset: 1 for boxes with inclusive corners, as in the devkit's files. Continuous boxes have the same IoU
            with 0.

    Returns:
        (K,) float64 in [0, 1], NaN if the class has no object that counts.
    """
    objects, found = flat_truths(truths, num_classes), flat_predictions(predictions, num_classes)
    order = best_first_by(found.labels, found.scores)
    right, counted = _judge(found, objects, order, iou, offset)
    edges = np.searchsorted(found.labels[order], np.arange(num_classes + 1))
    right, counted = right[order], counted[order]
    parts = (slice(low, high) for low, high in pairwise(edges.tolist()))
    totals = np.bincount(objects.labels[~objects.ignore], minlength=num_classes).tolist()
    return np.array(
        [
            average_precision(right[part][counted[part]], total, eleven_point)
            for part, total in zip(parts, totals, strict=True)
        ]
    )


def average_precision(right: np.ndarray, total: int, eleven_point: bool = False) -> float:
    """Compute the AP of one class.

    The 11 points are exactly the recalls k / 10, compared as integers, since 0.1 * 6 is above 3 / 5 in floats.

    Args:
        right: (D,) bool, whether each counted detection is correct, best score first.
        total: number of objects.
        eleven_point: as for `voc_ap`.
    """
    if total == 0:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    if eleven_point:
        return sum(precision[10 * hits >= k * total].max(initial=0.0) for k in range(11)) / 11
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.asarray(right, bool)].sum() / total)


def _judge(
    found: Found, objects: Objects, order: np.ndarray, iou: float, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections are correct, and which count, both (D,) bool.

    Args:
        found: detections.
        objects: ground truth.
        order: (D,) index of the detections, those of a class in descending order of their scores.
        iou: as for `voc_ap`.
        offset: as for `voc_ap`.
    """
    best = np.full(len(found.labels), -1)  # the object of largest IoU, if that is above `iou`
    for rows, places in pairs(found, objects):
        overlap = pair_iou(found.boxes[rows], objects.boxes[places], offset)
        begins = starts(rows)
        largest = np.maximum.reduceat(overlap, begins)
        tops = np.flatnonzero(overlap == np.repeat(largest, np.diff(begins, append=len(rows))))
        tops = tops[starts(rows[tops])]  # the first object of several with the same IoU
        touches = largest > iou
        best[rows[tops[touches]]] = places[tops[touches]]
    counted = ~np.append(objects.ignore, False)[best]
    matching = order[(counted & (best >= 0))[order]]
    right = np.zeros(len(best), bool)
    right[matching[np.unique(best[matching], return_index=True)[1]]] = True  # only the first on each object
    return right, counted
