"""The answer of `why`: an outcome for every object and a kind for every false alarm, and the rules that decide them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rcnn.config import RPN, RoI
from rcnn.diagnose.why.steps import ImageSteps
from rcnn.metrics.overlap import area, box_iou, match
from rcnn.metrics.proposal_recall import SIZES, best_cover
from rcnn.metrics.types import Prediction, Truth
from rcnn.model.suppress import Suppression

MIN_ANCHOR_IOU = 0.3
"""Lowest IoU with an object at which it counts as covered by an anchor."""

MIN_ALARM_IOU = 0.1
"""Lowest IoU of a false alarm with the object that it refers to."""

FOUND = "found"

MISS_REASONS = {
    "no_anchor": f"no anchor with IoU >= {MIN_ANCHOR_IOU}",
    "not_in_top_k": "no box of the RPN's top K fits",
    "no_proposal": "lost in the RPN's NMS or top N",
    "no_box": "no refined box fits",
    "other_class": "taken for another class",
    "low_score": "right, but below the threshold",
    "suppressed": "right, but suppressed, cut or shared",
}
"""Reason for which an object is lost -> its title, in the order of the steps of the detector."""

ALARMS = {
    "duplicate": "duplicate of a found object",
    "bad_box": "right class, box too far off",
    "wrong_class": "object of another class",
    "background": "nothing of its class there",
    "missing_label": "probably a missing label",
}
"""Kind of false alarm -> its title."""


class MissReason(NamedTuple):
    """The reason for which an object is lost.

    Attributes:
        where: one of `MISS_REASONS`; `found` if it is not lost.
        detail: for `not_in_top_k`, `cut` (a box outside the top K fits) or `missed` (none does); for `no_proposal` and
            `suppressed`, `nms`, `cut` (beyond the number kept), `small`, `score`, or `shared` (the box that fits was
            matched to another object).
        taken_for: the class that the object was mistaken for, or -1.
        score: of its detection, or the best score of its class in a box that fits; NaN if there is none.
    """

    where: str
    detail: str = ""
    taken_for: int = -1
    score: float = float("nan")


class Outcome(NamedTuple):
    """One object that the metric counts, and the fields of its `MissReason`.

    Attributes:
        image: index into the data set's records.
        truth: index into the image's boxes.
        label: its class.
        size: small, medium or large, as COCO defines them.
        where, detail, taken_for, score: as in `MissReason`.
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
        size: small, medium or large, as COCO defines them, by its own area.
        kind: one of `ALARMS`.
        score: in [0, 1].
        truth: the object that the kind refers to; -1 for none.
        iou: highest IoU with any object, of any class.
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
        iou: lowest IoU of a correct box.
        score: lowest score of a detection that counts.
        predicts_classes: if False, `predictions` are proposals and there are no alarms.
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
        """Return the objects lost for one of `MISS_REASONS`, or those that are `found`."""
        return [outcome for outcome in self.outcomes if outcome.where == where]

    def all_lost(self) -> list[Outcome]:
        """Return the objects that are not found."""
        return [outcome for outcome in self.outcomes if outcome.where != FOUND]

    def false_alarms(self, kind: str) -> list[Alarm]:
        """Return the false alarms of one of `ALARMS`."""
        return [alarm for alarm in self.alarms if alarm.kind == kind]


class Rules(NamedTuple):
    """Lowest IoU of a correct box, lowest score of a detection that counts, settings and suppression of both stages."""

    iou: float
    score: float
    rpn: RPN
    roi: RoI
    suppression: Suppression


def outcomes_of(
    image: int,
    truth: Truth,
    prediction: Prediction,
    reasons: Mapping[int, Callable[[], MissReason]],
    rules: Rules,
    *,
    predicts_classes: bool,
) -> list[Outcome]:
    """Return the outcome of every object of an image that counts.

    Args:
        image: its index.
        truth: its objects, in pixels of the file.
        prediction: all its detections, in pixels of the file; without a second stage its proposals.
        reasons: row of an object -> function that finds its reason, called only if it is lost.
        rules: thresholds and settings that decide.
        predicts_classes: whether `prediction` holds detections.
    """
    counted = np.flatnonzero(~truth.ignore)
    if predicts_classes:
        shown = np.flatnonzero(prediction.scores >= np.float32(rules.score))
        matched, _ = match(truth, Prediction(*(field[shown] for field in prediction)), rules.iou)
        hits = matched >= 0
        scores = dict(zip(matched[hits].tolist(), prediction.scores[shown[hits]].tolist(), strict=True))
    else:
        cover = best_cover(box_iou(truth.boxes[counted], prediction.boxes))
        scores = dict.fromkeys(counted[cover >= rules.iou].tolist(), float("nan"))
    sizes = sizes_of(truth.boxes)
    return [
        Outcome(
            image,
            row,
            int(truth.labels[row]),
            sizes[row],
            *(MissReason(FOUND, score=scores[row]) if row in scores else reasons[row]()),
        )
        for row in counted.tolist()
    ]


def miss_reason(box: np.ndarray, label: int, steps: ImageSteps, rules: Rules) -> MissReason:
    """Return the first step that lost an object.

    Two boxes of each proposal are considered, that of its best class and that of the object's class. Background does
    not count as a class here: an object that the network takes for background has a score below the threshold.

    Args:
        box: (1, 4) in pixels of the resized image.
        label: its class.
        steps: of its image.
        rules: thresholds and settings that decide.
    """
    if not (box_iou(steps.anchors, box) >= MIN_ANCHOR_IOU).any():
        return MissReason("no_anchor")
    fits = box_iou(steps.decoded, box)[:, 0] >= rules.iou
    entered = steps.entered[fits[steps.entered]]
    if not len(entered):
        return MissReason("not_in_top_k", "cut" if fits.any() else "missed")
    if not fits[steps.proposed].any():
        anchor = entered[steps.objectness[entered].argmax()]
        rivals = steps.proposed[steps.level[steps.proposed] == steps.level[anchor]]
        return MissReason("no_proposal", _why_dropped(anchor, rivals, steps.decoded, steps.objectness, rules.rpn))
    if not steps.refined.shape[1]:
        return MissReason("no_proposal", "shared")
    best_class, rows = steps.scores.argmax(axis=1), np.arange(len(steps.scores))
    fits_own = box_iou(steps.refined[:, label], box)[:, 0] >= rules.iou
    fits = fits_own | (box_iou(steps.refined[rows, best_class], box)[:, 0] >= rules.iou)
    if not fits.any():
        return MissReason("no_box")
    right = np.flatnonzero(fits_own & (best_class == label))
    if not len(right):
        surest = np.flatnonzero(fits)[steps.scores[fits].max(axis=1).argmax()]
        return MissReason(
            "other_class", taken_for=int(best_class[surest]), score=float(steps.scores[fits, label].max())
        )
    best = right[steps.scores[right, label].argmax()]
    score = steps.scores[best, label]
    if score < np.float32(rules.score) or score <= rules.roi.score:
        return MissReason("low_score", score=float(score))
    if (steps.detected == (best, label)).all(axis=1).any():
        return MissReason("suppressed", "shared", score=float(score))
    rivals = steps.detected[steps.detected[:, 1] == label, 0]
    detail = _why_dropped(best, rivals, steps.refined[:, label], steps.scores[:, label], rules.roi)
    return MissReason("suppressed", detail, score=float(score))


def _why_dropped(index: np.intp, rivals: np.ndarray, boxes: np.ndarray, scores: np.ndarray, settings: RPN | RoI) -> str:
    """Return why a box was dropped: by its `score`, as too `small`, by `nms`, or by a limit of the number (`cut`)."""
    if scores[index] < settings.score:
        return "score"
    if (boxes[index, 2:] - boxes[index, :2]).min() < settings.min_size:
        return "small"
    better = rivals[scores[rivals] >= scores[index]]
    return "nms" if (box_iou(boxes[better], boxes[index][None]) > settings.nms).any() else "cut"


def find_alarms(truths: Sequence[Truth], predictions: Sequence[Prediction], iou: float, score: float) -> list[Alarm]:
    """Return the false alarms of all images, each of the first kind that applies.

    A duplicate fits an object of its class that another detection was matched to; a wrong class fits an object of
    another class; a bad box has an IoU of at least `MIN_ALARM_IOU` with an object of its class. All others are
    background, or probably a missing label if they touch no object and score above the median of the correct detections
    of their class.
    """
    alarms: list[Alarm] = []
    right = defaultdict[int, list[float]](list)
    for image, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        shown = np.flatnonzero(prediction.scores >= np.float32(score))
        matched, ignored = match(truth, Prediction(*(field[shown] for field in prediction)), iou)
        for index in shown[matched >= 0].tolist():
            right[int(prediction.labels[index])].append(float(prediction.scores[index]))
        alarms += _alarms_of(image, truth, prediction, shown[(matched < 0) & ~ignored], iou)
    medians = {label: float(np.median(scores)) for label, scores in right.items()}
    return [
        alarm._replace(kind="missing_label")
        if alarm.kind == "background" and alarm.iou < MIN_ALARM_IOU and alarm.score > medians.get(alarm.label, np.inf)
        else alarm
        for alarm in alarms
    ]


def _alarms_of(image: int, truth: Truth, prediction: Prediction, wrong: np.ndarray, iou: float) -> list[Alarm]:
    """Return the alarms of one image; `wrong` are the rows of the wrong detections."""
    boxes, labels = prediction.boxes[wrong], prediction.labels[wrong]
    overlap = np.pad(box_iou(boxes, truth.boxes), ((0, 0), (0, 1)))  # argmax needs at least one object
    of_class = np.pad(truth.labels == labels[:, None], ((0, 0), (0, 1)))
    same_class, other_class = (overlap * of_class).argmax(axis=1), (overlap * ~of_class).argmax(axis=1)
    columns = (wrong, labels, prediction.scores[wrong], same_class, other_class, overlap.max(axis=1))
    rows = zip(sizes_of(boxes), *(column.tolist() for column in columns), strict=True)
    alarms = []
    for row, (size, detection, label, score, same, other, highest) in enumerate(rows):
        kind, about = "background", -1
        if of_class[row, same] and overlap[row, same] >= iou:
            kind, about = "duplicate", same
        elif overlap[row, other] >= iou:
            kind, about = "wrong_class", other
        elif of_class[row, same] and overlap[row, same] >= MIN_ALARM_IOU:
            kind, about = "bad_box", same
        alarms.append(Alarm(image, detection, label, size, kind, score, about, highest))
    return alarms


def sizes_of(boxes: np.ndarray) -> list[str]:
    """Return small, medium or large for each box (n, 4), by its area in pixels of the file."""
    names, limits = list(SIZES), [low for low, _ in SIZES.values()]
    return [names[i] for i in (np.searchsorted(limits, area(boxes.astype(np.float64)), side="right") - 1).tolist()]
