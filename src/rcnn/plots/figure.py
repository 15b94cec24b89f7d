"""Common parts of the plots: figures without global state, their style, and saving them."""

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#9A9A9A"
TICKS = tuple(2**power for power in range(1, 12))
LEGEND: dict[str, Any] = {"fontsize": 8, "title_fontsize": 8, "framealpha": 0.85, "edgecolor": "none"}


def new_figure(rows: int, columns: int, width: float, height: float, **grid: Any) -> tuple["Figure", np.ndarray]:
    """Make a figure, sized in units of 100 px, and its (rows, columns) axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **grid))


def style(axes: "Axes", title: str, x: str = "", y: str = "") -> None:
    """Set title, axis labels and the common style of a plot."""
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", color=INK)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#ECECEC", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: "Axes", depth: float = 0.16, **looks: Any) -> None:
    """Add a legend below the axes, where it covers nothing, if any line has a label.

    `depth` is the space for ticks and axis labels between axes and legend, as a share of the height of the axes.
    """
    if axes.get_legend_handles_labels()[1]:
        position = {"loc": "upper center", "bbox_to_anchor": (0.5, -depth), "borderaxespad": 0.0}
        axes.legend(**{**LEGEND, **position, **looks})


def whole_numbers(axis: "Axis") -> None:
    """Set the ticks of an axis of counts to integers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))


def log_axes(axes: "Axes", low: float, high: float) -> None:
    """Make both axes logarithmic from `low` to `high`, with powers of two as ticks."""
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)


def plain(text: str) -> str:
    """Escape text for matplotlib, in which `$` starts a formula and a leading `_` hides the text in a legend."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def short(name: str) -> str:
    """Shorten a class name to at most 22 letters, as `plain` text."""
    return plain(name if len(name) <= 22 else name[:21] + ".")


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    partial, encoded = path.with_name(f".{path.name}.part"), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # characters that the font lacks are drawn as boxes
        FigureCanvasAgg(figure).print_png(encoded)  # `savefig` would draw the figure once more for its layout
    partial.write_bytes(encoded.getbuffer())  # Pillow would not notice a full disk
    os.replace(partial, path)
