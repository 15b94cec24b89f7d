"""Pictures of every step of one image: anchors, labels, samples, objectness, proposals, and origins of detections."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from rcnn.diagnose.explain.follow import Explanation, Origin, RankedBoxes
from rcnn.draw import PALETTE, text_colour
from rcnn.model import boxes as box_ops
from rcnn.plots import figure
from rcnn.plots.figure import INK, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORIGIN = {"anchor": "#7B3294", "proposal": PALETTE[1], "box": PALETTE[0]}
"""The boxes of a detection's origin and their colours."""
STAGES = (PALETTE[2], PALETTE[4], PALETTE[5], PALETTE[6])
"""Colours of the boxes between the heads of a second stage with several."""

MAX_PROPOSALS = 300
"""Largest number of proposals in a picture; the best are drawn."""

MAX_NAMES = 12
"""Largest number of detections with a name; more names would overlap."""

MAX_ORIGINS = 8
"""Largest number of detections whose origins are drawn, best first."""

SCORES = "plasma"
"""Colours of scores, from 0, dark blue, to 1, yellow."""

Panel = Callable[["Axes", Explanation], Any]


def draw_explanation(explanation: Explanation, folder: Path) -> list[Path]:
    """Write a picture of each step and `overview.png` of all into a folder; return their paths, the overview first."""
    levels = range(len(explanation.strides))
    labelled, has_detections = explanation.truth is not None, explanation.detections is not None
    sheets: dict[str, Sequence[Panel]] = {"anchors": [partial(_cell, level=level) for level in levels]}
    if labelled:
        sheets |= {"labels": [positives, not_trained, negatives], "samples": [sampled_positives, sampled_negatives]}
    sheets["objectness"] = [partial(_objectness, level=level) for level in levels]
    sheets["proposals"] = [before_nms, after_nms]
    overview = [picture, cell_anchors, *([positives, sampled] if labelled else [])]
    overview += [objectness, before_nms, after_nms, *([detections] if has_detections else [])]
    paths = [_sheet(explanation, overview, folder / "overview.png", scored=True, numbered=True)]
    for number, (name, panels) in enumerate(sheets.items(), start=1):
        scored = name in ("objectness", "proposals")
        paths.append(_sheet(explanation, panels, folder / f"{number}-{name}.png", scored=scored))
    if origins := explanation.origins():
        paths.append(draw_origins(explanation, origins[:MAX_ORIGINS], folder / f"{len(sheets) + 1}-ways.png"))
    return paths


def _sheet(
    explanation: Explanation, panels: Sequence[Panel], path: Path, *, scored: bool = False, numbered: bool = False
) -> Path:
    """Draw panels side by side, at most four per row, with a colour bar if scores are drawn."""
    from matplotlib.cm import ScalarMappable

    columns = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    height, width = explanation.image.shape[:2]
    wide = {1: 6.0, 2: 4.6, 3: 3.9}.get(columns, 3.3)
    bar = 0.7 if scored else 0.0
    size = (columns * wide + bar, rows * (wide * min(max(height / width, 0.5), 1.6) + 0.4))
    page, grid = new_figure(rows, columns, *size)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, panel) in enumerate(zip(grid.ravel(), panels, strict=False), start=1):
        panel(axes, explanation)
        if numbered:
            axes.set_title(f"{number}. {axes.get_title(loc='left')}", fontsize=9, loc="left", color=INK)
    if scored:
        bar = page.colorbar(ScalarMappable(cmap=SCORES), ax=grid.ravel().tolist(), shrink=0.8, pad=0.01, aspect=30)
        bar.set_label("objectness", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    save(page, path)
    return path


def _background(
    axes: "Axes", explanation: Explanation, title: str, ground: Literal["image", "light", "dark"] = "light"
) -> None:
    """Draw the image, or a faint grey version on which drawings stand out."""
    height, width = explanation.image.shape[:2]
    image = explanation.image
    if ground != "image":
        grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
        image = (grey * 0.4 if ground == "dark" else 255 - (255 - grey) * 0.5).astype(np.uint8)
    axes.imshow(image, extent=(0, width, height, 0), interpolation="bilinear", zorder=0)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    axes.spines[:].set_color("#BBBBBB")


def _frames(axes: "Axes", boxes: Tensor, **looks: Any) -> Any:
    """Draw frames of (n, 4) boxes as one collection."""
    from matplotlib.collections import LineCollection

    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2).numpy()
    lines = LineCollection(list(corners), capstyle="projecting", **looks)
    axes.add_collection(lines, autolim=False)
    return lines


def _legend(axes: "Axes", **looks: Any) -> None:
    """Add a small legend below the picture if anything is labelled."""
    figure.legend(axes, 0.03, **{"ncols": 2, "columnspacing": 1.2, "handlelength": 1.4, "fontsize": 7.5, **looks})


def _truths(axes: "Axes", explanation: Explanation, *, outlined: bool = False) -> None:
    """Draw dotted frames around the labelled objects, with white outlines if `outlined`."""
    if explanation.truth is not None and len(explanation.truth.boxes):
        if outlined:
            _frames(axes, explanation.truth.boxes, colors="white", linewidths=3)
        looks = {"linewidths": 2.2, "linestyles": "dotted", "label": "object"}
        _frames(axes, explanation.truth.boxes, colors="#111111", **looks)


def picture(axes: "Axes", explanation: Explanation) -> None:
    """Draw the image as the network sees it, and its labelled objects."""
    height, width = explanation.image.shape[:2]
    objects = "" if explanation.truth is None else f", {len(explanation.truth.boxes)} objects"
    _background(axes, explanation, f"image: {width} x {height}{objects}", "image")
    _truths(axes, explanation, outlined=True)


def _shown_cell(explanation: Explanation, level: int) -> Tensor:
    """Return the anchors of the cell nearest to the centre of the largest known object, or of the image without any."""
    height, width = explanation.image.shape[:2]
    boxes = explanation.truth.boxes if explanation.truth is not None else explanation.anchors[:0]
    if not len(boxes) and explanation.detections is not None:
        boxes = explanation.detections.boxes
    middle = torch.tensor((width / 2, height / 2))
    if len(boxes):
        middle = box_ops.centre_size(boxes)[0][box_ops.area(boxes).argmax()]
    distance = (_centres(explanation, level) - middle).square().sum(dim=1)
    return explanation.anchors_of(level, *divmod(int(distance.argmin()), explanation.grids[level][1]))


def _centres(explanation: Explanation, level: int) -> Tensor:
    """Return (cells, 2) the centres of the cells of a level."""
    own = explanation.anchors[explanation.levels == level][:: explanation.per_cell]
    return box_ops.centre_size(own)[0]


def cell_anchors(axes: "Axes", explanation: Explanation) -> None:
    """Draw the anchors of one cell of every level."""
    _background(axes, explanation, f"anchors: {len(explanation.anchors):,}, here those of one place")
    for level, stride in enumerate(explanation.strides):
        own = explanation.anchors[_shown_cell(explanation, level)]
        _frames(axes, own, colors=PALETTE[level % len(PALETTE)], linewidths=1.6, label=f"stride {stride}")
    _legend(axes)


def _cell(axes: "Axes", explanation: Explanation, level: int) -> None:
    """Draw the cells of a level, and the anchors of one."""
    rows, columns = explanation.grids[level]
    stride, per_cell = explanation.strides[level], explanation.per_cell
    total = rows * columns * per_cell
    _background(axes, explanation, f"stride {stride}: {rows} x {columns} cells x {per_cell} = {total:,} anchors")
    centres = _centres(explanation, level).numpy()
    axes.scatter(*centres.T, s=min(14.0, stride / 3), c="#444444", linewidths=0, alpha=0.8)
    own = explanation.anchors[_shown_cell(explanation, level)]
    for number, (box, size) in enumerate(zip(own, box_ops.centre_size(own)[1].tolist(), strict=True)):
        ink = PALETTE[number % len(PALETTE)]
        _frames(axes, box[None], colors=ink, linewidths=2.2, label=f"{size[0]:.0f} x {size[1]:.0f}")
    reach = explanation.anchors[torch.cat([_shown_cell(explanation, i) for i in range(len(explanation.strides))])]
    height, width = explanation.image.shape[:2]
    low, high = reach[:, :2].amin(dim=0).clamp(max=0), reach[:, 2:].amax(dim=0)
    axes.set_xlim(max(float(low[0]) - 4, -0.6 * width), min(max(float(high[0]) + 4, width), 1.6 * width))
    axes.set_ylim(min(max(float(high[1]) + 4, height), 1.6 * height), max(float(low[1]) - 4, -0.6 * height))
    _legend(axes, title="width x height, px")


def _labelled(axes: "Axes", explanation: Explanation, label: int, title: str, **looks: Any) -> None:
    """Draw the anchors of a training label as boxes."""
    assert explanation.truth is not None
    mask = explanation.truth.label == label
    _background(axes, explanation, f"{title}: {int(mask.sum()):,}")
    for level, stride in enumerate(explanation.strides):
        own = explanation.anchors[mask & (explanation.levels == level)]
        if len(own):
            ink = PALETTE[level % len(PALETTE)]
            _frames(axes, own, colors=ink, label=f"stride {stride}: {len(own):,}", **looks)
    _truths(axes, explanation)
    _legend(axes)


positives = partial(_labelled, label=1, title="positive anchors", linewidths=1.4)
not_trained = partial(_labelled, label=-1, title="not trained", linewidths=0.6, alpha=0.7)


def negatives(axes: "Axes", explanation: Explanation) -> None:
    """Draw the centres of the anchors that are trained to be background, which are too many to draw as boxes."""
    assert explanation.truth is not None
    mask = explanation.truth.label == 0
    _background(axes, explanation, f"negative: {int(mask.sum()):,}, their middles")
    for level, stride in enumerate(explanation.strides):
        own = mask & (explanation.levels == level)
        centres = box_ops.centre_size(explanation.anchors[own])[0].unique(dim=0).numpy()
        ink, label = PALETTE[level % len(PALETTE)], f"stride {stride}: {int(own.sum()):,}"
        axes.scatter(*centres.T, s=1.5 * (level + 1) ** 2, c=ink, linewidths=0, zorder=2 + level, label=label)
    _truths(axes, explanation)
    _legend(axes, framealpha=0.95)


def sampled(axes: "Axes", explanation: Explanation) -> None:
    """Draw the anchors sampled for one step of training."""
    assert explanation.truth is not None
    _background(axes, explanation, f"one draw of {len(explanation.truth.sampled)} anchors for the loss")
    _draw_sampled(axes, explanation, 0, linewidths=0.7, alpha=0.7)
    _draw_sampled(axes, explanation, 1, linewidths=1.8)
    _legend(axes)


def _sampled(axes: "Axes", explanation: Explanation, label: int, title: str, **looks: Any) -> None:
    """Draw the anchors of one draw that have a label."""
    assert explanation.truth is not None
    labels, sampled = explanation.truth.label, explanation.truth.label[explanation.truth.sampled]
    _background(axes, explanation, f"{title}: {int((sampled == label).sum())} of {int((labels == label).sum()):,}")
    _draw_sampled(axes, explanation, label, **looks)
    _truths(axes, explanation)
    _legend(axes)


sampled_positives = partial(_sampled, label=1, title="positives in the sample", linewidths=1.6)
sampled_negatives = partial(_sampled, label=0, title="negatives", linewidths=0.8, alpha=0.8)


def _draw_sampled(axes: "Axes", explanation: Explanation, label: int, **looks: Any) -> None:
    assert explanation.truth is not None
    chosen = explanation.truth.sampled[explanation.truth.label[explanation.truth.sampled] == label]
    name, ink = ("positive", PALETTE[2]) if label else ("negative", PALETTE[3])
    _frames(axes, explanation.anchors[chosen], colors=ink, label=f"{name}: {len(chosen)}", **looks)


def _heat(explanation: Explanation, level: int) -> np.ndarray:
    """Return (rows, columns) the highest objectness of the anchors of each cell."""
    own = explanation.objectness[explanation.levels == level]
    return own.reshape(*explanation.grids[level], explanation.per_cell).amax(dim=2).numpy()


def _objectness(axes: "Axes", explanation: Explanation, level: int) -> None:
    """Draw the objectness map of a level over the image."""
    heat = _heat(explanation, level)
    title = f"stride {explanation.strides[level]}: highest {heat.max():.2f}"
    _overlay(axes, explanation, title, heat, explanation.strides[level])


def objectness(axes: "Axes", explanation: Explanation) -> None:
    """Draw the highest objectness of any level at every pixel."""
    height, width = explanation.image.shape[:2]
    highest = np.zeros((height, width))
    for level, stride in enumerate(explanation.strides):
        own = _heat(explanation, level).repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
        np.maximum(highest[: len(own), : own.shape[1]], own, out=highest[: len(own), : own.shape[1]])
    _overlay(axes, explanation, "objectness: highest of all levels", highest, 1)


def _overlay(axes: "Axes", explanation: Explanation, title: str, heat: np.ndarray, stride: int) -> None:
    """Draw a map of cells of `stride` pixels over the image, more transparent where it is lower."""
    _background(axes, explanation, title, "dark")
    extent = (0, heat.shape[1] * stride, heat.shape[0] * stride, 0)
    looks: dict[str, Any] = {"cmap": SCORES, "vmin": 0, "vmax": 1, "extent": extent, "interpolation": "nearest"}
    axes.imshow(heat, alpha=0.15 + 0.7 * heat, **looks)
    height, width = explanation.image.shape[:2]
    axes.set(xlim=(0, width), ylim=(height, 0))


def before_nms(axes: "Axes", explanation: Explanation) -> None:
    """Draw the best decoded boxes of every level."""
    total = len(explanation.before.boxes)
    best = f", best {MAX_PROPOSALS} drawn" if total > MAX_PROPOSALS else ""
    _scored(axes, explanation, f"before NMS: {total:,} boxes{best}", explanation.before)


def after_nms(axes: "Axes", explanation: Explanation) -> None:
    """Draw the proposals."""
    _scored(axes, explanation, f"after NMS: {len(explanation.proposals.boxes):,} proposals", explanation.proposals)


def _scored(axes: "Axes", explanation: Explanation, title: str, ranked: RankedBoxes) -> None:
    """Draw boxes in the colours of their scores, the best on top."""
    from matplotlib.colors import Normalize

    _background(axes, explanation, title, "dark")
    order = torch.arange(min(len(ranked.boxes), MAX_PROPOSALS)).flip(0)
    lines = _frames(axes, ranked.boxes[order], cmap=SCORES, norm=Normalize(0, 1), linewidths=1.0)
    lines.set_array(ranked.scores[order].numpy())


def detections(axes: "Axes", explanation: Explanation) -> None:
    """Draw the final boxes, the best ones with their names."""
    assert explanation.detections is not None
    final = explanation.detections
    _background(axes, explanation, f"detections: {len(final.boxes)}", "image")
    inks = [PALETTE[label % len(PALETTE)] for label in final.classes.tolist()]
    _frames(axes, final.boxes, colors=inks, linewidths=2.2)
    rows = zip(final.boxes, final.scores.tolist(), final.classes.tolist(), inks, strict=True)
    for box, score, label, ink in islice(rows, MAX_NAMES):
        looks: dict[str, Any] = {"facecolor": ink, "edgecolor": "none", "pad": 1.5}
        at_top = float(box[1]) < 0.06 * explanation.image.shape[0]  # no room above: the tag goes below
        axes.text(
            float(box[0]),
            float(box[3 if at_top else 1]),
            f"{plain(explanation.names[label])} {score:.2f}",
            fontsize=7,
            color=text_colour(ink),
            bbox=looks,
            clip_on=True,
            va="top" if at_top else "bottom",
        )


def draw_origins(explanation: Explanation, origins: Sequence[Origin], path: Path) -> Path:
    """Draw one panel per detection, cropped from the image: its anchor, proposal and final box, and those between."""
    rows = -(-len(origins) // 4)
    columns = -(-len(origins) // rows)
    legend_rows = -(-(max(len(origin.boxes) for origin in origins) + 1) // 2)  # in two columns, with the object
    page, grid = new_figure(rows, columns, columns * 3.3, rows * (3.65 + 0.2 * legend_rows))
    for axes in grid.ravel()[len(origins) :]:
        axes.set_axis_off()
    for axes, origin in zip(grid.ravel(), origins, strict=False):
        title = f"{plain(origin.name)} {origin.score:.2f}\nfrom stride {explanation.strides[origin.level]}, "
        _background(axes, explanation, f"{title}row {origin.cell[0]}, column {origin.cell[1]}", "image")
        _truths(axes, explanation)
        between = {f"after head {number}": STAGES[number - 1] for number in range(1, len(origin.boxes) - 2)}
        inks = {"anchor": ORIGIN["anchor"], "proposal": ORIGIN["proposal"], **between, "box": ORIGIN["box"]}
        for index, (step, ink) in enumerate(inks.items()):
            iou = "" if origin.ious is None else f": IoU {origin.ious[index]:.2f}"
            style = "dashed" if step == "anchor" else "solid"
            _frames(axes, origin.boxes[index][None], colors=ink, linewidths=2.2, linestyles=style, label=step + iou)
        low, high = origin.boxes[:, :2].amin(dim=0), origin.boxes[:, 2:].amax(dim=0)
        middle, half = ((low + high) / 2).tolist(), float((high - low).max()) * 0.62
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
        _legend(axes)
    save(page, path)
    return path
