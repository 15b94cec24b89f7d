"""Pictures of every stage of one image: anchors, labels, samples, objectness, proposals, and the ways of detections."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rcnn.draw import PALETTE, text_colour
from rcnn.insight.figure import INK, new_figure, plain, save
from rcnn.insight.stages.canvas import canvas, frames, legend, truths
from rcnn.insight.stages.follow import Ranked, Stages, counts
from rcnn.insight.stages.ways import draw_ways, ways
from rcnn.model import boxes as box_ops

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITIVE, NEGATIVE = PALETTE[2], PALETTE[3]
MOST_DRAWN = 300
"""Proposals in a picture, the best."""

SCORES = "plasma"
"""Colours of scores, from 0, dark blue, to 1, yellow."""

Panel = Callable[["Axes", Stages], Any]


def draw_stages(stages: Stages, folder: Path) -> list[Path]:
    """Write a picture of each stage, and `overview.png` of all, into a folder; their paths, the overview first."""
    levels = range(len(stages.strides))
    sheets: dict[str, Sequence[Panel]] = {
        "1-anchors": [partial(_cell, level=level) for level in levels],
        "2-labels": [positives, not_trained, negatives],
        "3-samples": [sampled_positives, sampled_negatives],
        "4-objectness": [partial(_objectness, level=level) for level in levels],
        "5-proposals": [before_nms, after_nms],
    }
    first = [picture, cell_anchors]
    training = [positives, sampled] if stages.truth is not None else []
    last = [objectness, before_nms, after_nms, *([detections] if stages.detections is not None else [])]
    if not training:
        sheets = {name: panels for name, panels in sheets.items() if name not in ("2-labels", "3-samples")}
    paths = [_sheet(stages, [*first, *training, *last], folder / "overview.png", scored=True, numbered=True)]
    paths += [_sheet(stages, sheets[name], folder / f"{name}.png", scored=name[0] in "45") for name in sheets]
    if found := ways(stages):
        paths.append(draw_ways(stages, found, folder / "6-ways.png"))
    return paths


def _sheet(
    stages: Stages, panels: Sequence[Panel], path: Path, *, scored: bool = False, numbered: bool = False
) -> Path:
    """Panels side by side, four a row at most, and a bar of colours where scores are drawn."""
    from matplotlib.cm import ScalarMappable

    columns = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    height, width = stages.image.shape[:2]
    wide = {1: 6.0, 2: 4.6, 3: 3.9}.get(columns, 3.3)
    bar = 0.7 if scored else 0.0
    size = (columns * wide + bar, rows * (wide * min(max(height / width, 0.5), 1.6) + 0.4))
    figure, grid = new_figure(rows, columns, *size)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, panel) in enumerate(zip(grid.ravel(), panels, strict=False), start=1):
        panel(axes, stages)
        if numbered:
            axes.set_title(f"{number}. {axes.get_title(loc='left')}", fontsize=9, loc="left", color=INK)
    if scored:
        bar = figure.colorbar(ScalarMappable(cmap=SCORES), ax=grid.ravel().tolist(), shrink=0.8, pad=0.01, aspect=30)
        bar.set_label("objectness", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    save(figure, path)
    return path


def picture(axes: "Axes", stages: Stages) -> None:
    """The image as the network sees it, and its labelled objects."""
    height, width = stages.image.shape[:2]
    objects = "" if stages.truth is None else f", {len(stages.truth.boxes)} objects"
    canvas(axes, stages, f"image: {width} x {height}{objects}", "image")
    if stages.truth is not None and len(stages.truth.boxes):
        frames(axes, stages.truth.boxes, colors="white", linewidths=3)
        truths(axes, stages)


def _middle(stages: Stages) -> tuple[float, float]:
    """Where anchors are shown: the middle of the best known object, else of the image."""
    height, width = stages.image.shape[:2]
    boxes = stages.truth.boxes if stages.truth is not None else stages.anchors[:0]
    if not len(boxes) and stages.detections is not None:
        boxes = stages.detections.boxes
    if not len(boxes):
        return width / 2, height / 2
    x, y = box_ops.centre_size(boxes)[0][box_ops.area(boxes).argmax()].tolist()
    return x, y


def _cell_of(stages: Stages, level: int) -> Tensor:
    """Indices of the anchors of the cell nearest to the place where anchors are shown."""
    first = stages.of_cell(level, 0, 0)[0]
    rows, columns = stages.grids[level]
    own = stages.anchors[first : first + rows * columns * stages.per_cell : stages.per_cell]
    distance = (box_ops.centre_size(own)[0] - torch.tensor(_middle(stages))).square().sum(dim=1)
    cell = int(distance.argmin())
    return stages.of_cell(level, cell // columns, cell % columns)


def cell_anchors(axes: "Axes", stages: Stages) -> None:
    """The anchors of one cell of every level."""
    canvas(axes, stages, f"anchors: {len(stages.anchors):,}, here those of one place")
    for level, stride in enumerate(stages.strides):
        own = stages.anchors[_cell_of(stages, level)]
        frames(axes, own, colors=PALETTE[level % len(PALETTE)], linewidths=1.6, label=f"stride {stride}")
    legend(axes)


def _cell(axes: "Axes", stages: Stages, level: int) -> None:
    """The cells of a level, and the anchors of one."""
    rows, columns = stages.grids[level]
    total = rows * columns * stages.per_cell
    stride = stages.strides[level]
    canvas(axes, stages, f"stride {stride}: {rows} x {columns} cells x {stages.per_cell} = {total:,} anchors")
    first = stages.of_cell(level, 0, 0)[0]
    centres = box_ops.centre_size(stages.anchors[first : first + total : stages.per_cell])[0].numpy()
    axes.scatter(*centres.T, s=min(14.0, stride / 3), c="#444444", linewidths=0, alpha=0.8)
    own = stages.anchors[_cell_of(stages, level)]
    for number, (box, size) in enumerate(zip(own, box_ops.centre_size(own)[1].tolist(), strict=True)):
        ink = PALETTE[number % len(PALETTE)]
        frames(axes, box[None], colors=ink, linewidths=2.2, label=f"{size[0]:.0f} x {size[1]:.0f}")
    reach = stages.anchors[torch.cat([_cell_of(stages, i) for i in range(len(stages.strides))])]
    height, width = stages.image.shape[:2]
    low, high = reach[:, :2].amin(dim=0).clamp(max=0), reach[:, 2:].amax(dim=0)
    axes.set_xlim(max(float(low[0]) - 4, -0.6 * width), min(max(float(high[0]) + 4, width), 1.6 * width))
    axes.set_ylim(min(max(float(high[1]) + 4, height), 1.6 * height), max(float(low[1]) - 4, -0.6 * height))
    legend(axes, title="width x height, px")


def _labelled(axes: "Axes", stages: Stages, label: int, title: str, **looks: Any) -> None:
    """The anchors of a label of training, as boxes."""
    assert stages.truth is not None
    mask = stages.truth.label == label
    canvas(axes, stages, f"{title}: {int(mask.sum()):,}")
    for level, stride in enumerate(stages.strides):
        own = stages.anchors[mask & (stages.levels == level)]
        if len(own):
            ink = PALETTE[level % len(PALETTE)]
            frames(axes, own, colors=ink, label=f"stride {stride}: {len(own):,}", **looks)
    truths(axes, stages)
    legend(axes)


positives = partial(_labelled, label=1, title="positive anchors", linewidths=1.4)
not_trained = partial(_labelled, label=-1, title="not trained", linewidths=0.6, alpha=0.7)


def negatives(axes: "Axes", stages: Stages) -> None:
    """The middles of the anchors that are trained to be background: too many to draw as boxes."""
    assert stages.truth is not None
    mask = stages.truth.label == 0
    canvas(axes, stages, f"negative: {int(mask.sum()):,}, their middles")
    for level, stride in enumerate(stages.strides):
        here = mask & (stages.levels == level)
        centres = box_ops.centre_size(stages.anchors[here])[0].unique(dim=0).numpy()
        ink, label = PALETTE[level % len(PALETTE)], f"stride {stride}: {int(here.sum()):,}"
        axes.scatter(*centres.T, s=1.5 * (level + 1) ** 2, c=ink, linewidths=0, zorder=2 + level, label=label)
    truths(axes, stages)
    legend(axes, framealpha=0.95)


def sampled(axes: "Axes", stages: Stages) -> None:
    """The anchors of one draw."""
    canvas(axes, stages, f"one draw of {counts(stages)['sampled']} anchors for the loss")
    _draw_sampled(axes, stages, 0, linewidths=0.7, alpha=0.7)
    _draw_sampled(axes, stages, 1, linewidths=1.8)
    legend(axes)


def _sampled(axes: "Axes", stages: Stages, label: int, title: str, **looks: Any) -> None:
    """The anchors of one draw that have a label."""
    assert stages.truth is not None
    drawn, every = stages.truth.label[stages.truth.sampled], stages.truth.label
    canvas(axes, stages, f"{title}: {int((drawn == label).sum())} of {int((every == label).sum()):,}")
    _draw_sampled(axes, stages, label, **looks)
    truths(axes, stages)
    legend(axes)


sampled_positives = partial(_sampled, label=1, title="positives in the sample", linewidths=1.6)
sampled_negatives = partial(_sampled, label=0, title="negatives", linewidths=0.8, alpha=0.8)


def _draw_sampled(axes: "Axes", stages: Stages, label: int, **looks: Any) -> None:
    assert stages.truth is not None
    chosen = stages.truth.sampled[stages.truth.label[stages.truth.sampled] == label]
    name, ink = ("positive", POSITIVE) if label else ("negative", NEGATIVE)
    frames(axes, stages.anchors[chosen], colors=ink, label=f"{name}: {len(chosen)}", **looks)


def _heat(stages: Stages, level: int) -> np.ndarray:
    """(rows, columns) highest objectness of the anchors of each cell."""
    rows, columns = stages.grids[level]
    own = stages.objectness[stages.levels == level]
    return own.reshape(rows, columns, stages.per_cell).amax(dim=2).numpy()


def _objectness(axes: "Axes", stages: Stages, level: int) -> None:
    """The objectness map of a level over the image."""
    heat = _heat(stages, level)
    canvas(axes, stages, f"stride {stages.strides[level]}: highest {heat.max():.2f}", "dark")
    _over(axes, stages, heat, stages.strides[level])


def objectness(axes: "Axes", stages: Stages) -> None:
    """The highest objectness of any level at every pixel."""
    height, width = stages.image.shape[:2]
    highest = np.zeros((height, width))
    for level, stride in enumerate(stages.strides):
        own = _heat(stages, level).repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
        np.maximum(highest[: len(own), : own.shape[1]], own, out=highest[: len(own), : own.shape[1]])
    canvas(axes, stages, "objectness: highest of all levels", "dark")
    _over(axes, stages, highest, 1)


def _over(axes: "Axes", stages: Stages, heat: np.ndarray, stride: int) -> None:
    """A map of cells of `stride` pixels over the image, the clearer the lower it is."""
    extent = (0, heat.shape[1] * stride, heat.shape[0] * stride, 0)
    looks: dict[str, Any] = {"cmap": SCORES, "vmin": 0, "vmax": 1, "extent": extent, "interpolation": "nearest"}
    axes.imshow(heat, alpha=0.15 + 0.7 * heat, **looks)
    height, width = stages.image.shape[:2]
    axes.set(xlim=(0, width), ylim=(height, 0))


def before_nms(axes: "Axes", stages: Stages) -> None:
    """The best decoded boxes of every level."""
    total = len(stages.before.boxes)
    shown = f", best {MOST_DRAWN} drawn" if total > MOST_DRAWN else ""
    _scored(axes, stages, f"before NMS: {total:,} boxes{shown}", stages.before)


def after_nms(axes: "Axes", stages: Stages) -> None:
    """The proposals."""
    _scored(axes, stages, f"after NMS: {len(stages.proposals.boxes):,} proposals", stages.proposals)


def _scored(axes: "Axes", stages: Stages, title: str, ranked: Ranked) -> None:
    """Boxes in the colours of their scores, the best on top."""
    from matplotlib.colors import Normalize

    canvas(axes, stages, title, "dark")
    order = torch.arange(min(len(ranked.boxes), MOST_DRAWN)).flip(0)
    lines = frames(axes, ranked.boxes[order], cmap=SCORES, norm=Normalize(0, 1), linewidths=1.0)
    lines.set_array(ranked.scores[order].numpy())


def detections(axes: "Axes", stages: Stages) -> None:
    """The final boxes."""
    assert stages.detections is not None
    found = stages.detections
    canvas(axes, stages, f"detections: {len(found.boxes)}", "image")
    for box, score, label in zip(found.boxes, found.scores.tolist(), found.classes.tolist(), strict=True):
        ink = PALETTE[label % len(PALETTE)]
        frames(axes, box[None], colors=ink, linewidths=2.2)
        looks: dict[str, Any] = {"facecolor": ink, "edgecolor": "none", "pad": 1.5}
        high = float(box[1]) < 0.06 * stages.image.shape[0]  # no room above: the tag goes below
        place: dict[str, Any] = {"va": "top"} if high else {"va": "bottom"}
        text = f"{plain(stages.names[label])} {score:.2f}"
        y = float(box[3 if high else 1])
        axes.text(float(box[0]), y, text, fontsize=7, color=text_colour(ink), bbox=looks, clip_on=True, **place)
