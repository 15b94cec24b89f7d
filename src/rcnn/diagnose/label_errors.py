"""Label errors that a detector suspects, and the labels after some of its suggestions have been accepted."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rcnn.diagnose.why.outcomes import find_alarms
from rcnn.metrics.types import Prediction, Truth

SUGGESTIONS = {
    "missing_label": "a label is missing",
    "wrong_class": "the label is of another class",
    "bad_box": "the box of the label does not fit",
}
"""Kinds of false alarms that may be label errors -> the error that they suggest, most likely first."""


class Suggestion(NamedTuple):
    """A detection that would be correct if a label were changed.

    Attributes:
        image: index of its image.
        detection: index into the image's predictions.
        kind: a key of `SUGGESTIONS`.
        box: (4,) in pixels of the file.
        label: class of the detection.
        score: in [0, 1].
        truth: the object whose label is suspected; -1 if one is missing.
    """

    image: int
    detection: int
    kind: str
    box: np.ndarray
    label: int
    score: float
    truth: int


def find_label_errors(
    truths: Sequence[Truth], predictions: Sequence[Prediction], *, iou: float = 0.5, score: float = 0.5
) -> list[Suggestion]:
    """Return suggested changes of labels: missing ones first, and within each kind the highest scores first.

    Args:
        truths: one per image.
        predictions: one per image, with every score.
        iou: lowest IoU of a correct box.
        score: detections below are left out.
    """
    kinds = list(SUGGESTIONS)
    alarms = [alarm for alarm in find_alarms(truths, predictions, iou, score) if alarm.kind in kinds]
    alarms.sort(key=lambda alarm: (kinds.index(alarm.kind), -alarm.score))
    suggestions = []
    for image, detection, label, _, kind, certainty, truth, _ in alarms:
        box = predictions[image].boxes[detection].astype(np.float64)
        suggestions.append(Suggestion(image, detection, kind, box, label, certainty, truth))
    return suggestions


def apply_suggestions(truth: Truth, accepted: Iterable[Suggestion], size: tuple[int, int]) -> Truth:
    """Return the labels of an image of this (height, width) after the accepted suggestions, applied in their order."""
    boxes, labels, ignore = truth.boxes.copy(), truth.labels.copy(), truth.ignore.copy()
    for suggestion in accepted:
        box = np.clip(suggestion.box, 0, np.array([size[1], size[0]] * 2, np.float64))
        if suggestion.kind == "missing_label":
            boxes, labels = np.concatenate((boxes, box[None])), np.append(labels, suggestion.label)
            ignore = np.append(ignore, False)
        elif suggestion.kind == "wrong_class":
            labels[suggestion.truth] = suggestion.label
        else:
            boxes[suggestion.truth] = box
    return Truth(boxes, labels, ignore)
