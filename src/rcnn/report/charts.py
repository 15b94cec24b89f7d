"""The charts of a page, from rows of epochs and from scores."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from rcnn.metrics.curves import THRESHOLDS
from rcnn.plots.run_plots import APS, LOSSES, ONE_STAGE
from rcnn.report.scores import ClassScores, Scores, count, finite
from rcnn.report.svg import INKS, Axes, Line, chart

SPARSE, SPARSER = 5, 20
"""A line has a point for every fifth threshold; a grey line, of which there may be many, for every twentieth."""

PLANE = Axes("", "", (0.0, 1.0), (0.0, 1.0))
"""The plane of charts whose values lie between 0 and 1."""

MAX_VALUE = 1e9
"""Numbers of an epoch from here on are not drawn."""

REST = "ink-rest"
DASH = "\N{EN DASH}"

Runs = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
"""Names of runs, and the rows of their epochs."""


class ClassCounts(NamedTuple):
    """The detections of a class, or of all classes, at a threshold: a row of the table of counts.

    Attributes:
        name: of the class.
        objects, right, wrong, lost: counts.
        precision, recall, f1: as in `metrics.curves`; None without objects.
    """

    name: str
    objects: int
    right: int
    wrong: int
    lost: int
    precision: float | None
    recall: float | None
    f1: float | None


def counts(scores: Scores, threshold: float) -> list[ClassCounts]:
    """Return a row for each class, and one for all: sums of the counts, means over the classes with objects."""
    counted, index = count(scores.classes), threshold_index(threshold)
    ratios = [[finite(v) for v in values[:, index]] for values in (counted.precision, counted.recall, counted.f1)]
    right, wrong = counted.right[:, index].tolist(), counted.wrong[:, index].tolist()
    objects = [row.objects for row in scores.classes]
    number = len(scores.classes)
    everything = "all" if number == scores.num_classes else f"these {number} of {scores.num_classes:,} classes"
    names = [*(row.name for row in scores.classes), everything]
    numbers = [[*column, sum(column)] for column in (objects, right, wrong)]
    return [
        ClassCounts(name, all_, good, bad, all_ - good, *three)
        for name, all_, good, bad, *three in zip(names, *numbers, *ratios, strict=True)
    ]


def threshold_index(threshold: float) -> int:
    """Return the index of the lowest of `THRESHOLDS` that is not below a threshold."""
    return int(np.searchsorted(THRESHOLDS, threshold - 1e-9))


def loss_charts(runs: Runs) -> list[Markup]:
    """Return a chart for each loss: of one run in training and validation, of several runs in validation.

    One-stage and two-stage detectors have different losses, so there is no chart of both.
    """
    one_stage = {any("train_rpn_class" in row for row in rows) for _, rows in runs if rows}
    if len(one_stage) > 1:
        return []
    charts = []
    for key, title in (ONE_STAGE if True in one_stage else LOSSES).items():
        curves = [(name, rows, f"val_{key}") for name, rows in runs]
        if len(runs) == 1:
            curves = [("training", runs[0][1], f"train_{key}"), ("validation", runs[0][1], f"val_{key}")]
        charts.append(_epoch_chart(title, "loss", curves))
    return [drawn for drawn in charts if drawn]


def score_chart(runs: Runs) -> Markup | None:
    """Return AP by epoch: of one run at several IoUs, of several runs the mean over IoUs. Without AP, return recall."""
    curves = [(name, rows, "ap") for name, rows in runs]
    if len(runs) == 1:
        curves = [(title, runs[0][1], key) for key, title in APS.items()]
    recalls = [(name, rows, "proposal_ar300") for name, rows in runs]
    return _epoch_chart("AP on validation images", "AP", curves, top=1.0) or _epoch_chart(
        "Recall of 300 proposals", "average recall", recalls, top=1.0
    )


def f1_chart(scores: Scores) -> Markup:
    """Return F1 of each class against the threshold, with a line to drag."""
    counted = count(scores.classes)
    (x, top), (_, bottom) = PLANE.position(scores.threshold, 1), PLANE.position(0, 0)
    mark = Markup('<path class="mark" d="M0 {:.1f}V{:.1f}" transform="translate({:.1f} 0)"/>').format(top, bottom, x)
    across = np.broadcast_to(THRESHOLDS, counted.f1.shape)
    return chart(
        "F1 against the score threshold",
        f"At the threshold {scores.threshold:.3f} the mean is {shown(counts(scores, scores.threshold)[-1].f1)}.",
        PLANE._replace(x_title="score threshold", y_title="F1"),
        _lines(scores, across, counted.f1),
        mark,
    )


def precision_recall_chart(scores: Scores) -> Markup:
    """Return precision against recall of each class, with a dot for the threshold."""
    counted, rows, inks = count(scores.classes), counts(scores, scores.threshold), _inks(scores)
    dots = []
    for index, (row, ink) in enumerate(zip(rows, inks, strict=True)):
        if row.recall is not None and row.precision is not None and ink != REST:
            x, y = PLANE.position(row.recall, row.precision)
            dot = '<circle class="dot {}" data-row="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>'
            dots.append(Markup(dot).format(ink, index, x, y))
    mean = rows[-1]
    return chart(
        "Precision and recall",
        f"At the threshold {scores.threshold:.3f} the means are {shown(mean.precision)} and {shown(mean.recall)}.",
        PLANE._replace(x_title="recall", y_title="precision"),
        _lines(scores, counted.recall, counted.precision),
        Markup("").join(dots),
    )


def slider_data(scores: Scores) -> dict[str, Any]:
    """Return what the script of the page counts from: bins of scores, and where the planes of the charts lie.

    The bins of a class are one list of three numbers per bin: the steps from the bin before, and its right and wrong
    detections.
    """
    (left, bottom), (right, top) = PLANE.position(0, 0), PLANE.position(1, 1)
    return {
        "steps": len(THRESHOLDS),
        "threshold": threshold_index(scores.threshold),
        "classes": [{"objects": row.objects, "bins": _flat(row)} for row in scores.classes],
        "plane": {"left": left, "top": top, "width": right - left, "height": bottom - top},
    }


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number as the page shows it, ties rounded up as in the script of the page; a dash for None."""
    if value is None:
        return DASH
    if abs(value) >= MAX_VALUE:
        return f"{value:.{digits}g}"
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _flat(row: ClassScores) -> list[int]:
    """Return the bins of a class as `slider_data` describes them."""
    numbers, last = [], 0
    for bin_, right, wrong in row.bins:
        numbers += (bin_ - last, right, wrong)
        last = bin_
    return numbers


def _lines(scores: Scores, x: np.ndarray, y: np.ndarray) -> list[Line]:
    """Return a line for each class with objects, of rows (K + 1, S), and their mean on top."""
    names = [*(row.name for row in scores.classes), "mean"]
    lines = []
    for name, ink, across, up in zip(names, _inks(scores), x, y, strict=True):
        if not np.isnan(up).any() and not (name == "mean" and len(names) == 2):
            step = SPARSER if ink == REST else SPARSE
            points = list(zip(across[::step].tolist(), up[::step].tolist(), strict=True))
            lines.append(Line("" if ink == REST else name, points, ink))
    return sorted(lines, key=lambda line: line.ink != REST)


def _inks(scores: Scores) -> list[str]:
    """Return the colours of the classes, those with most objects first, and of the mean; the rest is grey."""
    number = len(scores.classes)
    coloured = INKS if number <= INKS else INKS - 2
    return [*(f"ink-{index}" if index < coloured else REST for index in range(number)), "ink-mean"]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of the epochs that have this number, without negative and very large ones."""
    pairs: Iterable[tuple[Any, Any]] = ((row["epoch"], row.get(key)) for row in rows)
    return [(x, y) for x, y in pairs if all(isinstance(v, float | int) and 0 <= v < MAX_VALUE for v in (x, y))]


def _epoch_chart(
    title: str, unit: str, curves: Sequence[tuple[str, Sequence[Mapping[str, Any]], str]], top: float | None = None
) -> Markup | None:
    """Return a chart of curves (name, rows, key of the number) by epoch; None if no row has such a number."""
    lines = [Line(name, _points(rows, key), f"ink-{index}") for index, (name, rows, key) in enumerate(curves)]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    last, highest = (max(point[axis] for line in lines for point in line.points) for axis in (0, 1))
    ends = [f"{line.name} {shown(line.points[-1][1])}" for line in lines]
    axes = Axes("epoch", unit, (0.5, last + 0.5), (0.0, top or 1.05 * highest or 1.0))
    return chart(title, f"Last: {', '.join(ends)}.", axes, lines)
