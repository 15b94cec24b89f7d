"""Precision, recall and F1 against the score threshold, and the best threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn.metrics.overlap import best_first, match
from rcnn.metrics.types import Prediction, Truth, class_counts

THRESHOLDS = np.arange(1001) / 1000
RECALLS = np.arange(101) / 100


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of each class; rows of classes without ground truth that counts are NaN.

    Attributes:
        thresholds: (S,) lowest scores at which a detection is kept: 0, 0.001 .. 1.
        precision: (K, S) correct detections / detections kept; 1 if none is kept.
        recall: (K, S) objects found / objects.
        f1: (K, S) harmonic mean of the two.
        recalls: (R,) 0, 0.01 .. 1.
        precision_at_recall: (K, R) best precision at this recall or a higher one, 0 if it is never reached.
        counts: (K,) number of objects that count.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    recalls: np.ndarray
    precision_at_recall: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True)
class Tally:
    """Correct and wrong detections of each class by score; the counts at a threshold are sums of bins.

    Bin s holds the scores from `THRESHOLDS[s]` up to the next one.

    Attributes:
        right: (K, S) int64 number of correct detections in each bin.
        wrong: (K, S) int64 number of wrong ones; detections on ignored objects are not counted.
        counts: (K,) number of objects that count.
    """

    right: np.ndarray
    wrong: np.ndarray
    counts: np.ndarray


def tally(truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, iou: float = 0.5) -> Tally:
    """Count the detections of N images at one IoU, matched as for `precision_recall`.

    Detections are matched in descending order of scores, so that a threshold does not change the matches above it.
    """
    scores, labels, right = _judged(truths, predictions, iou)
    bins = np.searchsorted(THRESHOLDS, scores, side="right") - 1
    counted = np.zeros((2, num_classes, len(THRESHOLDS)), np.int64)
    np.add.at(counted, (right.astype(np.int64), labels, bins), 1)
    return Tally(counted[1], counted[0], class_counts(truths, num_classes))


def precision_recall(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, iou: float = 0.5
) -> Curves:
    """Compute the curves of N images at one IoU, matched as in COCO; detections on ignored boxes are left out."""
    shape = (num_classes, len(THRESHOLDS))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    at_recall = np.full((num_classes, len(RECALLS)), np.nan)
    scores, labels, right = _judged(truths, predictions, iou)
    counts = class_counts(truths, num_classes)
    for label in np.flatnonzero(counts):
        of_class = labels == label
        order = best_first(scores[of_class])
        hits = np.cumsum(right[of_class][order])
        detections = np.searchsorted(-scores[of_class][order], -THRESHOLDS, side="right")  # number at each threshold
        true_positives = np.concatenate(([0], hits))[detections]
        precision[label] = np.where(detections > 0, true_positives / np.maximum(detections, 1), 1.0)
        recall[label] = true_positives / counts[label]
        precisions = hits / np.arange(1, len(hits) + 1)
        envelope = np.append(np.maximum.accumulate(precisions[::-1])[::-1], 0.0)  # the best precision from here on
        at_recall[label] = envelope[np.searchsorted(100 * hits, np.arange(101) * counts[label])]  # integers: exact
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    return Curves(THRESHOLDS, precision, recall, f1, RECALLS, at_recall, counts)


def best_threshold(curves: Curves, default: float = 0.5) -> float:
    """Return the score threshold with the largest mean F1 over classes; the middle one if several are equally good.

    Returns `default` if no class has ground truth or no detection is correct.
    """
    rows = curves.f1[curves.counts > 0]
    if not rows.any():
        return default
    mean = rows.mean(axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    run = best[: np.argmax(np.append(np.diff(best) > 1, True)) + 1]
    return float(curves.thresholds[run[len(run) // 2]])


def _judged(
    truths: Sequence[Truth], predictions: Sequence[Prediction], iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (D,) scores, labels and correctness of all detections that count."""
    scores, labels, right = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for truth, prediction in zip(truths, predictions, strict=True):
        matches, ignored = match(truth, prediction, iou)
        scores.append(prediction.scores[~ignored].astype(np.float64))
        labels.append(prediction.labels[~ignored])
        right.append(matches[~ignored] >= 0)
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(right)
