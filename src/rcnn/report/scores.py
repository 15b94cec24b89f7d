"""The scores that a page shows: numbers of `Metrics` and judged pictures, stored as plain JSON beside the page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rcnn.config import Settings, explain
from rcnn.config.files import MB, read_text
from rcnn.data.dataset import Dataset
from rcnn.detector import Detector
from rcnn.errors import DataError
from rcnn.metrics import table
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.curves import THRESHOLDS, tally
from rcnn.metrics.table import Metric, Metrics
from rcnn.metrics.voc import Rule

IOU = 0.5
"""Lowest IoU of a right detection, for counts, curves, confusion and pictures."""

MAX_CLASSES = 100
"""Number of classes that are shown one by one, those with most objects."""

MAX_FILE_BYTES = 50 * MB
"""Largest file that is read for a page."""

Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(allow_inf_nan=False)] | None


class Plain(BaseModel):
    """The content of a file that a page is made from. Files are not trusted, so every value is checked."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_P = TypeVar("_P", bound=Plain)


class ClassScores(Plain):
    """The scores of a class, and its detections by score.

    Attributes:
        name: of the class.
        label: its index.
        objects: number of objects that count.
        ap, ap50: as in `Metrics.by_class`; None without objects.
        voc_ap50: VOC's AP by the rule `Scores.voc_ap`; None without objects.
        model_extra: the other metrics by class, as in `Metrics.by_class`.
        bins: (s, right, wrong): numbers of detections with scores from `THRESHOLDS[s]` up to the next threshold, for
            the bins that are not empty.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Number]  # type: ignore[bad-override]

    name: str
    label: int
    objects: Count
    ap: Number
    ap50: Number
    voc_ap50: Number
    bins: tuple[tuple[Annotated[int, Field(ge=0, lt=len(THRESHOLDS))], Count, Count], ...]

    def value(self, metric: Metric) -> Number:
        """Return the value of a metric, or None if it is unknown."""
        return getattr(self, _field(metric), None)


def _field(metric: Metric) -> str:
    """Return the name of a metric in `ClassScores`. Both rules of VOC have the same name."""
    return "voc_ap50" if metric.group == "voc" else metric.key


class GalleryPicture(Plain):
    """A picture beside the page.

    Attributes:
        file: its name, a WebP.
        name: of the image.
        kind: "worst" or "best".
        right, wrong, lost: numbers of right and wrong detections and of lost objects at the threshold.
    """

    file: Annotated[str, Field(pattern=r"^[\w-]+\.webp$")]
    name: str
    kind: str
    right: Count
    wrong: Count
    lost: Count


class Scores(Plain):
    """The scores of a detector on a list of images.

    Attributes:
        data: name of the data set.
        split: name of the list.
        images: number of images.
        detects: whether the detector predicts classes; if not, only the recall of its proposals is known.
        threshold: lowest score of a detection that is shown.
        summary: AP and AR over all classes, proposal recall and losses, named as in a row of a run.
        classes: by class, at most `MAX_CLASSES`, those with most objects first.
        num_classes: number of all classes.
        confusion: (true class or background, predicted class or background, number) of the pairs that occur at the
            threshold; the index of background is `num_classes`.
        recall: proposals -> size -> average recall.
        pictures: the worst and the best.
        epoch: of the weights, if known.
        voc_ap: rule of VOC's AP, as `val.voc_ap`.
    """

    data: str
    split: str
    images: Count
    detects: bool
    threshold: Annotated[float, Field(ge=0, le=1)]
    summary: dict[str, Number]
    classes: Annotated[tuple[ClassScores, ...], Field(max_length=MAX_CLASSES)]
    num_classes: Count
    confusion: tuple[tuple[Count, Count, Count], ...]
    recall: dict[str, dict[str, Number]]
    pictures: tuple[GalleryPicture, ...] = ()
    epoch: int | None = None
    voc_ap: Rule = "area"

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that are known."""
        return [metric for metric in table.METRICS if metric.key in self.summary]


class ScoredDetector(NamedTuple):
    """Facts about a scored detector that a page shows.

    Attributes:
        settings: of the detector.
        threshold: lowest score of a detection that is shown.
        predicts_classes: as `Settings.predicts_classes`.
        epoch: of its weights; None if unknown.
    """

    settings: Settings
    threshold: float
    predicts_classes: bool
    epoch: int | None = None

    @classmethod
    def of(cls, detector: Detector, epoch: int | None = None) -> "ScoredDetector":
        """Return the facts about a detector."""
        return cls(detector.settings, detector.threshold, detector.settings.predicts_classes, epoch)


def scores_of(metrics: Metrics, dataset: Dataset, scored: ScoredDetector) -> Scores:
    """Return the scores that a page shows, without pictures.

    Args:
        metrics: of the data set.
        dataset: that was scored on.
        scored: the detector.
    """
    number, predicts_classes = len(metrics.names), scored.predicts_classes
    counted = tally(metrics.truths, metrics.predictions, number, IOU)
    rows = metrics.by_class()
    shown = sorted(range(number), key=lambda label: -rows[label]["boxes"])[:MAX_CLASSES] if predicts_classes else []
    classes = []
    for label in shown:
        right, wrong = counted.right[label], counted.wrong[label]
        bins = [(int(s), int(right[s]), int(wrong[s])) for s in np.flatnonzero(right + wrong)]
        named = {_field(metric): finite(rows[label][metric.key]) for metric in metrics.per_class}
        objects = int(counted.counts[label])
        classes.append(ClassScores(name=rows[label]["class"], label=label, objects=objects, bins=tuple(bins), **named))
    matrix = np.zeros((1, 1), np.int64)
    if predicts_classes:
        matrix = confusion_matrix(metrics.truths, metrics.predictions, number, IOU, scored.threshold)
    sizes = {"all": metrics.proposals.ar, **metrics.proposals.ar_by_size}
    return Scores(
        data=dataset.root.name,
        split=dataset.split,
        images=len(dataset),
        detects=predicts_classes,
        threshold=scored.threshold,
        summary={name: finite(value) for name, value in metrics.to_row().items()},
        classes=tuple(classes),
        num_classes=number,
        confusion=tuple((int(i), int(j), int(matrix[i, j])) for i, j in np.argwhere(matrix)),
        recall={
            str(top): {size: finite(values[index]) for size, values in sizes.items()}
            for index, top in enumerate(metrics.proposals.tops)
        },
        epoch=scored.epoch,
        voc_ap=metrics.voc_rule,
    )


def read_plain(path: Path, kind: type[_P]) -> _P:
    """Read a JSON file that a page is made from.

    Raises:
        DataError: the file can't be read, or has other content.
    """
    try:
        return kind.model_validate_json(read_text(path, MAX_FILE_BYTES))
    except ValidationError as error:
        raise DataError(f"{path}: not as it was written: {explain(error)}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}") from None


class Counted(NamedTuple):
    """Numbers of detections at each of S `THRESHOLDS`, and ratios of them.

    Attributes:
        right, wrong: (K, S) numbers of detections.
        precision, recall, f1: (K + 1, S) as in `metrics.curves.Curves`; NaN without objects. The last row has the means
            over the classes with objects.
    """

    right: np.ndarray
    wrong: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def count(classes: Sequence[ClassScores]) -> Counted:
    """Count the detections of each class at each threshold."""
    binned = np.zeros((2, len(classes), len(THRESHOLDS)), np.int64)
    for row, scores in enumerate(classes):
        for bin_, right, wrong in scores.bins:
            binned[:, row, bin_] = right, wrong
    right, wrong = binned[..., ::-1].cumsum(axis=-1)[..., ::-1]
    objects = np.array([scores.objects for scores in classes], np.float64)[:, None]
    precision = np.where(right + wrong > 0, right / np.maximum(right + wrong, 1), 1.0)
    recall = np.where(objects > 0, right / np.maximum(objects, 1), np.nan)
    precision = np.where(objects > 0, precision, np.nan)
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    return Counted(right, wrong, *(np.vstack((values, _mean(values))) for values in (precision, recall, f1)))


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the (S,) means over the rows without NaN, or NaN if there are none."""
    known = values[~np.isnan(values).any(axis=1)]
    return known.mean(axis=0) if len(known) else np.full(values.shape[1:], np.nan)


def finite(value: float) -> float | None:
    """Return a number for JSON, or None in place of NaN and infinity."""
    return float(value) if math.isfinite(value) else None
