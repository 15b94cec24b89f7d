"""Figures of experiments: every seed, mean and spread of each row, next to the paper's numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rcnn.draw import PALETTE
from rcnn.metrics.proposal_recall import IOUS
from rcnn.paper import timing
from rcnn.paper.recall import TOPS
from rcnn.paper.results import ExperimentResult
from rcnn.plots.figure import GREY, INK, LEGEND, new_figure, plain, save, style
from rcnn.runtime.eager import choose_device

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PAPER = PALETTE[0], PALETTE[3]


def plot(result: ExperimentResult, path: Path) -> None:
    """Draw the figure of the experiment."""
    draw = {"recall": plot_recall, "time": plot_times}.get(result.name, plot_rows)
    draw(result, path)


def plot_rows(result: ExperimentResult, path: Path) -> None:
    """Draw one panel per quantity and one for the paper's numbers, if it has any, with one line per row."""
    experiment = result.experiment
    columns = [column for column in experiment.columns if column.plotted]
    rows = experiment.rows
    panels = len(columns) + bool(experiment.paper)
    figure, (grid,) = new_figure(1, panels, max(10.0, 3.6 + 2.4 * len(columns)), 1.4 + 0.34 * len(rows))
    for axes, column in zip(grid, columns, strict=False):
        _panel(axes, f"{column.heading}, {result.dataset.root.name}", rows, first=axes is grid[0])
        for y, row in enumerate(rows):
            values = [numbers[column.key] for numbers in result.scores.get(row, {}).values() if column.key in numbers]
            mean, spread, _ = result.summary(row, column.key)
            axes.plot(values, [y] * len(values), "o", color=GREY, markersize=4, alpha=0.8)
            axes.errorbar(mean, y, xerr=np.nan_to_num(spread), fmt="o", color=OURS, markersize=6, capsize=3)
            _label(axes, mean, y, column.digits)
    if experiment.paper:
        axes, column = grid[-1], columns[0]
        _panel(axes, f"{column.heading}, paper", rows, first=False)
        numbers = [experiment.paper_number(row, column.key) for row in rows]
        axes.plot(numbers, range(len(rows)), "D", color=PAPER, markersize=6)
        for y, number in enumerate(numbers):
            _label(axes, number, y, column.digits)
        _equal_spans(grid[0], axes)
    save(figure, path)


def _equal_spans(*panels: "Axes") -> None:
    """Give all panels one scale of the x axis."""
    limits = [axes.get_xlim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)


def _panel(axes: "Axes", title: str, rows: tuple[str, ...], *, first: bool) -> None:
    style(axes, plain(title))
    axes.set_yticks(range(len(rows)), [plain(row) for row in rows] if first else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.2)


def _label(axes: "Axes", value: float, y: int, digits: int) -> None:
    if np.isfinite(value):
        shift = {"xytext": (0, 6), "textcoords": "offset points"}
        axes.annotate(f"{value:.{digits}f}", (value, y), ha="center", fontsize=7, color=INK, **shift)


def plot_recall(result: ExperimentResult, path: Path) -> None:
    """Draw figure 4: recall against IoU, one panel per number of proposals; mean and, shaded, spread over the seeds."""
    figure, (panels,) = new_figure(1, len(TOPS), 10.0, 3.8)
    for axes, top in zip(panels, TOPS, strict=True):
        style(axes, f"{top} proposals", "IoU with the object", "recall, %")
        for color, row in ((PAPER, "SS"), (OURS, "RPN")):
            summaries = [result.summary(row, f"recall{top}@{iou:.2f}") for iou in IOUS]
            mean = np.array([summary.mean for summary in summaries])
            spread = np.nan_to_num([summary.spread for summary in summaries])
            label = f"{row}: mean {result.summary(row, f'ar{top}').mean:.1f}"
            axes.plot(IOUS, mean, color=color, marker="o", markersize=3.5, linewidth=1.8, label=label)
            axes.fill_between(IOUS, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
        axes.set(xlim=(0.48, 1.0), ylim=(0, 102))
        axes.legend(loc="upper right", **LEGEND)  # recall falls to the right
    save(figure, path)


def plot_times(result: ExperimentResult, path: Path) -> None:
    """Draw table 5 as stacked bars: milliseconds of the parts, here and in the paper."""
    experiment, rows = result.experiment, result.experiment.rows
    figure, ((ours, paper),) = new_figure(1, 2, 10.0, 3.4)
    device = choose_device(result.settings.train.device).type
    for axes, title in ((ours, f"Here ({device})"), (paper, "Paper (K40; Selective Search on a CPU)")):
        first = axes is ours
        _panel(axes, title, rows, first=first)
        axes.set_xlabel("ms per image", fontsize=9)
        axes.margins(x=0.15)
        left = np.zeros(len(rows))
        for color, part in zip(PALETTE, timing.PARTS[:3], strict=False):
            means = [result.summary(row, part).mean if first else experiment.paper_number(row, part) for row in rows]
            widths = np.nan_to_num(means)
            axes.barh(range(len(rows)), widths, left=left, height=0.6, color=color, label=part)
            left += widths
        for y, total in enumerate(left):
            axes.text(total, y, f" {total:.0f}" if total else " not in it", va="center", fontsize=8)
    paper.legend(loc="lower right", **LEGEND)
    save(figure, path)
