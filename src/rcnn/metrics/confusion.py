"""Confusion matrix of detections: ground-truth classes against predicted ones, with background as another class."""

from collections.abc import Sequence

import numpy as np

from rcnn.metrics.overlap import box_iou, greedy, match
from rcnn.metrics.types import Prediction, Truth


def confusion_matrix(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    num_classes: int,
    iou: float = 0.5,
    score: float = 0.5,
) -> np.ndarray:
    """Return (K + 1, K + 1) int64 counts over N images: rows are true classes, columns predicted ones, K is background.

    Predictions of at least `score` are matched within their class first, so that the diagonal holds the true positives
    of the curves; the others are matched across classes. Row K counts predictions on background, column K missed
    objects. Ignored ground truth, and predictions matched to it, are left out.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for truth, prediction in zip(truths, predictions, strict=True):
        confident = prediction.scores >= score
        shown = Prediction(*(field[confident] for field in prediction))
        matches, ignored = match(truth, shown, iou)
        taken = np.isin(np.arange(len(truth.labels)), matches)
        free = (matches < 0)[:, None] & ~ignored[:, None] & ~taken & ~truth.ignore
        across = greedy(box_iou(shown.boxes, truth.boxes) * free, shown.scores, iou)
        matches = np.where(matches < 0, across, matches)
        padded = np.append(truth.labels, num_classes).astype(np.int64)  # index -1 is background
        np.add.at(matrix, (padded[matches[~ignored]], shown.labels[~ignored]), 1)
        missed = ~np.isin(np.arange(len(truth.labels)), matches) & ~truth.ignore
        matrix[:, num_classes] += np.bincount(padded[:-1][missed], minlength=num_classes + 1)
    return matrix
