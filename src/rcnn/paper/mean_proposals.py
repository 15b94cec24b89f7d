"""Table 1: the mean size of the proposals that come from each anchor of a cell."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn.config import Anchors, Settings
from rcnn.data.loading.loader import Loader
from rcnn.model.structures import Proposals
from rcnn.paper.experiment import Claim, Column, Experiment, Lookup, Measurement, Numbers
from rcnn.paper.measure import RPNProposals
from rcnn.paper.quoted import SECTION_3_1, TABLE_1
from rcnn.paper.recall import RPN
from rcnn.paper.workspace import Training, Workspace

COUNT = 2000
"""Number of proposals per image; with few, some anchors would have none."""

RECEPTIVE_FIELDS = {
    "zf": SECTION_3_1["receptive field with ZF, pixels"],
    "vgg16": SECTION_3_1["receptive field with VGG-16, pixels"],
}
"""Backbone -> side of a cell's receptive field, pixels."""


class Shape(NamedTuple):
    """An anchor of a cell.

    Attributes:
        level: index of its feature map.
        size: square root of its area, pixels.
        ratio: width over height.
    """

    level: int
    size: float
    ratio: float

    @property
    def name(self) -> str:
        """Size and ratio, in the form of table 1."""
        sides = (f"{self.ratio:.3g}", "1") if self.ratio >= 1 else ("1", f"{1 / self.ratio:.3g}")
        return f"{self.size:g}, {':'.join(sides)}"


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of one training, of an RPN alone, which `recall` shares."""
    # The rows are the anchors of the settings, so none are fitted.
    rpn = Training(RPN.name, {**RPN.changes, "anchors": {"fit": "off"}})
    shapes = list(shapes_of(settings.anchors))
    names = names_of(shapes)
    paper = {
        name: dict(zip(("width", "height"), TABLE_1.rows[shape.name], strict=True))
        for name, shape in zip(names, shapes, strict=True)
        if shape.name in TABLE_1.rows
    }
    return Experiment(
        title="mean size of each anchor's proposals",
        source="table 1; ZF, shorter side of the images 600; rows are size and width:height of the anchor",
        columns=(
            Column("width", "width, px"),
            Column("height", "height, px"),
            Column("share", "% of proposals", plotted=False),
        ),
        measurements=(Measurement(names, partial(_measure, rpn, names), (rpn,)),),
        paper=paper,
        claims=tuple(_claims(settings, shapes, names)),
        notes=(
            f"sizes are means over the best {COUNT} proposals of each image, clipped, in pixels of the resized image "
            f"(shorter side {settings.preprocess.short})",
        ),
    )


def shapes_of(anchors: Anchors) -> Iterator[Shape]:
    """Yield the anchors of a cell, level by level, in the order of the head's outputs."""
    for level, sizes in enumerate(anchors.sizes):
        by_size = anchors.order == "size"
        for first, second in product(*((sizes, anchors.ratios) if by_size else (anchors.ratios, sizes))):
            size, ratio = (first, second) if by_size else (second, first)
            yield Shape(level, size, ratio if anchors.ratio == "w/h" else 1 / ratio)


def names_of(shapes: list[Shape]) -> tuple[str, ...]:
    """Return the names of the rows, with the level if two levels have anchors of the same shape."""
    count = Counter(shape.name for shape in shapes)
    return tuple(shape.name if count[shape.name] == 1 else f"{shape.name}, level {shape.level + 1}" for shape in shapes)


def _claims(settings: Settings, shapes: list[Shape], names: tuple[str, ...]) -> Iterator[Claim]:
    """Yield the orderings in the numbers of table 1, and the statement of section 3.3 on the receptive field."""
    by_size: dict[float, list[tuple[float, str]]] = {}
    for shape, name in zip(shapes, names, strict=True):
        by_size.setdefault(shape.size, []).append((shape.ratio, name))
    sizes = sorted(by_size)
    square = {size: min(by_size[size], key=lambda anchor: max(anchor[0], 1 / anchor[0]))[1] for size in sizes}
    for small, large in pairwise(sizes):
        text = f"side: {square[large]} >= {square[small]}"
        yield Claim(text, partial(_longer, square[large], square[small]))
    for size in sizes:
        (_, tall), (_, wide) = min(by_size[size]), max(by_size[size])
        if tall != wide:
            yield Claim(f"width / height: {wide} >= {tall}", partial(_wider, wide, tall), digits=2)
    if field := RECEPTIVE_FIELDS.get(settings.model.backbone):
        yield Claim(
            f"the widest exceed the receptive field, {field} px",
            lambda look_up: max(look_up(name, "width") for name in names) - field,
        )


def _longer(large: str, small: str, look_up: Lookup) -> float:
    sides = [math.sqrt(look_up(row, "width") * look_up(row, "height")) for row in (large, small)]
    return sides[0] - sides[1]


def _wider(wide: str, tall: str, look_up: Lookup) -> float:
    return look_up(wide, "width") / look_up(wide, "height") - look_up(tall, "width") / look_up(tall, "height")


def _measure(rpn: Training, names: tuple[str, ...], workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    detector = workspace.load(rpn, seed).with_settings({"rpn": {"post_test": COUNT}})
    propose = RPNProposals(detector)
    loader = Loader(workspace.dataset, detector.settings, training=False, batch=detector.settings.val.batch, seed=seed)
    per_cell = len(names) // len(detector.settings.anchors.sizes)
    parts = [sums_of(propose(item), len(names), per_cell) for item in loader.epoch(0)]
    sums = torch.stack(parts).sum(dim=0)
    count = sums[:, 2]
    means = (sums[:, :2] / count[:, None]).tolist()  # NaN without proposals
    shares = (100 * count / count.sum()).tolist()
    return {
        name: {"width": width, "height": height, "share": share}
        for name, (width, height), share in zip(names, means, shares, strict=True)
    }


def sums_of(proposals: Proposals, anchors: int, per_cell: int) -> Tensor:
    """Return (anchors, 3) float64 on the CPU: sum of widths, sum of heights and number of proposals of each anchor.

    Args:
        proposals: proposals of a batch.
        anchors: number of anchors of a cell, over all levels.
        per_cell: number of anchors of a cell on one level.
    """
    boxes, valid = proposals.boxes.double(), proposals.valid.double()
    sides = torch.cat((boxes[..., 2:] - boxes[..., :2], torch.ones_like(boxes[..., :1])), dim=-1)
    which = proposals.level * per_cell + proposals.anchor % per_cell  # a level has a multiple of `per_cell` anchors
    sums = torch.zeros(anchors, 3, dtype=torch.float64, device=boxes.device)
    return sums.index_add_(0, which.flatten(), (sides * valid[..., None]).flatten(0, 1)).cpu()
