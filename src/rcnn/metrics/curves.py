"""Precision, recall and F1 against the score threshold, and the threshold that serves best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn.metrics.overlap import best_first, match
from rcnn.metrics.types import Prediction, Truth, class_counts

THRESHOLDS = np.arange(1001) / 1000
RECALLS = np.arange(101) / 100


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of each class; rows of classes without a truth that counts are NaN.

    Attributes:
        thresholds: (S,) scores from which a detection is kept: 0, 0.001 .. 1.
        precision: (K, S) right detections / detections kept; 1 where none is kept.
        recall: (K, S) truths found / truths.
        f1: (K, S) harmonic mean of the two.
        recalls: (R,) 0, 0.01 .. 1.
        precision_at_recall: (K, R) best precision at this recall or a higher one, 0 where it is never reached.
        counts: (K,) truths that count.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    recalls: np.ndarray
    precision_at_recall: np.ndarray
    counts: np.ndarray


def precision_recall(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, iou: float = 0.5
) -> Curves:
    """Curves of N images at one IoU, matched as COCO does; detections spent on ignored truths are left out."""
    shape = (num_classes, len(THRESHOLDS))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    at_recall = np.full((num_classes, len(RECALLS)), np.nan)
    # Scores, labels and rightness of all detections that count.
    scores, labels, right = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for truth, prediction in zip(truths, predictions, strict=True):
        matches, ignored = match(truth, prediction, iou)
        scores.append(prediction.scores[~ignored].astype(np.float64))
        labels.append(prediction.labels[~ignored])
        right.append(matches[~ignored] >= 0)
    scores, labels, right = np.concatenate(scores), np.concatenate(labels), np.concatenate(right)
    counts = class_counts(truths, num_classes)
    for label in np.flatnonzero(counts):
        mine = labels == label
        order = best_first(scores[mine])
        hits = np.cumsum(right[mine][order])
        kept = np.searchsorted(-scores[mine][order], -THRESHOLDS, side="right")
        true_positives = np.concatenate(([0], hits))[kept]
        precision[label] = np.where(kept > 0, true_positives / np.maximum(kept, 1), 1.0)
        recall[label] = true_positives / counts[label]
        at_recall[label] = _envelope(hits, counts[label])
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    return Curves(THRESHOLDS, precision, recall, f1, RECALLS, at_recall, counts)


def best_threshold(curves: Curves, default: float = 0.5) -> float:
    """The score threshold of the largest F1, averaged over classes; the middle one where several are equally good.

    Returns `default` where no class has a truth, or nothing right was found.
    """
    rows = curves.f1[curves.counts > 0]
    if not rows.any():
        return default
    mean = rows.mean(axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    run = best[: np.argmax(np.append(np.diff(best) > 1, True)) + 1]
    return float(curves.thresholds[run[len(run) // 2]])


def _envelope(hits: np.ndarray, total: int) -> np.ndarray:
    """(D,) running true positives, best first -> (R,) best precision at each recall or beyond."""
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = np.searchsorted(100 * hits, np.arange(101) * total, side="left")  # integers: no float decides a tie
    return best[reached]
