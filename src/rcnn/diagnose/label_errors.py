"""Labels that detections contradict, ranked by how likely they are wrong, and the labels after accepted suggestions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rcnn.metrics.curves import best_threshold, precision_recall
from rcnn.metrics.overlap import box_iou, match, share_inside
from rcnn.metrics.types import Prediction, Truth

KINDS = {
    "missing_label": "objects without a label",
    "wrong_class": "labels of another class",
    "bad_box": "boxes that do not fit",
    "spurious_label": "labels without an object",
}
"""Kind of a suggestion -> what may be wrong."""

QUESTIONS = {
    "missing_label": "{new} without a label?",
    "wrong_class": "{new} instead of {old}?",
    "bad_box": "another box for {old}?",
    "spurious_label": "no {old} here?",
}
"""Kind of a suggestion -> the question to ask, with the suggested class and that of the label."""

FITS, NEAR = 0.5, 0.3
"""IoU from which a detection fits a label, and below which the two are about different objects."""

MIN_RIGHT = 20
"""Number of correct detections of a class from which its scores are judged by themselves."""


class Suggestion(NamedTuple):
    """A change of the labels that would agree with the detections.

    Attributes:
        image: index of its image.
        detection: index into the image's predictions; -1 for a spurious label.
        kind: a key of `KINDS`.
        box: (4,) in pixels of the file: that of the detection, or of a spurious label.
        label: class of the box.
        score: how likely the label is wrong, in [0, 1]; comparable between kinds.
        truth: index into the image's labels; -1 if one is missing.
    """

    image: int
    detection: int
    kind: str
    box: np.ndarray
    label: int
    score: float
    truth: int


def find_suggestions(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, score: float | None = None
) -> list[Suggestion]:
    """Return suggested changes of labels, the most likely first. Each label and each detection is in at most one.

    A label that a detection of its class fits is never doubted. The others may have

    - the wrong class, if a detection of another class fits and no label of that class does;
    - a box that does not fit, if a detection of its class has an IoU between `NEAR` and `FITS` with it;
    - no object, otherwise.

    A label is missing at a detection that has an IoU below `NEAR` with every label.

    Args:
        truths: one per image.
        predictions: one per image, with low scores too, by a detector that did not learn these labels.
        num_classes: number of classes, K.
        score: detections with lower scores don't count. None: the threshold of the best mean F1.
    """
    curves = precision_recall(truths, predictions, num_classes)
    threshold = best_threshold(curves) if score is None else score
    certainty = _Certainty(truths, predictions, num_classes, threshold)
    found = [
        suggestion
        for image, (truth, prediction) in enumerate(zip(truths, predictions, strict=True))
        for suggestion in _of_image(image, truth, prediction, threshold, certainty)
    ]
    return sorted(found, key=lambda suggestion: -suggestion.score)


class _Certainty:
    """How certain a score is: its rank among the scores of the correct detections of the class."""

    def __init__(
        self, truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, threshold: float
    ) -> None:
        scores, labels = [np.zeros(0)], [np.zeros(0, np.int64)]
        total = np.zeros(num_classes)
        for truth, prediction in zip(truths, predictions, strict=True):
            matched, _ = match(truth, prediction, FITS)
            right = (matched >= 0) & (prediction.scores >= threshold)
            scores.append(prediction.scores[right].astype(np.float64))
            labels.append(prediction.labels[right])
            total += np.bincount(truth.labels[~truth.ignore], minlength=num_classes)
        every, label = np.concatenate(scores), np.concatenate(labels)
        self._right = [
            np.sort(every[label == k] if (label == k).sum() >= MIN_RIGHT else every) for k in range(num_classes)
        ]
        found = np.bincount(label, minlength=num_classes)
        self.recall = (found / np.maximum(total, 1)).tolist()

    def __call__(self, label: int, score: float) -> float:
        right = self._right[label]
        return (int(np.searchsorted(right, score, side="right")) + 0.5) / (len(right) + 1)


def _of_image(
    image: int, truth: Truth, prediction: Prediction, threshold: float, certainty: _Certainty
) -> list[Suggestion]:
    """Return the suggestions for an image."""
    overlap = box_iou(prediction.boxes, truth.boxes)  # (P, G)
    same, fits = prediction.labels[:, None] == truth.labels, overlap >= FITS
    shown = prediction.scores >= np.float32(threshold)
    found_labels = (shown[:, None] & same & fits).any(axis=0)
    doubted = ~found_labels & ~truth.ignore
    free = shown & ~(same & fits).any(axis=1)
    scores = prediction.scores[:, None] * overlap
    own = (prediction.scores[:, None] * (same & fits)).max(axis=0, initial=0)
    suggestions: list[Suggestion] = []

    def suggest(kind: str, detection: int, about: int, score: float) -> None:
        box, label = (truth.boxes, truth.labels) if detection < 0 else (prediction.boxes, prediction.labels)
        row = about if detection < 0 else detection
        suggestions.append(
            Suggestion(image, detection, kind, box[row].astype(np.float64), int(label[row]), score, about)
        )

    for kind, allowed in (("wrong_class", ~same & fits), ("bad_box", same & ~fits & (overlap >= NEAR))):
        for detection, about in _best_pairs(scores * allowed, free, doubted):
            certain = certainty(int(prediction.labels[detection]), float(prediction.scores[detection]))
            certain = certain if kind == "wrong_class" else 0.5 + 0.5 * certain  # few other things cause it
            suggest(kind, detection, about, certain * (1 - float(own[about] / prediction.scores[detection])))
    inside = share_inside(prediction.boxes, truth.boxes).max(axis=1, initial=0)
    for detection in np.flatnonzero(free & (overlap.max(axis=1, initial=0) < NEAR)).tolist():
        certain = certainty(int(prediction.labels[detection]), float(prediction.scores[detection]))
        suggest("missing_label", detection, -1, certain * (1 - float(inside[detection])))
    support = (prediction.scores[:, None] * (overlap >= NEAR)).max(axis=0, initial=0)
    shared = share_inside(truth.boxes, truth.boxes) * ~np.eye(len(truth.boxes), dtype=bool)
    crowded = shared.max(axis=1, initial=0)  # an object behind others is often missed
    for about in np.flatnonzero(doubted).tolist():
        unsupported = max(1 - float(support[about]) / threshold, 0) if threshold else 0.0
        found = certainty.recall[int(truth.labels[about])] * (1 - float(crowded[about]))
        suggest("spurious_label", -1, about, found * unsupported)
    return suggestions


def _best_pairs(scores: np.ndarray, free: np.ndarray, doubted: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of a detection and a label in descending order of their scores (P, G), which are above 0.

    Each is in one pair at most: it no longer counts as `free` (P,) or `doubted` (G,) then.
    """
    rows, columns = np.unravel_index(np.argsort(-scores, axis=None, kind="stable"), scores.shape)
    for detection, about in zip(rows.tolist(), columns.tolist(), strict=True):
        if scores[detection, about] > 0 and free[detection] and doubted[about]:
            free[detection] = doubted[about] = False
            yield detection, about


def question(suggestion: Suggestion, truth: Truth, names: Sequence[str]) -> str:
    """Return the question that a suggestion asks about the labels of its image."""
    old = names[int(truth.labels[suggestion.truth])] if suggestion.truth >= 0 else ""
    text = QUESTIONS[suggestion.kind].format(new=names[suggestion.label], old=old)
    return text[:1].upper() + text[1:]


def apply_suggestions(truth: Truth, accepted: Iterable[Suggestion], size: tuple[int, int]) -> Truth:
    """Return the labels of an image of this (height, width) after the accepted suggestions."""
    boxes, labels, ignore = truth.boxes.copy(), truth.labels.copy(), truth.ignore.copy()
    spurious: list[int] = []
    for suggestion in accepted:
        box = np.clip(suggestion.box, 0, np.array([size[1], size[0]] * 2, np.float64))
        if suggestion.kind == "missing_label":
            boxes, labels = np.concatenate((boxes, box[None])), np.append(labels, suggestion.label)
            ignore = np.append(ignore, False)
        elif suggestion.kind == "wrong_class":
            labels[suggestion.truth] = suggestion.label
        elif suggestion.kind == "bad_box":
            boxes[suggestion.truth] = box
        else:
            spurious.append(suggestion.truth)
    return Truth(*(np.delete(column, spurious, axis=0) for column in (boxes, labels, ignore)))
