"""The answer of `why`: an outcome for every object, a kind for every false alarm, and their names."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rcnn.config import RPN, RoI
from rcnn.metrics.overlap import area, match
from rcnn.metrics.proposal_recall import SIZES
from rcnn.metrics.types import Prediction, Truth

LEAST_ANCHOR = 0.3
"""Below this IoU with every anchor, none fits the object."""

TOUCHES = 0.1
"""Below this IoU with every object, a false alarm concerns none."""

FOUND = "found"

LOSSES = {
    "no_anchor": f"no anchor with IoU >= {LEAST_ANCHOR}",
    "not_in_top_k": "no box of the RPN's top K fits",
    "no_proposal": "lost in the RPN's NMS or top N",
    "no_box": "no refined box fits",
    "other_class": "taken for another class",
    "low_score": "right, but below the threshold",
    "suppressed": "right, but suppressed, cut or shared",
}
"""Places where an object is lost, in the order in which they are asked for."""

ALARMS = {
    "duplicate": "duplicate of a found object",
    "bad_box": "right class, box too far off",
    "wrong_class": "object of another class",
    "background": "nothing of its class there",
    "missing_label": "probably a missing label",
}
"""Kinds of false alarms."""


class Outcome(NamedTuple):
    """One object that the metric counts.

    Attributes:
        image: index into the data set's records.
        truth: index into the image's boxes.
        label: its class.
        size: small, medium or large, as COCO says.
        where: one of `LOSSES`, or `found`.
        detail: what more is known: of `not_in_top_k` `cut` (a box outside the top K fits) or `missed` (none does); of
            `no_proposal` and `suppressed` `nms`, `cut` (beyond the number kept), `small`, `score`, or `shared` (the box
            that fits was matched to another object).
        taken_for: the class that it was taken for, or -1.
        score: of its detection, or the best that its class got in a box that fits; NaN where there is none.
    """

    image: int
    truth: int
    label: int
    size: str
    where: str
    detail: str = ""
    taken_for: int = -1
    score: float = float("nan")


class Alarm(NamedTuple):
    """One detection over the threshold that the metric counts as wrong.

    Attributes:
        image: index into the data set's records.
        detection: index into the image's predictions.
        label: its class.
        size: small, medium or large, as COCO says, by its own area.
        kind: one of `ALARMS`.
        score: in [0, 1].
        truth: the object that the kind refers to; -1 for none.
        iou: IoU with the object that it overlaps most, whatever its class.
    """

    image: int
    detection: int
    label: int
    size: str
    kind: str
    score: float
    truth: int
    iou: float


@dataclass(frozen=True, slots=True)
class Why:
    """The answer for a data set.

    Attributes:
        names: class names.
        iou: least IoU of a right box.
        score: least score of a detection that is shown.
        predicts_classes: as `Settings.predicts_classes`. If False, `predictions` are proposals and there are no alarms.
        truths: one per image.
        predictions: one per image, with every score.
        outcomes: one per object that counts.
        alarms: one per false alarm.
    """

    names: tuple[str, ...]
    iou: float
    score: float
    predicts_classes: bool
    truths: tuple[Truth, ...]
    predictions: tuple[Prediction, ...]
    outcomes: tuple[Outcome, ...]
    alarms: tuple[Alarm, ...]

    def lost(self, where: str) -> list[Outcome]:
        """The objects lost at one of `LOSSES` (or `found`)."""
        return [outcome for outcome in self.outcomes if outcome.where == where]

    def all_lost(self) -> list[Outcome]:
        """The objects that are not found."""
        return [outcome for outcome in self.outcomes if outcome.where != FOUND]

    def false_alarms(self, kind: str) -> list[Alarm]:
        """The false alarms of one of `ALARMS`."""
        return [alarm for alarm in self.alarms if alarm.kind == kind]


class Rules(NamedTuple):
    """What decides: IoU of a right box, least score of a shown one, and the settings of both stages."""

    iou: float
    score: float
    rpn: RPN
    roi: RoI


def matched(truth: Truth, prediction: Prediction, iou: float, score: float) -> tuple[np.ndarray, np.ndarray]:
    """The metric's matches of one image from a score on: objects (n,) and their detections (n,)."""
    shown = np.flatnonzero(prediction.scores >= np.float32(score))
    taken, _ = match(truth, Prediction(*(field[shown] for field in prediction)), iou)
    return taken[taken >= 0], shown[taken >= 0]


def size_of(box: np.ndarray) -> str:
    """small, medium or large, by the area of a box (4,) in pixels of the file."""
    return sizes_of(box[None])[0]


def sizes_of(boxes: np.ndarray) -> list[str]:
    """The same of boxes (n, 4)."""
    names, least = list(SIZES), [low for low, _ in SIZES.values()]
    places = np.searchsorted(least, area(boxes.astype(np.float64)), side="right") - 1
    return [names[place] for place in places.tolist()]
