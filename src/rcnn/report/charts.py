"""The charts of a page, from rows of epochs and from scores."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from rcnn.metrics.curves import THRESHOLDS
from rcnn.plots.run_plots import APS, LOSSES, ONE_STAGE
from rcnn.report.scores import ClassScores, Scores, count
from rcnn.report.svg import INKS, Axes, Line, chart

SPARSE, SPARSER = 5, 20
"""Every fifth threshold is a point of a line; of the many grey ones, every twentieth."""

PLANE = Axes("", "", (0.0, 1.0), (0.0, 1.0))
"""Of the charts whose numbers are shares."""

LARGEST = 1e9
"""From here on a number is not drawn."""

REST = "ink-rest"
DASH = "\N{EN DASH}"


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
    """A row for each class, and one for all: sums of the counts, means over the classes with objects."""
    counted, place = count(scores.classes), at(threshold)
    ratios = [
        [_known(v) for v in values[:, place].tolist()] for values in (counted.precision, counted.recall, counted.f1)
    ]
    right, wrong = counted.right[:, place].tolist(), counted.wrong[:, place].tolist()
    objects = [one.objects for one in scores.classes]
    names = [*(one.name for one in scores.classes), all_of(scores)]
    numbers = [[*column, sum(column)] for column in (objects, right, wrong)]
    return [
        ClassCounts(name, all_, good, bad, all_ - good, *three)
        for name, all_, good, bad, *three in zip(names, *numbers, *ratios, strict=True)
    ]


def at(threshold: float) -> int:
    """Index of a threshold among `THRESHOLDS`, of the lowest that is not below it."""
    return int(np.searchsorted(THRESHOLDS, threshold - 1e-9))


def loss_charts(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Markup]:
    """A chart for each loss, of one run in training and validation, of several in validation.

    Of one-stage and two-stage detectors together there is none: their losses are not the same ones.
    """
    several = len(runs) > 1
    one_stage = {any("train_rpn_class" in row for row in rows) for _, rows in runs if rows}
    if len(one_stage) > 1:
        return []
    drawn = []
    for key, title in (ONE_STAGE if True in one_stage else LOSSES).items():
        lines = []
        for place, (name, rows) in enumerate(runs):
            if not several:
                lines.append(Line("training", _points(rows, f"train_{key}"), "ink-0"))
            lines.append(
                Line(name if several else "validation", _points(rows, f"val_{key}"), f"ink-{place if several else 1}")
            )
        drawn.append(_epoch_chart(title, "loss", lines))
    return [one for one in drawn if one]


def score_chart(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Markup | None:
    """AP by epoch: of one run at several IoUs, of several runs the mean over IoUs."""
    if len(runs) > 1:
        lines = [Line(name, _points(rows, "ap"), f"ink-{place}") for place, (name, rows) in enumerate(runs)]
    else:
        lines = [
            Line(title, _points(runs[0][1], key), f"ink-{place}") for place, (key, title) in enumerate(APS.items())
        ]
    if not any(line.points for line in lines):
        lines = [Line(name, _points(rows, "proposal_ar300"), f"ink-{place}") for place, (name, rows) in enumerate(runs)]
        return _epoch_chart("Recall of 300 proposals", "average recall", lines, top=1.0)
    return _epoch_chart("AP on validation images", "AP", lines, top=1.0)


def f1_chart(scores: Scores) -> Markup:
    """F1 of each class against the threshold, with a line to drag."""
    counted = count(scores.classes)
    (x, top), (_, bottom) = PLANE.place(scores.threshold, 1), PLANE.place(0, 0)
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
    """Precision against recall of each class, with a dot for the threshold."""
    counted, rows, inks = count(scores.classes), counts(scores, scores.threshold), _inks(scores)
    dots = []
    for place, row in enumerate(rows):
        if row.recall is not None and row.precision is not None and inks[place] != REST:
            x, y = PLANE.place(row.recall, row.precision)
            dot = '<circle class="dot {}" data-row="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>'
            dots.append(Markup(dot).format(inks[place], place, x, y))
    mean = rows[-1]
    return chart(
        "Precision and recall",
        f"At the threshold {scores.threshold:.3f} the means are {shown(mean.precision)} and {shown(mean.recall)}.",
        PLANE._replace(x_title="recall", y_title="precision"),
        _lines(scores, counted.recall, counted.precision),
        Markup("").join(dots),
    )


def slider_data(scores: Scores) -> dict[str, Any]:
    """What the page's script needs to count for itself: bins of scores, and where the planes of the charts lie.

    The bins are one list: steps from the bin before, right and wrong detections, and so on.
    """
    (left, bottom), (right, top) = PLANE.place(0, 0), PLANE.place(1, 1)
    return {
        "steps": len(THRESHOLDS),
        "threshold": at(scores.threshold),
        "classes": [{"objects": one.objects, "bins": _flat(one)} for one in scores.classes],
        "plane": {"left": left, "top": top, "width": right - left, "height": bottom - top},
    }


def shown(value: float | None, digits: int = 3) -> str:
    """A number as the page shows it, ties rounded up as the script of the page rounds them; a dash for none."""
    if value is None:
        return DASH
    if abs(value) >= LARGEST:
        return f"{value:.{digits}g}"
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def all_of(scores: Scores) -> str:
    """The name of the row of all classes."""
    whole = len(scores.classes) == scores.num_classes
    return "all" if whole else f"these {len(scores.classes)} of {scores.num_classes:,} classes"


def _flat(one: ClassScores) -> list[int]:
    """The bins of a class in few characters."""
    numbers, last = [], 0
    for place, right, wrong in one.bins:
        numbers += (place - last, right, wrong)
        last = place
    return numbers


def _lines(scores: Scores, x: np.ndarray, y: np.ndarray) -> list[Line]:
    """A line for each class with objects, of rows (K + 1, S), and their mean on top."""
    names = [*(one.name for one in scores.classes), "mean"]
    lines = []
    for name, ink, across, up in zip(names, _inks(scores), x, y, strict=True):
        if not np.isnan(up).any() and not (name == "mean" and len(names) == 2):
            step = SPARSER if ink == REST else SPARSE
            points = list(zip(across[::step].tolist(), up[::step].tolist(), strict=True))
            lines.append(Line("" if ink == REST else name, points, ink))
    return sorted(lines, key=lambda line: line.ink != REST)


def _inks(scores: Scores) -> list[str]:
    """The colours of the classes, those with most objects first, and of the mean; the rest is grey."""
    number = len(scores.classes)
    few = INKS if number <= INKS else INKS - 2
    return [*(f"ink-{place}" if place < few else REST for place in range(number)), "ink-mean"]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """The epochs that know a number, without those that no plane has room for."""
    pairs = ((row["epoch"], row.get(key)) for row in rows)
    return [(x, y) for x, y in pairs if all(isinstance(v, float | int) and 0 <= v < LARGEST for v in (x, y))]


def _epoch_chart(title: str, unit: str, lines: Sequence[Line], top: float | None = None) -> Markup | None:
    """A chart of numbers by epoch; None if there are none."""
    there = [(x, y) for line in lines for x, y in line.points if y is not None]
    if not there:
        return None
    last = max(x for x, _ in there)
    high = top or 1.05 * max(y for _, y in there) or 1.0
    ends = [f"{line.name} {shown(line.points[-1][1])}" for line in lines if line.points]
    axes = Axes("epoch", unit, (0.5, last + 0.5), (0.0, high))
    return chart(title, f"Last: {', '.join(ends)}.", axes, [line for line in lines if line.points])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
