"""Pictures of every stage of one image: anchors, labels, samples, objectness, proposals, and the ways of detections."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rcnn.diagnose.explain.canvas import canvas, frames, legend, truths
from rcnn.diagnose.explain.follow import Ranked, Walkthrough, counts
from rcnn.diagnose.explain.ways import draw_ways, ways
from rcnn.draw import PALETTE, text_colour
from rcnn.model import boxes as box_ops
from rcnn.plots.figure import INK, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITIVE, NEGATIVE = PALETTE[2], PALETTE[3]
MOST_DRAWN = 300
"""Number of proposals in a picture, the best ones."""

MOST_NAMED = 12
"""Number of detections with a name; more would hide each other."""

SCORES = "plasma"
"""Colours of scores, from 0, dark blue, to 1, yellow."""

Panel = Callable[["Axes", Walkthrough], Any]


def draw_stages(walk: Walkthrough, folder: Path) -> list[Path]:
    """Write a picture of each stage, and `overview.png` of all, into a folder; their paths, the overview first."""
    levels = range(len(walk.strides))
    sheets: dict[str, Sequence[Panel]] = {"anchors": [partial(_cell, level=level) for level in levels]}
    if walk.truth is not None:
        sheets |= {"labels": [positives, not_trained, negatives], "samples": [sampled_positives, sampled_negatives]}
    sheets["objectness"] = [partial(_objectness, level=level) for level in levels]
    sheets["proposals"] = [before_nms, after_nms]
    first = [picture, cell_anchors]
    training = [positives, sampled] if walk.truth is not None else []
    last = [objectness, before_nms, after_nms, *([detections] if walk.detections is not None else [])]
    paths = [_sheet(walk, [*first, *training, *last], folder / "overview.png", scored=True, numbered=True)]
    for number, (name, panels) in enumerate(sheets.items(), start=1):
        scored = name in ("objectness", "proposals")
        paths.append(_sheet(walk, panels, folder / f"{number}-{name}.png", scored=scored))
    if traced := ways(walk):
        paths.append(draw_ways(walk, traced, folder / f"{len(sheets) + 1}-ways.png"))
    return paths


def _sheet(
    walk: Walkthrough, panels: Sequence[Panel], path: Path, *, scored: bool = False, numbered: bool = False
) -> Path:
    """Draw panels side by side, at most four per row, with a colour bar if scores are drawn."""
    from matplotlib.cm import ScalarMappable

    columns = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    height, width = walk.image.shape[:2]
    wide = {1: 6.0, 2: 4.6, 3: 3.9}.get(columns, 3.3)
    bar = 0.7 if scored else 0.0
    size = (columns * wide + bar, rows * (wide * min(max(height / width, 0.5), 1.6) + 0.4))
    figure, grid = new_figure(rows, columns, *size)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, panel) in enumerate(zip(grid.ravel(), panels, strict=False), start=1):
        panel(axes, walk)
        if numbered:
            axes.set_title(f"{number}. {axes.get_title(loc='left')}", fontsize=9, loc="left", color=INK)
    if scored:
        bar = figure.colorbar(ScalarMappable(cmap=SCORES), ax=grid.ravel().tolist(), shrink=0.8, pad=0.01, aspect=30)
        bar.set_label("objectness", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    save(figure, path)
    return path


def picture(axes: "Axes", walk: Walkthrough) -> None:
    """The image as the network sees it, and its labelled objects."""
    height, width = walk.image.shape[:2]
    objects = "" if walk.truth is None else f", {len(walk.truth.boxes)} objects"
    canvas(axes, walk, f"image: {width} x {height}{objects}", "image")
    if walk.truth is not None and len(walk.truth.boxes):
        frames(axes, walk.truth.boxes, colors="white", linewidths=3)
        truths(axes, walk)


def _middle(walk: Walkthrough) -> tuple[float, float]:
    """Return where anchors are shown: the middle of the best known object, else of the image."""
    height, width = walk.image.shape[:2]
    boxes = walk.truth.boxes if walk.truth is not None else walk.anchors[:0]
    if not len(boxes) and walk.detections is not None:
        boxes = walk.detections.boxes
    if not len(boxes):
        return width / 2, height / 2
    x, y = box_ops.centre_size(boxes)[0][box_ops.area(boxes).argmax()].tolist()
    return x, y


def _cell_of(walk: Walkthrough, level: int) -> Tensor:
    """Indices of the anchors of the cell nearest to the place where anchors are shown."""
    first = walk.of_cell(level, 0, 0)[0]
    rows, columns = walk.grids[level]
    own = walk.anchors[first : first + rows * columns * walk.per_cell : walk.per_cell]
    distance = (box_ops.centre_size(own)[0] - torch.tensor(_middle(walk))).square().sum(dim=1)
    cell = int(distance.argmin())
    return walk.of_cell(level, cell // columns, cell % columns)


def cell_anchors(axes: "Axes", walk: Walkthrough) -> None:
    """The anchors of one cell of every level."""
    canvas(axes, walk, f"anchors: {len(walk.anchors):,}, here those of one place")
    for level, stride in enumerate(walk.strides):
        own = walk.anchors[_cell_of(walk, level)]
        frames(axes, own, colors=PALETTE[level % len(PALETTE)], linewidths=1.6, label=f"stride {stride}")
    legend(axes)


def _cell(axes: "Axes", walk: Walkthrough, level: int) -> None:
    """The cells of a level, and the anchors of one."""
    rows, columns = walk.grids[level]
    total = rows * columns * walk.per_cell
    stride = walk.strides[level]
    canvas(axes, walk, f"stride {stride}: {rows} x {columns} cells x {walk.per_cell} = {total:,} anchors")
    first = walk.of_cell(level, 0, 0)[0]
    centres = box_ops.centre_size(walk.anchors[first : first + total : walk.per_cell])[0].numpy()
    axes.scatter(*centres.T, s=min(14.0, stride / 3), c="#444444", linewidths=0, alpha=0.8)
    own = walk.anchors[_cell_of(walk, level)]
    for number, (box, size) in enumerate(zip(own, box_ops.centre_size(own)[1].tolist(), strict=True)):
        ink = PALETTE[number % len(PALETTE)]
        frames(axes, box[None], colors=ink, linewidths=2.2, label=f"{size[0]:.0f} x {size[1]:.0f}")
    reach = walk.anchors[torch.cat([_cell_of(walk, i) for i in range(len(walk.strides))])]
    height, width = walk.image.shape[:2]
    low, high = reach[:, :2].amin(dim=0).clamp(max=0), reach[:, 2:].amax(dim=0)
    axes.set_xlim(max(float(low[0]) - 4, -0.6 * width), min(max(float(high[0]) + 4, width), 1.6 * width))
    axes.set_ylim(min(max(float(high[1]) + 4, height), 1.6 * height), max(float(low[1]) - 4, -0.6 * height))
    legend(axes, title="width x height, px")


def _labelled(axes: "Axes", walk: Walkthrough, label: int, title: str, **looks: Any) -> None:
    """The anchors of a label of training, as boxes."""
    assert walk.truth is not None
    mask = walk.truth.label == label
    canvas(axes, walk, f"{title}: {int(mask.sum()):,}")
    for level, stride in enumerate(walk.strides):
        own = walk.anchors[mask & (walk.levels == level)]
        if len(own):
            ink = PALETTE[level % len(PALETTE)]
            frames(axes, own, colors=ink, label=f"stride {stride}: {len(own):,}", **looks)
    truths(axes, walk)
    legend(axes)


positives = partial(_labelled, label=1, title="positive anchors", linewidths=1.4)
not_trained = partial(_labelled, label=-1, title="not trained", linewidths=0.6, alpha=0.7)


def negatives(axes: "Axes", walk: Walkthrough) -> None:
    """The centres of the anchors that are trained to be background, which are too many to draw as boxes."""
    assert walk.truth is not None
    mask = walk.truth.label == 0
    canvas(axes, walk, f"negative: {int(mask.sum()):,}, their middles")
    for level, stride in enumerate(walk.strides):
        here = mask & (walk.levels == level)
        centres = box_ops.centre_size(walk.anchors[here])[0].unique(dim=0).numpy()
        ink, label = PALETTE[level % len(PALETTE)], f"stride {stride}: {int(here.sum()):,}"
        axes.scatter(*centres.T, s=1.5 * (level + 1) ** 2, c=ink, linewidths=0, zorder=2 + level, label=label)
    truths(axes, walk)
    legend(axes, framealpha=0.95)


def sampled(axes: "Axes", walk: Walkthrough) -> None:
    """The anchors of one draw."""
    canvas(axes, walk, f"one draw of {counts(walk)['sampled']} anchors for the loss")
    _draw_sampled(axes, walk, 0, linewidths=0.7, alpha=0.7)
    _draw_sampled(axes, walk, 1, linewidths=1.8)
    legend(axes)


def _sampled(axes: "Axes", walk: Walkthrough, label: int, title: str, **looks: Any) -> None:
    """The anchors of one draw that have a label."""
    assert walk.truth is not None
    drawn, every = walk.truth.label[walk.truth.sampled], walk.truth.label
    canvas(axes, walk, f"{title}: {int((drawn == label).sum())} of {int((every == label).sum()):,}")
    _draw_sampled(axes, walk, label, **looks)
    truths(axes, walk)
    legend(axes)


sampled_positives = partial(_sampled, label=1, title="positives in the sample", linewidths=1.6)
sampled_negatives = partial(_sampled, label=0, title="negatives", linewidths=0.8, alpha=0.8)


def _draw_sampled(axes: "Axes", walk: Walkthrough, label: int, **looks: Any) -> None:
    assert walk.truth is not None
    chosen = walk.truth.sampled[walk.truth.label[walk.truth.sampled] == label]
    name, ink = ("positive", POSITIVE) if label else ("negative", NEGATIVE)
    frames(axes, walk.anchors[chosen], colors=ink, label=f"{name}: {len(chosen)}", **looks)


def _heat(walk: Walkthrough, level: int) -> np.ndarray:
    """(rows, columns) highest objectness of the anchors of each cell."""
    rows, columns = walk.grids[level]
    own = walk.objectness[walk.levels == level]
    return own.reshape(rows, columns, walk.per_cell).amax(dim=2).numpy()


def _objectness(axes: "Axes", walk: Walkthrough, level: int) -> None:
    """The objectness map of a level over the image."""
    heat = _heat(walk, level)
    canvas(axes, walk, f"stride {walk.strides[level]}: highest {heat.max():.2f}", "dark")
    _over(axes, walk, heat, walk.strides[level])


def objectness(axes: "Axes", walk: Walkthrough) -> None:
    """The highest objectness of any level at every pixel."""
    height, width = walk.image.shape[:2]
    highest = np.zeros((height, width))
    for level, stride in enumerate(walk.strides):
        own = _heat(walk, level).repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
        np.maximum(highest[: len(own), : own.shape[1]], own, out=highest[: len(own), : own.shape[1]])
    canvas(axes, walk, "objectness: highest of all levels", "dark")
    _over(axes, walk, highest, 1)


def _over(axes: "Axes", walk: Walkthrough, heat: np.ndarray, stride: int) -> None:
    """A map of cells of `stride` pixels over the image, the clearer the lower it is."""
    extent = (0, heat.shape[1] * stride, heat.shape[0] * stride, 0)
    looks: dict[str, Any] = {"cmap": SCORES, "vmin": 0, "vmax": 1, "extent": extent, "interpolation": "nearest"}
    axes.imshow(heat, alpha=0.15 + 0.7 * heat, **looks)
    height, width = walk.image.shape[:2]
    axes.set(xlim=(0, width), ylim=(height, 0))


def before_nms(axes: "Axes", walk: Walkthrough) -> None:
    """The best decoded boxes of every level."""
    total = len(walk.before.boxes)
    shown = f", best {MOST_DRAWN} drawn" if total > MOST_DRAWN else ""
    _scored(axes, walk, f"before NMS: {total:,} boxes{shown}", walk.before)


def after_nms(axes: "Axes", walk: Walkthrough) -> None:
    """The proposals."""
    _scored(axes, walk, f"after NMS: {len(walk.proposals.boxes):,} proposals", walk.proposals)


def _scored(axes: "Axes", walk: Walkthrough, title: str, ranked: Ranked) -> None:
    """Boxes in the colours of their scores, the best on top."""
    from matplotlib.colors import Normalize

    canvas(axes, walk, title, "dark")
    order = torch.arange(min(len(ranked.boxes), MOST_DRAWN)).flip(0)
    lines = frames(axes, ranked.boxes[order], cmap=SCORES, norm=Normalize(0, 1), linewidths=1.0)
    lines.set_array(ranked.scores[order].numpy())


def detections(axes: "Axes", walk: Walkthrough) -> None:
    """The final boxes, the best ones with their names."""
    assert walk.detections is not None
    final = walk.detections
    canvas(axes, walk, f"detections: {len(final.boxes)}", "image")
    rows = zip(final.boxes, final.scores.tolist(), final.classes.tolist(), strict=True)
    for number, (box, score, label) in enumerate(rows):
        ink = PALETTE[label % len(PALETTE)]
        frames(axes, box[None], colors=ink, linewidths=2.2)
        if number >= MOST_NAMED:
            continue
        looks: dict[str, Any] = {"facecolor": ink, "edgecolor": "none", "pad": 1.5}
        high = float(box[1]) < 0.06 * walk.image.shape[0]  # no room above: the tag goes below
        place: dict[str, Any] = {"va": "top"} if high else {"va": "bottom"}
        text = f"{plain(walk.names[label])} {score:.2f}"
        y = float(box[3 if high else 1])
        axes.text(float(box[0]), y, text, fontsize=7, color=text_colour(ink), bbox=looks, clip_on=True, **place)
