"""The picture of an experiment: every seed, mean and spread of each row, next to the paper's numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rcnn.draw import PALETTE
from rcnn.metrics.proposal_recall import IOUS
from rcnn.paper import timing
from rcnn.paper.conduct import ExperimentResult
from rcnn.paper.experiment import Column
from rcnn.paper.recall import TOPS
from rcnn.paper.report import summary
from rcnn.plots.figure import GREY, INK, LEGEND, new_figure, plain, save, style
from rcnn.runtime.eager import choose_device

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = PALETTE[0], PALETTE[3]


def plot(result: ExperimentResult, path: Path) -> None:
    """Draw the picture that suits the experiment."""
    draw = {"recall": plot_recall, "time": plot_times}.get(result.name, plot_rows)
    draw(result, path)


def plot_rows(result: ExperimentResult, path: Path) -> None:
    """Draw one panel per quantity and one for the paper's numbers, if it has any, with one line per row."""
    experiment = result.experiment
    columns = [column for column in experiment.columns if column.plotted]
    main, count = columns[0], len(experiment.rows)
    panels = len(columns) + bool(experiment.paper)
    figure, grid = new_figure(1, panels, max(10.0, 3.6 + 2.4 * len(columns)), 1.4 + 0.34 * count)
    for axes, column in zip(grid[0], columns, strict=False):
        _panel(axes, f"{column.heading}, {result.dataset.root.name}", experiment.rows, first=axes is grid[0, 0])
        _points(axes, result, column)
    if experiment.paper:
        _draw_paper(grid[0, -1], result, main)
        _equal_spans(grid[0, 0], grid[0, -1])
    save(figure, path)


def _draw_paper(axes: "Axes", result: ExperimentResult, column: Column) -> None:
    rows = result.experiment.rows
    _panel(axes, f"{column.heading}, paper", rows, first=False)
    numbers = [result.experiment.given(row, column.key) for row in rows]
    axes.plot(numbers, range(len(rows)), "D", color=THEIRS, markersize=6)
    for place, number in enumerate(numbers):
        _label(axes, number, place, column.digits)


def _equal_spans(*panels: "Axes") -> None:
    """Let a point of difference be as long in each panel."""
    limits = [axes.get_xlim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)


def _panel(axes: "Axes", title: str, rows: tuple[str, ...], *, first: bool) -> None:
    style(axes, plain(title))
    axes.set_yticks(range(len(rows)), [plain(row) for row in rows] if first else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.2)


def _points(axes: "Axes", result: ExperimentResult, column: Column) -> None:
    for place, row in enumerate(result.experiment.rows):
        values = [numbers[column.key] for numbers in result.scores.get(row, {}).values() if column.key in numbers]
        mean, spread, _ = summary(result, row, column.key)
        axes.plot(values, [place] * len(values), "o", color=GREY, markersize=4, alpha=0.8)
        axes.errorbar(mean, place, xerr=np.nan_to_num(spread), fmt="o", color=OURS, markersize=6, capsize=3)
        _label(axes, mean, place, column.digits)


def _label(axes: "Axes", value: float, place: int, digits: int) -> None:
    if np.isfinite(value):
        shift = {"xytext": (0, 6), "textcoords": "offset points"}
        axes.annotate(f"{value:.{digits}f}", (value, place), ha="center", fontsize=7, color=INK, **shift)


def plot_recall(result: ExperimentResult, path: Path) -> None:
    """Figure 4: recall against IoU, one panel per number of proposals; mean and, shaded, spread over the seeds."""
    figure, (panels,) = new_figure(1, len(TOPS), 10.0, 3.8)
    for axes, top in zip(panels, TOPS, strict=True):
        style(axes, f"{top} proposals", "IoU with the object", "recall, %")
        for ink, row in ((THEIRS, "SS"), (OURS, "RPN")):
            summaries = [summary(result, row, f"recall{top}@{iou:.2f}") for iou in IOUS]
            mean = np.array([one.mean for one in summaries])
            spread = np.nan_to_num([one.spread for one in summaries])
            label = f"{row}: mean {summary(result, row, f'ar{top}').mean:.1f}"
            axes.plot(IOUS, mean, color=ink, marker="o", markersize=3.5, linewidth=1.8, label=label)
            axes.fill_between(IOUS, mean - spread, mean + spread, color=ink, alpha=0.2, linewidth=0)
        axes.set(xlim=(0.48, 1.0), ylim=(0, 102))
        axes.legend(loc="upper right", **LEGEND)  # recall falls to the right
    save(figure, path)


def plot_times(result: ExperimentResult, path: Path) -> None:
    """Table 5: milliseconds of the parts, laid end to end, here and in the paper."""
    experiment, rows = result.experiment, result.experiment.rows
    figure, ((ours, theirs),) = new_figure(1, 2, 10.0, 3.4)
    device = choose_device(result.settings.train.device).type
    for axes, title in ((ours, f"Here ({device})"), (theirs, "Paper (K40; Selective Search on a CPU)")):
        first = axes is ours
        _panel(axes, title, rows, first=first)
        axes.set_xlabel("ms per image", fontsize=9)
        axes.margins(x=0.15)
        left = np.zeros(len(rows))
        for ink, part in zip(PALETTE, timing.PARTS[:3], strict=False):
            mean = (summary(result, row, part).mean if first else experiment.given(row, part) for row in rows)
            wide = np.nan_to_num([*mean])
            axes.barh(range(len(rows)), wide, left=left, height=0.6, color=ink, label=part)
            left += wide
        for place, total in enumerate(left):
            axes.text(total, place, f" {total:.0f}" if total else " not in it", va="center", fontsize=8)
    theirs.legend(loc="lower right", **LEGEND)
    save(figure, path)
