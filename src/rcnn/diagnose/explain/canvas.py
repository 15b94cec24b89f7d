"""Drawing tools for the pictures of the stages: the image, frames of boxes, labelled objects, legends."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from rcnn.diagnose.explain.follow import Walkthrough
from rcnn.plots import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH = "#111111"
Ground = Literal["image", "light", "dark"]


def canvas(axes: "Axes", walk: Walkthrough, title: str, ground: Ground = "light") -> None:
    """Draw the image, or a faint grey version on which drawings stand out."""
    height, width = walk.image.shape[:2]
    image = walk.image
    if ground != "image":
        grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
        image = (grey * 0.4 if ground == "dark" else 255 - (255 - grey) * 0.5).astype(np.uint8)
    axes.imshow(image, extent=(0, width, height, 0), interpolation="bilinear", zorder=0)
    axes.set_title(title, fontsize=9, loc="left", color=figure.INK)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.spines[:].set_color("#BBBBBB")


def frames(axes: "Axes", boxes: Tensor, **looks: Any) -> Any:
    """Frames of (n, 4) boxes as one collection."""
    from matplotlib.collections import LineCollection

    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2).numpy()
    lines = LineCollection(list(corners), capstyle="projecting", **looks)
    axes.add_collection(lines, autolim=False)
    return lines


def legend(axes: "Axes", **looks: Any) -> None:
    """Add a small legend below the picture if anything is labelled."""
    figure.legend(axes, 0.03, **{"ncols": 2, "columnspacing": 1.2, "handlelength": 1.4, "fontsize": 7.5, **looks})


def truths(axes: "Axes", walk: Walkthrough) -> None:
    """Dotted frames around the labelled objects."""
    if walk.truth is not None and len(walk.truth.boxes):
        frames(axes, walk.truth.boxes, colors=TRUTH, linewidths=2.2, linestyles="dotted", label="object")
