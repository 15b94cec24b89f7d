"""COCO's average precision and recall, computed from flat arrays with the numbers of COCO's own code.

T IoU thresholds, A ranges of areas, R recalls, M numbers of detections. Detections are matched greedily within an image
and class, the best first. The loop is over their ranks: the best detections of all images and classes are matched at
once, for all thresholds and ranges of areas, then the second best, and so on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rcnn.metrics.flat import Found, Objects, best_first_by, flat_predictions, flat_truths, pairs, starts
from rcnn.metrics.overlap import area
from rcnn.metrics.types import Prediction, Truth, class_counts

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""All, small, medium and large: both bounds are inclusive."""
AT_ONCE = 1 << 13
"""Number of detections that are matched at a time, which limits the memory."""


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """COCO's metrics, in [0, 1]; NaN if there is no ground truth that counts.

    Attributes:
        ap: mean over IoU 0.5:0.05:0.95 and classes.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of objects with a box area up to 32 x 32 px.
        ap_medium: up to 96 x 96 px.
        ap_large: above.
        ar1: recall of the best detection per class and image, mean over IoUs and classes.
        ar10: of the best 10.
        ar100: of the best `max_detections`.
        per_class_ap: (K,) mean over IoUs.
        per_class_ap50: (K,) at IoU 0.5.
        counts: (K,) int64, number of ground-truth boxes that are not ignored.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    per_class_ap: np.ndarray
    per_class_ap50: np.ndarray
    counts: np.ndarray


def coco_metrics(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, max_detections: int = 100
) -> CocoMetrics:
    """Compute COCO's box metrics of N images. Ignored boxes are COCO's crowds.

    Args:
        truths: ground truth of N images.
        predictions: detections in the same N images.
        num_classes: K.
        max_detections: number of best-scored detections that count per class and image.
    """
    counts = class_counts(truths, num_classes)
    tops = np.array([min(1, max_detections), min(10, max_detections), max_detections])
    precision, recall = precision_and_recall(truths, predictions, num_classes, tops)
    all_sizes = precision[..., 0]
    return CocoMetrics(
        ap=_mean(all_sizes),
        ap50=_mean(all_sizes[0]),
        ap75=_mean(all_sizes[5]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        ar1=_mean(recall[..., 0]),
        ar10=_mean(recall[..., 1]),
        ar100=_mean(recall[..., 2]),
        per_class_ap=np.array([_mean(all_sizes[:, :, label]) for label in range(num_classes)]),
        per_class_ap50=np.array([_mean(all_sizes[0, :, label]) for label in range(num_classes)]),
        counts=counts,
    )


def precision_and_recall(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, tops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, K, A) and recall (T, K, M) of all sizes; -1 for a class without ground truth that counts.

    Args:
        truths: ground truth of N images.
        predictions: detections in the same N images.
        num_classes: K.
        tops: (M,) ascending numbers of best detections that count per class and image. The last is for precision.
    """
    objects, found = flat_truths(truths, num_classes), flat_predictions(predictions, num_classes)
    found = found.select(best_first_by(found.keys, found.scores))
    ranks = _ranks(found.keys)
    found, ranks = found.select(ranks < tops[-1]), ranks[ranks < tops[-1]]
    beyond = _beyond(area(objects.boxes)) | objects.ignore[:, None]
    matched, counted = _match(found, objects, beyond)
    matched &= counted
    precision = np.full((len(IOUS), len(RECALLS), num_classes, len(AREAS)), -1.0)
    recall = np.full((len(IOUS), num_classes, len(tops)), -1.0)
    order = best_first_by(found.labels, found.scores)
    edges = np.searchsorted(found.labels[order], np.arange(num_classes + 1))
    for label in range(num_classes):
        rows = order[edges[label] : edges[label + 1]]
        totals = (~beyond[objects.labels == label]).sum(axis=0)
        right, counts = matched[:, :, rows], counted[:, :, rows]
        for size in np.flatnonzero(totals):
            precision[:, :, label, size] = _precision_at_recalls(right[size], counts[size], totals[size])
        if totals[0]:
            first = ranks[rows] < tops[:, None, None]
            recall[:, label] = ((right[0] & first).sum(axis=2) / totals[0]).T
    return precision, recall


class _Candidates(NamedTuple):
    """Pairs that reach the lowest of `IOUS`, ordered by detection.

    Attributes:
        found: (P,) index of the detection.
        objects: (P,) index of the object.
        overlap: (P,) float64, their overlap.
    """

    found: np.ndarray
    objects: np.ndarray
    overlap: np.ndarray


def _candidates(found: Found, objects: Objects) -> _Candidates:
    parts = [_Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, places in pairs(found, objects):
        overlap = _overlap(found.boxes[rows].astype(np.float64), objects.boxes[places], objects.ignore[places])
        near = overlap >= IOUS[0]
        parts.append(_Candidates(rows[near], places[near], overlap[near]))
    return _Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _overlap(a: np.ndarray, b: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return (P,) the IoU of boxes (P, 4) and (P, 4), or the share of `a` inside `b` where `b` is a crowd (P,).

    COCO's boxes are xywh. The sums are in the order of its code, so that the results have the same bits.
    """
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    inside = np.minimum(a[:, :2] + size_a, b[:, :2] + size_b) - np.maximum(a[:, :2], b[:, :2])
    touches = (inside > 0).all(axis=1)
    shared, area_a = inside[:, 0] * inside[:, 1], size_a[:, 0] * size_a[:, 1]
    union = np.where(crowd, area_a, area_a + size_b[:, 0] * size_b[:, 1] - shared)
    return np.where(touches, shared, 0) / np.where(touches, union, 1)


def _match(found: Found, objects: Objects, beyond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections are matched to an object, and which count, both (A, T, D) bool.

    A detection takes the free object of largest overlap, one that counts if there is one, else one that does not; then
    the detection does not count either. Several detections may take the same crowd.

    Args:
        found: detections, ordered by image and class, best first.
        objects: ground truth.
        beyond: (G, A) bool, objects that do not count in a range of areas: crowds, and those of other sizes.
    """
    shape = len(AREAS), len(IOUS)
    matched = np.zeros((*shape, len(found.labels)), bool)
    counted = np.repeat(~_beyond(area(found.boxes.astype(np.float64))).T[:, None], len(IOUS), axis=1)
    taken = np.zeros((*shape, len(objects.labels)), bool)
    for rows, places, overlap in _turns(_candidates(found, objects), found.keys):
        begins = starts(rows)
        number = np.arange(len(rows), dtype=np.int32)
        free = ~taken[:, :, places] | objects.ignore[places]
        counts = ~beyond[places].T[:, None]
        # The largest code is that of the best pair: those that count come first, then the later pair.
        codes = np.where(free & (overlap >= IOUS[:, None]), number + len(rows) * counts.astype(np.int32), -1)
        codes = np.maximum.reduceat(codes, begins, axis=2)
        sizes, thresholds, which = np.nonzero(codes >= 0)
        chosen = codes[sizes, thresholds, which] % len(rows)
        row, place = rows[chosen], places[chosen]
        taken[sizes, thresholds, place] = True
        matched[sizes, thresholds, row] = True
        counted[sizes, thresholds, row] = ~beyond[place, sizes]
    return matched, counted


def _turns(candidates: _Candidates, keys: np.ndarray) -> Iterator[_Candidates]:
    """Yield the pairs in the order of matching. Detections of one image and class are yielded in turn, best first.

    The pairs of a detection are yielded together, in ascending order of overlaps. Equal ones keep their order: COCO's
    code takes the last of them.

    Args:
        candidates: all pairs.
        keys: (D,) image and class of each detection, in ascending order.
    """
    rows = candidates.found
    begins = starts(rows)
    turns = np.repeat(_ranks(keys[rows[begins]]), np.diff(begins, append=len(rows)))
    order = np.lexsort((candidates.overlap, rows, turns))
    candidates = _Candidates(*(column[order] for column in candidates))
    begins = starts(candidates.found)
    edges = np.append(begins, len(order))
    turns = turns[order][begins]
    for low, high in pairwise([*starts(turns).tolist(), len(turns)]):
        for begin in range(low, high, AT_ONCE):
            part = slice(edges[begin], edges[min(begin + AT_ONCE, high)])
            yield _Candidates(*(column[part] for column in candidates))


def _precision_at_recalls(right: np.ndarray, counted: np.ndarray, total: int) -> np.ndarray:
    """Return (T, R), the best precision at each of `RECALLS` or a higher recall, 0 if it is not reached.

    Args:
        right: (T, D) bool, correct detections of a class, best first.
        counted: (T, D) bool, those that count.
        total: number of objects.
    """
    rows = []
    for hit, counts in zip(right, counted, strict=True):
        hits = np.arange(1, hit.sum() + 1)
        precision = hits / np.cumsum(counts)[hit]
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        rows.append(envelope[np.searchsorted(hits / total, RECALLS)])
    return np.array(rows)


def _beyond(areas: np.ndarray) -> np.ndarray:
    """Return (B, A) bool: the areas (B,) that are outside each of `AREAS`."""
    return (areas[:, None] < AREAS[:, 0]) | (areas[:, None] > AREAS[:, 1])


def _ranks(groups: np.ndarray) -> np.ndarray:
    """Return (D,) int64, the position of each element of (D,) in its run of equal values."""
    begins = starts(groups)
    return np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))


def _mean(values: np.ndarray) -> float:
    """Return the mean without the -1 of classes without ground truth."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else float("nan")
