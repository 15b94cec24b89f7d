"""Average precision as in PASCAL VOC: VOC07's 11 points, and the area under the curve of later years."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rcnn.metrics.overlap import best_first, box_iou
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
    ap = np.zeros(num_classes)
    for label in range(num_classes):
        scores, right, total = [np.zeros(0)], [np.zeros(0, bool)], 0
        for truth, prediction in zip(truths, predictions, strict=True):
            of_class = truth.labels == label
            boxes, ignore = truth.boxes[of_class], truth.ignore[of_class]
            total += int((~ignore).sum())
            rows = np.flatnonzero(prediction.labels == label)
            if not len(rows):
                continue
            rows = rows[best_first(prediction.scores[rows])]
            hit, counted = _judge(box_iou(prediction.boxes[rows], boxes, offset), ignore, iou)
            scores.append(prediction.scores[rows][counted])
            right.append(hit[counted])
        order = best_first(np.concatenate(scores))
        ap[label] = average_precision(np.concatenate(right)[order], total, eleven_point)
    return ap


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


def _judge(overlap: np.ndarray, ignore: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections of an image are correct, and which count, both (D,) bool.

    Args:
        overlap: (D, G) IoUs of the detections, best score first, with the objects of their class.
        ignore: (G,) bool.
        iou: as for `voc_ap`.
    """
    right, counted = np.zeros(len(overlap), bool), np.ones(len(overlap), bool)
    if overlap.shape[1] == 0:
        return right, counted
    best = overlap.argmax(axis=1)
    touches = overlap.max(axis=1) > iou
    counted[touches & ignore[best]] = False
    matching = np.flatnonzero(touches & ~ignore[best])
    right[matching[np.unique(best[matching], return_index=True)[1]]] = True  # only the first on each object
    return right, counted
