"""The plots of a run folder: losses, AP, curves, confusion, proposal recall and statistics of the labels.

Each function writes one PNG, at least 1000 px wide, atomically.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcnn.data.dataset import Record, Records
from rcnn.draw import PALETTE, SHADES
from rcnn.metrics.curves import Curves, best_threshold
from rcnn.metrics.proposal_recall import ProposalMetrics
from rcnn.plots.figure import GREY, INK, legend, log_axes, new_figure, save, short, style, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = {
    "rpn_objectness": "RPN: object or not",
    "rpn_box": "RPN: boxes",
    "roi_class": "Second stage: classes",
    "roi_box": "Second stage: boxes",
}
_LATER = re.compile(r"((?:train_|val_)?roi_(?:class|box))_\d+")
ONE_STAGE = {"rpn_class": "Classes of anchors", "rpn_box": "Boxes"}
APS = {"ap": "AP .50:.95", "ap50": "AP50", "ap75": "AP75"}
MIN_BARS = 6
"""Bars are as thick as if there were at least this many."""
MAX_COLOURS = 8
"""Number of classes up to which each has a colour and a legend entry; otherwise only the best and worst three have."""


def plot_history(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot each loss on training and validation images, AP, and the learning rate against the epoch.

    Args:
        rows: one per epoch, with `epoch` and any of: the losses, as `NAME` or `train_NAME` and `val_NAME`; `ap`,
            `ap50`, `ap75`, with or without `val_`; `lr`. None and NaN are gaps.
        path: the PNG.
    """
    rows = [_with_later_heads(row) for row in rows]
    figure, grid = new_figure(2, 3, 10.0, 6.2)
    panels = grid.ravel()
    losses = ONE_STAGE if any(name.endswith("rpn_class") for row in rows for name in row) else LOSSES
    places = panels[[0, 1, 3, 4]]
    for axes in places[len(losses) :]:
        axes.set_axis_off()
    for axes, (name, title) in zip(places, losses.items(), strict=False):
        style(axes, title, "epoch", "loss")
        _line(axes, rows, (name, f"train_{name}"), label="training", color=PALETTE[0])
        _line(axes, rows, (f"val_{name}",), label="validation", color=PALETTE[3])
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        legend(axes, 0.3, ncols=2)
    style(panels[2], "AP on validation images", "epoch", "AP")
    for ink, (name, title) in zip((PALETTE[0], PALETTE[1], PALETTE[2]), APS.items(), strict=True):
        _line(panels[2], rows, (name, f"val_{name}"), label=title, color=ink)
    panels[2].set_ylim(0, 1)
    legend(panels[2], 0.3, ncols=3, columnspacing=1.2)
    style(panels[5], "Learning rate", "epoch", "")
    _line(panels[5], rows, ("lr",), label="", color=INK)
    panels[5].ticklabel_format(style="plain", axis="y")
    panels[5].set_ylim(0, panels[5].get_ylim()[1])
    for axes in panels:
        axes.set_xlim(0.5, max((row["epoch"] for row in rows), default=1) + 0.5)
        whole_numbers(axes.xaxis)
    save(figure, path)


def plot_curves(curves: Curves, names: Sequence[str], path: Path) -> None:
    """Plot precision against recall and F1 against the score threshold for each class and their mean, at IoU 0.5."""
    labelled = np.flatnonzero(curves.counts)
    figure, ((left, right),) = new_figure(1, 2, 10.0, 5.6)
    style(left, "Precision and recall", "recall", "precision")
    style(right, "F1 against the score threshold", "score threshold", "F1")
    _class_lines(left, curves.recalls, curves.precision_at_recall, np.mean, names)
    _class_lines(right, curves.thresholds, curves.f1, np.max, names)
    if len(labelled):
        mean = curves.f1[labelled].mean(axis=0)
        score = best_threshold(curves)
        best = float(mean[round(score * (len(mean) - 1))])
        right.axvline(score, color=GREY, linewidth=1, linestyle=":")
        right.annotate(
            f"best {best:.2f} at {score:.2f}", (score, 1.0), xytext=(4, 2), textcoords="offset points", fontsize=8
        )
    for axes, title in ((left, "AP50"), (right, "best F1")):
        axes.set(xlim=(0, 1), ylim=(0, 1.05))
        legend(axes, 0.13, title=title, ncols=2)
    save(figure, path)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Plot how often each class (row) was predicted as each class (column): shares of the row as colour, and counts.

    Args:
        matrix: (K + 1, K + 1) counts, background last.
        names: K class names.
        path: the PNG.
    """
    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(min(6.0, 0.9 * count + 1.4), 0.14 * count + 2.5), 20.0)
    figure, axes = new_figure(1, 1, max(10.0, side * 1.1), side)
    axes = axes.item()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    _colour_bar(axes, picture, "share of the row", aspect=40)
    style(axes, "Confusion", "predicted", "true")
    ticks = [short(name) for name in names]
    small = min(10.0, max(7.0, 240 / count))
    every = slice(None, None, -(-count // 130))
    axes.set_xticks(range(count)[every], [*ticks, "missed"][every], rotation=90 if count > 6 else 0, fontsize=small)
    axes.set_yticks(range(count)[every], [*ticks, "nothing there"][every], fontsize=small)
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(visible=False, which="major")
    axes.grid(which="minor", color="#E6E6E6", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    if count <= 26:
        for row, column in np.argwhere(matrix):
            ink = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink, fontsize=small)
    save(figure, path)


def plot_proposal_recall(metrics: ProposalMetrics, path: Path) -> None:
    """Plot recall against IoU at each number of proposals, and its mean (AR) by object size."""
    figure, ((left, right),) = new_figure(1, 2, 10.0, 4.8)
    style(left, "What the proposals cover", "IoU with the object", "recall")
    style(right, "AR by object size", "", "AR (mean recall, IoU .50:.95)")
    sizes = {"all": (metrics.ar, sum(metrics.counts.values()))}
    sizes |= {name: (metrics.ar_by_size[name], count) for name, count in metrics.counts.items() if count}
    tops = [top for top, less in zip(metrics.tops, (0, *metrics.tops), strict=False) if less < max(metrics.most, 1)]
    wide = 0.8 / len(tops)
    for index, (top, recall) in enumerate(zip(tops, metrics.recall, strict=False)):
        ink = SHADES[3 - index % 4]
        label = f"{min(top, metrics.most)} proposals"
        left.plot(metrics.ious, recall, color=ink, marker="o", markersize=3.5, label=label)
        places = np.arange(len(sizes)) + (index - (len(tops) - 1) / 2) * wide
        heights = np.array([ar[index] for ar, _ in sizes.values()])
        right.bar(places, heights, width=wide * 0.92, color=ink)
        for x, height in zip(places, heights, strict=True):
            if np.isfinite(height):
                right.text(x, height + 0.01, f"{height:.2f}".lstrip("0"), ha="center", fontsize=7)
    left.set(xlim=(0.48, 0.97), ylim=(0, 1.02))
    right.set_ylim(0, 1.05)
    objects = {name: f"{count} object{'s' if count != 1 else ''}" for name, (_, count) in sizes.items()}
    right.set_xticks(range(len(sizes)), ["\n".join(pair) for pair in objects.items()])
    legend(left, ncols=4, columnspacing=1.2)
    save(figure, path)


def plot_labels(records: Sequence[Record], names: Sequence[str], path: Path) -> None:
    """Plot statistics of the labels: objects of each class, sizes, positions in the image, and objects per image."""
    figure, grid = new_figure(2, 2, 10.0, 7.2)
    records = records if isinstance(records, Records) else Records(records)
    labels, boxes, each = records.labels, records.boxes, records.counts
    extent = np.repeat(records.sizes[:, ::-1], each, axis=0)
    _class_bars(grid[0, 0], np.bincount(labels, minlength=len(names)), names)
    _sizes(grid[0, 1], boxes[:, 2:] - boxes[:, :2], labels, len(names))
    _positions(grid[1, 0], (boxes[:, :2] + boxes[:, 2:]) / 2 / extent)
    style(grid[1, 1], f"Objects per image: {len(labels)} in {len(records)} images", "objects", "images")
    if len(each):
        step = -(-(int(each.max()) + 1) // 40)
        grid[1, 1].hist(each, bins=np.arange(0, each.max() + 1 + step, step) - 0.5, color=PALETTE[0], rwidth=0.9)
        grid[1, 1].set_xlim(-0.6, max(grid[1, 1].get_xlim()[1], MIN_BARS + 0.6))
        whole_numbers(grid[1, 1].xaxis)
        whole_numbers(grid[1, 1].yaxis)
    save(figure, path)


def _class_bars(axes: "Axes", counts: np.ndarray, names: Sequence[str]) -> None:
    """Plot the objects of each class, most first; if there are many classes, the first and last dozen."""
    order = np.argsort(-counts, kind="stable")
    many = len(order) > 25
    shown = np.concatenate((order[:12], order[-12:])) if many else order
    title = "Objects of each class" + (f" (12 most and 12 fewest of {len(order)})" if many else "")
    style(axes, title, "objects", "")
    axes.grid(visible=False, axis="y")
    inks = [PALETTE[k % len(PALETTE)] for k in shown] if len(order) <= MAX_COLOURS else PALETTE[0]
    axes.barh(range(len(shown)), counts[shown], color=inks)
    for row, count in enumerate(counts[shown]):
        axes.text(count, row, f" {count}", va="center", fontsize=7)
    axes.set_yticks(range(len(shown)), [short(names[int(k)]) for k in shown], fontsize=8 if len(shown) < 16 else 6.5)
    axes.margins(x=0.12)
    axes.set_ylim(max(len(shown), MIN_BARS) - 0.4, -0.6)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.1))
    whole_numbers(axes.xaxis)


def _sizes(axes: "Axes", size: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Plot width against height of every box on logarithmic scales, with the bounds of small and large objects."""
    style(axes, "Sizes (dashed: areas of 32 x 32 and 96 x 96 px)", "width, px", "height, px")
    inks = np.array(PALETTE)[labels % len(PALETTE)] if classes <= MAX_COLOURS else PALETTE[0]
    strength = min(0.6, max(0.1, 500 / max(len(size), 1)))
    axes.scatter(*size.T, s=6, c=inks, alpha=strength, linewidths=0, rasterized=True)
    low = np.clip(np.quantile(size, 0.002) if len(size) else 16.0, 1.0, 16.0)
    high = size.max(initial=128.0)
    side = np.geomspace(low, high, 50)
    for bound in (32, 96):
        axes.plot(side, bound**2 / side, color=GREY, linewidth=1, linestyle="--")
    log_axes(axes, low * 0.9, high * 1.1)


def _positions(axes: "Axes", centres: np.ndarray) -> None:
    """Plot the number of centres in each of 24 x 24 parts of the image."""
    style(axes, "Centres in the image", "x, share of the width", "y, share of the height")
    counts, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], bins=24, range=((0, 1), (0, 1)))
    picture = axes.imshow(counts, cmap="Blues", extent=(0, 1, 1, 0), aspect="auto", vmin=0)
    axes.grid(visible=False)
    whole_numbers(_colour_bar(axes, picture, "objects").ax.yaxis)


def _colour_bar(axes: "Axes", picture: Any, label: str, **looks: Any) -> Any:
    """Add a colour bar."""
    bar = axes.figure.colorbar(picture, ax=axes, pad=0.02, **looks)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar


def _class_lines(
    axes: "Axes", x: np.ndarray, y: np.ndarray, sum_up: Callable[..., np.ndarray], names: Sequence[str]
) -> None:
    """Plot one line per class, (K, S), and their mean, ranked by `sum_up`, whose results are in the legend."""
    value = sum_up(y, axis=1)
    known = np.flatnonzero(np.isfinite(value))
    order = known[np.argsort(-value[known], kind="stable")]
    named = order if len(order) <= MAX_COLOURS else np.concatenate((order[:3], order[-3:]))
    for label in np.setdiff1d(order, named):
        axes.plot(x, y[label], color="#D5D5D5", linewidth=0.7)
    for rank, label in enumerate(named):
        ink = PALETTE[label % len(PALETTE)] if len(order) <= MAX_COLOURS else PALETTE[rank]
        axes.plot(x, y[label], color=ink, linewidth=1.4, label=f"{short(names[int(label)])}  {value[label]:.2f}")
    if len(order) > 1:
        mean = y[order].mean(axis=0)
        text = f"mean of {len(order)}  {sum_up(mean, axis=0):.2f}"
        axes.plot(x, mean, color=INK, linewidth=2.6, label=text)


def _with_later_heads(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add the losses of later heads, such as `train_roi_box_2`, to those of the first head."""
    total = dict(row)
    for name, value in row.items():
        if (later := _LATER.fullmatch(name)) and value is not None and total.get(later[1]) is not None:
            total[later[1]] += value
    return total


def _line(axes: "Axes", rows: Sequence[Mapping[str, Any]], keys: Sequence[str], label: str, color: str) -> None:
    """Plot the first key that each row has against the epoch, unless no row has any of them."""
    points = [(row["epoch"], row[key]) for row in rows for key in keys if row.get(key) is not None]
    if points:
        marker = "o" if len(points) < 30 else ""
        x, y = zip(*points, strict=True)
        axes.plot(x, y, label=label, color=color, linewidth=1.6, marker=marker, markersize=3)
