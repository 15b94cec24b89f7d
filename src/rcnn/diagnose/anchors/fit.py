"""How well a grid of anchors fits the objects of a data set, and sizes and ratios that fit them better.

N objects, L levels, k anchors per cell. Boxes are pixels of the resized image, where anchors live; float64.

The overlap of an anchor with a box falls with their distance in x and in y independently. So the best position of a
shape is the cell nearest to the box in both, and the best IoU with an entire grid takes only L * k IoUs.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rcnn.config import Anchors, Settings
from rcnn.data.dataset import Record
from rcnn.images.batch import Preprocessor, Size
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops

CHUNK = 1 << 16
"""Number of objects whose IoUs are computed together."""

MAX_FITTED = 2000
"""Largest number of objects that the search uses."""

RECALLED = 0.5
"""IoU from which an anchor recalls an object."""

SOFTNESS, SHORTFALL_WEIGHT, RECALL_TOLERANCE = 0.03, 0.3, 0.005
"""Width of the soft edge at `RECALLED`, weight of the shortfall, and difference of recall that the fit ignores."""

FIRST_STEP, LAST_STEP = math.log(2) / 2, 0.02
"""Steps of the search, in logarithms of sizes and ratios."""


class Grid(NamedTuple):
    """The cells of all levels of one padded image.

    Attributes:
        padded: (height, width) of the image, pixels.
        cells: (height, width) of each level.
    """

    padded: Size
    cells: tuple[Size, ...]


class Frame(NamedTuple):
    """One image as the network sees it, without its pixels.

    Attributes:
        grid: cells of its anchors.
        size: (height, width) after resizing.
        boxes: (n, 4).
        ignore: (n,) bool, crowd or difficult.
    """

    grid: Grid
    size: Size
    boxes: Tensor
    ignore: Tensor


class TruthBoxes(NamedTuple):
    """All objects that are not ignored.

    Attributes:
        boxes: (N, 4).
        image: (N,) int64, index of the frame.
        row: (N,) int64, index of the box in the frame.
        sizes: (N, 2) height and width of the resized image.
        padded: (N, 2) height and width of the padded image.
        cells: (N, L, 2) height and width of each level.
    """

    boxes: Tensor
    image: Tensor
    row: Tensor
    sizes: Tensor
    padded: Tensor
    cells: Tensor

    def __getitem__(self, index: Tensor) -> "TruthBoxes":  # pyrefly: ignore[bad-override]
        """The objects of an index or mask (N,)."""
        return TruthBoxes(*(part[index] for part in self._asdict().values()))


def network_grids(backbone: nn.Module, channels: int) -> Callable[[Size], Grid]:
    """Return a function from the size of a padded image to a backbone's grid, found by a forward pass without data."""
    shapes = copy.deepcopy(backbone).to("meta").eval()

    @cache
    def grid(padded: Size) -> Grid:
        with torch.no_grad():
            levels = shapes(torch.zeros(1, channels, *padded, device="meta")).values()
        return Grid(padded, tuple((level.shape[2], level.shape[3]) for level in levels))

    return grid


def frames_of(records: Sequence[Record], settings: Settings, grid: Callable[[Size], Grid]) -> list[Frame]:
    """Return the images at the network's scale, from the sizes in their headers."""
    preprocessor = Preprocessor(settings.preprocess)
    frames = []
    for record in records:
        size = preprocessor.resized(record.size) if record.view is None else record.view.resized
        scale = np.divide(size, record.size)[[1, 0, 1, 0]]
        boxes = torch.from_numpy(record.boxes * scale)
        frames.append(Frame(grid(preprocessor.padded(size)), size, boxes, torch.from_numpy(record.ignore)))
    return frames


def objects_of(frames: Sequence[Frame]) -> TruthBoxes:
    """Return the objects of all frames, in order."""
    count = torch.tensor([len(frame.boxes) for frame in frames])
    image = torch.arange(len(frames)).repeat_interleave(count)
    row = torch.arange(len(image)) - (count.cumsum(0) - count)[image]
    sizes, padded, cells = (
        torch.tensor(part, dtype=torch.float64)[image]
        for part in ([f.size for f in frames], [f.grid.padded for f in frames], [f.grid.cells for f in frames])
    )
    objects = TruthBoxes(torch.cat([frame.boxes for frame in frames]), image, row, sizes, padded, cells)
    return objects[~torch.cat([frame.ignore for frame in frames])]


def best_iou(objects: TruthBoxes, anchors: Anchors, strides: Sequence[int]) -> Tensor:
    """Return (N,) the IoU of each object with the best anchor that may be trained; 0 if it touches none."""
    chunks = torch.arange(len(objects.boxes)).split(CHUNK)
    return torch.cat([_best_iou(objects[chunk], anchors, strides) for chunk in chunks])


def _best_iou(objects: TruthBoxes, anchors: Anchors, strides: Sequence[int]) -> Tensor:
    levels = (_level_iou(objects, anchors, level, stride) for level, stride in enumerate(strides))
    return reduce(torch.maximum, levels)


def _level_iou(objects: TruthBoxes, anchors: Anchors, level: int, stride: int) -> Tensor:
    """Return (N,) the IoU of each object with the best anchor of one level."""
    centre = box_ops.centre_size(objects.boxes)[0][:, None]  # (N, 1, 2) as (x, y)
    shapes = anchor_ops.cell_anchors(anchors, level, torch.float64)
    half = shapes[:, 2:]  # (k, 2)
    last = objects.cells[:, level].flip(-1)[:, None] - 1
    step = torch.full_like(last, stride)
    if anchors.stride == "image//grid":
        step = objects.padded.flip(-1)[:, None] // (last + 1)
    first = torch.zeros_like(last)
    if anchors.border is not None:
        first = ((half - anchors.border) / step - anchors.offset).ceil().clamp(min=0)
        beyond = objects.sizes.flip(-1)[:, None] + anchors.border - half
        last = last.minimum((beyond / step - anchors.offset).floor())
    cell = (centre / step - anchors.offset).round().maximum(first).minimum(last)
    position = (cell + anchors.offset) * step  # (N, k or 1, 2)
    iou = box_ops.iou(shapes + position.repeat(1, 1, 2), objects.boxes[:, None])  # (N, k)
    return iou.masked_fill((last < first).any(dim=-1), 0.0).amax(dim=1)


def fit(
    objects: TruthBoxes,
    anchors: Anchors,
    strides: Sequence[int],
    target: float = 0.7,
    *,
    sizes: int | None = None,
    ratios: int | None = None,
) -> Anchors:
    """Fit sizes and ratios so that as many objects as possible have an anchor of IoU 0.5; the rest of the rule is kept.

    Coordinate searches, from the present rule and from the sizes of the objects, minimise one of two losses: the mean
    of max(0, target - IoU), where all objects in an octave of sizes together weigh as the square root of their number,
    so that rare sizes are not sacrificed for a small gain on common ones; and the same with the share of objects below
    0.5 added, with a soft edge. (The first alone does the opposite where objects are of all sizes: on photographs it
    sacrifices common ones, and recall at 0.5 falls from 0.70 to 0.61.) The candidates are the rules found, and the
    present rule if it has as many sizes and ratios. Among those with the highest recall at 0.5 over all objects, the
    one with the smallest first loss is returned. Its recall is never below that of the present rule. Sizes never shrink
    from one level to the next, so that a coarser level has the larger objects; every level has equally many sizes,
    since all levels share one head.

    Args:
        objects: at least one.
        anchors: the rule to start from.
        strides: of the levels, pixels.
        target: the IoU beyond which a better fit has no value, such as `rpn.positive_iou`.
        sizes: number of sizes per level; None: as many as now.
        ratios: number of ratios; None: as many as now.
    """
    generator = torch.Generator().manual_seed(0)
    some = objects[torch.randperm(len(objects.boxes), generator=generator)[:MAX_FITTED]]
    octave = box_ops.area(some.boxes).sqrt().log2().floor().clamp(min=0).long()
    weight = octave.bincount()[octave].double().rsqrt()
    weight = weight / weight.sum()

    def shortfall(iou: Tensor) -> float:
        return float((target - iou).clamp(min=0) @ weight)

    known: dict[tuple[object, ...], Tensor] = {}

    def iou_of(rule: Anchors) -> Tensor:
        """Return what `best_iou` does. Most rules differ from an earlier one in a single level."""
        levels = []
        for level, stride in enumerate(strides):
            key = level, rule.sizes[level], rule.ratios
            if key not in known:
                known[key] = _level_iou(some, rule, level, stride)
            levels.append(known[key])
        return reduce(torch.maximum, levels)

    def shortfall_of(rule: Anchors) -> float:
        return shortfall(iou_of(rule))

    def missed_and_shortfall(rule: Anchors) -> float:
        iou = iou_of(rule)
        missed = float(torch.sigmoid((RECALLED - iou) / SOFTNESS).mean())
        return missed + SHORTFALL_WEIGHT * shortfall(iou)

    now = [anchors] if sizes in (None, len(anchors.sizes[0])) and ratios in (None, len(anchors.ratios)) else []
    starts = [*now, *_starts(some, anchors, sizes, ratios)]
    fitted = [_search(start, loss) for loss in (missed_and_shortfall, shortfall_of) for start in starts]
    recalls = [(recall(objects, rule, strides), rule) for rule in (*now, *fitted)]
    enough = max(max(share for share, _ in recalls) - RECALL_TOLERANCE, recalls[0][0] if now else 0.0)
    return min((rule for share, rule in recalls if share >= enough), key=shortfall_of)


def recall(objects: TruthBoxes, anchors: Anchors, strides: Sequence[int]) -> float:
    """Return the share of objects that have an anchor of IoU 0.5 or more."""
    return float((best_iou(objects, anchors, strides) >= RECALLED).double().mean())


def _starts(objects: TruthBoxes, anchors: Anchors, sizes: int | None, ratios: int | None) -> Iterator[Anchors]:
    """Yield starts of the search from the objects' sizes: their quantiles, and equal steps up from the small ones."""
    side = box_ops.centre_size(objects.boxes)[1].log()
    size, aspect = side.mean(dim=1), side[:, 1] - side[:, 0]
    aspect = aspect if anchors.ratio == "h/w" else -aspect
    levels, count = len(anchors.sizes), sizes or len(anchors.sizes[0])
    shape = _quantiles(aspect, ratios or len(anchors.ratios))
    octaves = torch.arange(levels * count) * (math.log(2) / count)
    for start in (_quantiles(size, levels * count), octaves + size.quantile(0.1)):
        yield _with(anchors, start, shape, levels)


def _quantiles(values: Tensor, count: int) -> Tensor:
    """Return (count,) the medians of `count` equal parts of the sorted values."""
    return values.quantile((torch.arange(count, dtype=values.dtype) + 0.5) / count)


def _with(anchors: Anchors, sizes: Tensor, ratios: Tensor, levels: int) -> Anchors:
    """Replace the rule's sizes, distributed over the levels in order, and ratios, both given as logarithms."""
    rows = sizes.exp().reshape(levels, -1).tolist()
    return anchors.model_copy(
        update={"sizes": tuple(tuple(row) for row in rows), "ratios": tuple(ratios.exp().tolist())}
    )


def _search(rule: Anchors, loss: Callable[[Anchors], float]) -> Anchors:
    """Improve the rule by moving one size or ratio after another up or down, in ever smaller steps.

    The result has the digits that a person would write, three for sizes and two for ratios, and ratios in order.
    """
    levels = len(rule.sizes)
    values = torch.tensor([*(size for row in rule.sizes for size in row), *rule.ratios], dtype=torch.float64).log()
    size_count = values.numel() - len(rule.ratios)
    least, step = loss(rule), FIRST_STEP
    while step > LAST_STEP:
        moved = False
        for index in range(len(values)):
            for change in (step, -step):
                trial = values.clone()
                trial[index] += change
                if index < size_count and (trial[max(index - 1, 0) : min(index + 2, size_count)].diff() < 0).any():
                    continue  # no longer between its neighbours
                candidate = _with(rule, trial[:size_count], trial[size_count:], levels)
                if (value := loss(candidate)) < least * (1 - 1e-4):
                    rule, values, least, moved = candidate, trial, value, True
        step = step if moved else step / 2
    sizes = tuple(tuple(float(f"{size:.3g}") for size in row) for row in rule.sizes)
    return rule.model_copy(update={"sizes": sizes, "ratios": tuple(sorted(float(f"{r:.2g}") for r in rule.ratios))})


def setting_words(rule: Anchors) -> tuple[str, str]:
    """Format sizes and ratios as arguments for the command line."""
    sizes = ",".join(f"[{','.join(f'{size:g}' for size in row)}]" for row in rule.sizes)
    return f"anchors.sizes=[{sizes}]", f"anchors.ratios=[{','.join(f'{ratio:g}' for ratio in rule.ratios)}]"
