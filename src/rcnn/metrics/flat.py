"""The boxes of all images in flat arrays, and the pairs of a detection and an object that may match.

The metrics of a whole data set read these arrays, since a loop over images and classes, or a Python object for every
box, takes most of the time for thousands of images. D detections, G objects and P pairs of all N images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rcnn.metrics.types import Prediction, Truth

PAIRS = 1 << 18
"""Number of pairs that are compared at a time. More need more memory, and are no faster."""


class Objects(NamedTuple):
    """The ground truth of all images, ordered by image and class; objects of one class keep their order.

    Attributes:
        boxes: (G, 4) float64.
        labels: (G,) int64.
        ignore: (G,) bool.
        keys: (G,) int64, as `keys_of`.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    keys: np.ndarray


class Found(NamedTuple):
    """The detections of all images, in the order of the images.

    Attributes:
        boxes: (D, 4) float, as given.
        scores: (D,) float, as given.
        labels: (D,) int64.
        keys: (D,) int64, as `keys_of`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    keys: np.ndarray

    def select(self, rows: np.ndarray) -> "Found":
        """Return the detections of an index or a mask."""
        return Found(*(field[rows] for field in self))


def flat_truths(truths: Sequence[Truth], num_classes: int) -> Objects:
    """Return the ground truth of N images as flat arrays."""
    boxes = _join([truth.boxes.reshape(-1, 4) for truth in truths], (0, 4), np.float64)
    labels = _join([truth.labels for truth in truths], (0,), np.int64)
    ignore = _join([truth.ignore for truth in truths], (0,), np.bool_)
    keys = keys_of([len(truth.labels) for truth in truths], labels, num_classes)
    order = np.argsort(keys, kind="stable")
    return Objects(boxes[order], labels[order], ignore[order], keys[order])


def flat_predictions(predictions: Sequence[Prediction], num_classes: int) -> Found:
    """Return the detections of N images as flat arrays."""
    boxes = _join([prediction.boxes.reshape(-1, 4) for prediction in predictions], (0, 4))
    scores = _join([prediction.scores for prediction in predictions], (0,))
    labels = _join([prediction.labels for prediction in predictions], (0,), np.int64)
    return Found(boxes, scores, labels, keys_of([len(one.labels) for one in predictions], labels, num_classes))


def keys_of(counts: Sequence[int], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (B,) int64, image * K + label, of the labels (B,) of images with so many boxes each."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts) * num_classes + labels


def best_first_by(group: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return (D,) indices, ordered by the group (D,), then in descending order of the scores; ties keep their order."""
    return np.lexsort((-scores, group))


def pairs(found: Found, objects: Objects) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of detections and objects of the same image and class, about `PAIRS` at a time.

    All pairs of a detection are yielded together, in the order of the detections and then of the objects.

    Yields:
        (P,) indices into the detections, and (P,) indices into the objects.
    """
    first = np.searchsorted(objects.keys, found.keys)
    counts = np.searchsorted(objects.keys, found.keys, side="right") - first
    rows = np.flatnonzero(counts)
    first, counts = first[rows], counts[rows]
    ends = np.cumsum(counts)
    start, done = 0, 0
    while start < len(rows):
        stop = max(start + 1, int(np.searchsorted(ends, done + PAIRS, side="right")))
        some = counts[start:stop]
        before = ends[start:stop] - some - done  # number of pairs here of earlier detections
        places = np.arange(ends[stop - 1] - done) + np.repeat(first[start:stop] - before, some)
        yield np.repeat(rows[start:stop], some), places
        start, done = stop, int(ends[stop - 1])


def starts(groups: np.ndarray) -> np.ndarray:
    """Return the indices at which the runs of equal values of (P,) begin."""
    return np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])


def _join(parts: list[np.ndarray], none: tuple[int, ...], dtype: type[np.generic] | None = None) -> np.ndarray:
    """Concatenate the arrays of all images. `none` is the shape for no image; `dtype` None keeps the arrays' own."""
    return np.concatenate(parts or [np.zeros(none)], dtype=dtype, casting="unsafe")
