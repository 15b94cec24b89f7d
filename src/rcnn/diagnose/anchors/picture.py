"""The picture of `rcnn anchors`: shapes of objects and anchors, and the best IoU of every object."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rcnn.config import Anchors
from rcnn.diagnose.anchors.fit import TruthBoxes
from rcnn.diagnose.anchors.study import Coverage
from rcnn.draw import PALETTE
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.plots.figure import GREY, INK, legend, log_axes, new_figure, save, style, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INKS = {"now": PALETTE[3], "fitted": PALETTE[0]}
MARKS = {"now": "s", "fitted": "o"}
MAX_DOTS = 5000


def plot_anchors(objects: TruthBoxes, rules: dict[str, Coverage], limits: tuple[float, float], path: Path) -> None:
    """Draw width and height of objects and anchors, and the best IoU of every object under each rule.

    Args:
        objects: at least one.
        rules: coverages named `now` and `fitted`.
        limits: IoU below which an anchor is negative, and from which it is positive.
        path: the PNG.
    """
    figure, ((left, right),) = new_figure(1, 2, 11.0, 5.6)
    _shapes(left, objects, {name: coverage.anchors for name, coverage in rules.items()})
    style(right, "Best IoU of every object with the grid of anchors", "IoU with its best anchor", "objects")
    edges = np.linspace(0, 1, 41)
    for name, coverage in rules.items():
        label = f"{name}: mean {float(coverage.iou.mean()):.3f}"
        right.hist(coverage.iou.numpy(), bins=edges, color=INKS[name], alpha=0.22)
        right.hist(coverage.iou.numpy(), bins=edges, histtype="step", color=INKS[name], linewidth=1.8, label=label)
    high = right.get_ylim()[1]
    for limit, text, side in ((limits[0], "under: negative", "right"), (limits[1], "from here: positive", "left")):
        right.axvline(limit, color=GREY, linewidth=1, linestyle="--")
        shift = (-3 if side == "right" else 3, 0)
        looks = {"textcoords": "offset points", "ha": side, "fontsize": 8, "color": INK}
        right.annotate(text, (limit, high * 1.04), xytext=shift, **looks)
    right.set(xlim=(0, 1), ylim=(0, high * 1.12))
    whole_numbers(right.yaxis)
    legend(right, ncols=2)
    save(figure, path)


def _shapes(axes: "Axes", objects: TruthBoxes, rules: dict[str, Anchors]) -> None:
    """Draw width against height on equal logarithmic scales; marks of anchors are larger on coarser levels."""
    style(axes, "Shapes of objects and anchors, pixels of the resized image", "width, px", "height, px")
    size = box_ops.centre_size(objects.boxes)[1]
    dots = size[torch.linspace(0, len(size) - 1, min(len(size), MAX_DOTS)).long()].numpy()
    strength = min(0.6, max(0.12, 500 / len(dots)))
    count = f"{len(size):,} objects"
    axes.scatter(*dots.T, s=7, c=GREY, alpha=strength, linewidths=0, rasterized=True, label=count)
    low, high = np.quantile(dots, (0.002, 1.0))
    for name, rule in rules.items():
        for level in range(len(rule.sizes)):
            shape = 2 * anchor_ops.cell_anchors(rule, level)[:, 2:].numpy()
            low, high = min(low, shape.min()), max(high, shape.max())
            axes.scatter(
                *shape.T,
                s=36 + 30 * level,
                marker=MARKS[name],
                facecolors="none",
                edgecolors=INKS[name],
                linewidths=1.8,
                label=f"anchors {name}" if level == 0 else None,
            )
    log_axes(axes, low * 0.8, high * 1.25)
    axes.set_aspect("equal")
    legend(axes, ncols=3)
