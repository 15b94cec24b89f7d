"""What a choice of pictures asks for, and the columns of objects and detections that answer it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rcnn.diagnose.why.outcomes import ALARMS
from rcnn.metrics.overlap import area
from rcnn.metrics.proposal_recall import SIZES

KINDS = {kind: text for kind, text in ALARMS.items() if kind != "missing_label"}
MISTAKES = {"any": "any mistake", "lost": "lost objects", "wrong": "wrong detections", **KINDS, "none": "no mistake"}
"""Values of the filter by mistakes -> what they mean."""


class Choice(NamedTuple):
    """What is asked for; None is everything.

    Attributes:
        list: of the data set, or `DROPPED`.
        label: of an object or a detection.
        size: of `SIZES`, likewise.
        score: from this one on a detection counts.
        mistake: of `MISTAKES`.
    """

    list: str | None = None
    label: int | None = None
    size: str | None = None
    score: float = 0.5
    mistake: str | None = None


class Rows(NamedTuple):
    """Objects or detections of many pictures, n of them.

    Attributes:
        picture: (n,) index of the picture.
        label: (n,) class.
        area: (n,) px of the file.
        score: (n,) of the detection; of an object, of the detection that takes it, or -1.
        mark: (n,) of a detection its place in `KINDS` plus 1, 0 for a right one, -1 for one that does not count. Of an
            object, 0, and -1 for one that does not count.
    """

    picture: np.ndarray
    label: np.ndarray
    area: np.ndarray
    score: np.ndarray
    mark: np.ndarray

    def chosen(self, choice: Choice) -> np.ndarray:
        """(n,) bool: of this class and size."""
        low, high = SIZES[choice.size] if choice.size else (0.0, np.inf)
        of_size = (self.area >= low) & (self.area < high)
        return of_size if choice.label is None else of_size & (self.label == choice.label)


def rows_of(place: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, marks: np.ndarray) -> Rows:
    """The objects or detections of one picture."""
    where = np.full(len(labels), place)
    return Rows(where, labels, area(boxes.astype(np.float64)), scores.astype(np.float32), marks)


def joined(parts: Iterable[Rows]) -> Rows:
    """Those of several pictures."""
    empty = np.zeros(0, np.int64)
    none = Rows(empty, empty, np.zeros(0), np.zeros(0, np.float32), empty)
    return Rows(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))


def among(number: int, *places: np.ndarray) -> np.ndarray:
    """(number,) bool: the pictures that are among the places."""
    there = np.zeros(number, bool)
    for those in places:
        there[those] = True
    return there
