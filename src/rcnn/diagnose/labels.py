"""Labels that a detector doubts, and the labels after a person has judged the doubts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rcnn.diagnose.why.why import find_alarms
from rcnn.metrics.types import Prediction, Truth

DOUBTS = {
    "missing_label": "a label is missing",
    "wrong_class": "the label is of another class",
    "bad_box": "the box of the label does not fit",
}
"""Kinds of false alarms of `why` that may be faults of the labels, and what they suggest; the likeliest first."""


class Doubt(NamedTuple):
    """A suggestion: a detection that would be right if a label were changed.

    Attributes:
        image: index of its image.
        detection: index into the image's predictions.
        kind: of `DOUBTS`.
        box: (4,) in pixels of the file.
        label: class of the detection.
        score: in [0, 1].
        truth: the object whose label is doubted; -1 where one is missing.
    """

    image: int
    detection: int
    kind: str
    box: np.ndarray
    label: int
    score: float
    truth: int


def find_doubts(
    truths: Sequence[Truth], predictions: Sequence[Prediction], *, iou: float = 0.5, score: float = 0.5
) -> list[Doubt]:
    """The labels of a data set that its detections doubt: missing ones first, and of each kind the surest first.

    Args:
        truths: one per image.
        predictions: one per image, with every score.
        iou: from this IoU on a box is right.
        score: detections below are left out.
    """
    alarms = [alarm for alarm in find_alarms(truths, predictions, iou, score) if alarm.kind in DOUBTS]
    kinds = list(DOUBTS)
    alarms.sort(key=lambda alarm: (kinds.index(alarm.kind), -alarm.score))
    return [
        Doubt(
            alarm.image,
            alarm.detection,
            alarm.kind,
            predictions[alarm.image].boxes[alarm.detection].astype(np.float64),
            alarm.label,
            alarm.score,
            alarm.truth,
        )
        for alarm in alarms
    ]


def corrected(truth: Truth, accepted: Iterable[Doubt], size: tuple[int, int]) -> Truth:
    """The labels of an image of this (height, width) after the doubts that were found right, in their order."""
    boxes, labels, ignore = truth.boxes.copy(), truth.labels.copy(), truth.ignore.copy()
    high = np.array([size[1], size[0]] * 2, np.float64)
    for doubt in accepted:
        box = np.clip(doubt.box, 0, high)
        if doubt.kind == "missing_label":
            boxes, labels = np.concatenate((boxes, box[None])), np.append(labels, doubt.label)
            ignore = np.append(ignore, False)
        elif doubt.kind == "wrong_class":
            labels[doubt.truth] = doubt.label
        else:
            boxes[doubt.truth] = box
    return Truth(boxes, labels, ignore)
