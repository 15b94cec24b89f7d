"""The input of every metric: one `Truth` and one `Prediction` per image, in numpy.

G ground-truth boxes, P predictions, K classes, N images. Boxes are continuous xyxy, for metrics in pixels of the
original image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """Ground truth of one image.

    Attributes:
        boxes: (G, 4) float.
        labels: (G,) int, 0..K-1.
        ignore: (G,) bool, crowd or difficult: neither a detection nor a miss of the box counts.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray


class Prediction(NamedTuple):
    """Detections of one image, in any order.

    Attributes:
        boxes: (P, 4) float.
        scores: (P,) float.
        labels: (P,) int, 0..K-1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def class_counts(truths: Sequence[Truth], num_classes: int) -> np.ndarray:
    """Return (K,) int64: the number of ground-truth boxes per class that are not ignored."""
    labels = [truth.labels[~truth.ignore] for truth in truths]
    return np.bincount(np.concatenate(labels or [[]]).astype(np.int64), minlength=num_classes)
