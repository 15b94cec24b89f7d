"""The way of each detection back to its anchor."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn.diagnose.explain.canvas import canvas, frames, legend, truths
from rcnn.diagnose.explain.follow import Walkthrough
from rcnn.draw import PALETTE
from rcnn.model import boxes as box_ops
from rcnn.plots.figure import new_figure, plain, save

STEPS = {"anchor": "#7B3294", "proposal": PALETTE[1], "box": PALETTE[0]}
"""The three boxes of a detection's way and their colours."""

MOST_WAYS = 8
"""Number of detections whose ways are drawn, the best ones."""


class Way(NamedTuple):
    """The way of a detection from its anchor.

    Attributes:
        name: name of its class.
        score: its score, 0..1.
        objectness: objectness of its anchor, 0..1.
        level: of the anchor, counted from the finest.
        cell: (row, column) of the anchor.
        boxes: (3, 4): the anchor, the proposal made of it, the final box.
        truth: IoU of the three with the labelled object that the final box overlaps most; None if there is none.
    """

    name: str
    score: float
    objectness: float
    level: int
    cell: tuple[int, int]
    boxes: Tensor
    truth: tuple[float, float, float] | None


def ways(walk: Walkthrough) -> list[Way]:
    """The way of every detection from its anchor, best first."""
    if walk.detections is None:
        return []
    made = []
    for box, score, label, proposal in zip(*walk.detections, strict=True):
        anchor = int(walk.proposals.anchor[proposal])
        level, row, column, _ = walk.place(anchor)
        boxes = torch.stack((walk.anchors[anchor], walk.proposals.boxes[proposal], box))
        overlap = None
        if walk.truth is not None and len(walk.truth.boxes):
            ious = box_ops.pairwise_iou(boxes, walk.truth.boxes)
            first, second, last = ious[:, ious[2].argmax()].tolist()
            overlap = (first, second, last)
        objectness = float(walk.proposals.scores[proposal])
        name = walk.names[int(label)]
        made.append(Way(name, float(score), objectness, level, (row, column), boxes, overlap))
    return made


def draw_ways(walk: Walkthrough, drawn: Sequence[Way], path: Path) -> Path:
    """Draw one panel per way, cropped from the image, for the first ways: anchor, proposal, final box."""
    drawn = drawn[:MOST_WAYS]
    rows = -(-len(drawn) // 4)
    columns = -(-len(drawn) // rows)
    figure, grid = new_figure(rows, columns, columns * 3.3, rows * 4.05)
    for axes in grid.ravel()[len(drawn) :]:
        axes.set_axis_off()
    for axes, way in zip(grid.ravel(), drawn, strict=False):
        stride = walk.strides[way.level]
        title = f"{plain(way.name)} {way.score:.2f}\nfrom stride {stride}, row {way.cell[0]}, column {way.cell[1]}"
        canvas(axes, walk, title, "image")
        truths(axes, walk)
        for place, (step, ink) in enumerate(STEPS.items()):
            known = "" if way.truth is None else f": IoU {way.truth[place]:.2f}"
            style = "dashed" if step == "anchor" else "solid"
            frames(axes, way.boxes[place][None], colors=ink, linewidths=2.2, linestyles=style, label=step + known)
        low, high = way.boxes[:, :2].amin(dim=0), way.boxes[:, 2:].amax(dim=0)
        middle, half = ((low + high) / 2).tolist(), float((high - low).max()) * 0.62
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
        legend(axes)
    save(figure, path)
    return path
