"""`rcnn::roi_pool` on a GPU: one launch over all levels, which are read channels last.

B images, R RoIs per image, C channels, S cells per side.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import corners, launch
from rcnn.ops.triton.sampling import level_of, maps_of, on_device, pixels_of, tile


def roi_pool(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float], output_size: int
) -> tuple[Tensor, Tensor]:
    """The body of `rcnn::roi_pool` on a GPU."""
    (batch, count), channels, size = boxes.shape[:2], levels[0].shape[1], output_size
    out = levels[0].new_empty(batch, count, channels, size, size)
    source = torch.empty_like(out, dtype=torch.int32)
    shape = tile(size, channels)
    grid = (batch * count * size, triton.cdiv(channels, shape["BLOCK"]))
    maps = maps_of(levels, scales)
    launch(forward, grid, maps, *on_device(boxes, level), out, source, count, channels, S=size, **shape)
    return out, source


@triton.jit
def nearest(x):
    """Round to the nearest integer, halves away from zero."""
    whole = tl.floor(tl.abs(x))
    whole += tl.where(tl.abs(x) - whole >= 0.5, 1.0, 0.0)
    return tl.where(x < 0, -whole, whole)


@triton.jit
def cells_of(low, high, scale, cell, size, S: tl.constexpr):
    """Return the first pixel of a cell along one axis, and the pixel after its last."""
    first = nearest(low * scale)
    step = tl.div_rn(tl.maximum(nearest(high * scale) - first + 1, 1.0), first * 0 + S)
    begin, end = first + tl.floor(cell * step), first + tl.ceil((cell + 1) * step)
    end = tl.minimum(tl.maximum(end, 0.0), size)
    return tl.minimum(tl.maximum(begin, 0.0), size).to(tl.int32), end.to(tl.int32)


@triton.jit(do_not_specialize=["R"])
def forward(maps, boxes, level, out, source, R, C, S: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the maxima of one row of cells of one RoI, and their pixels, for a block of channels."""
    n, row = tl.program_id(0) // S, tl.program_id(0) % S
    which = tl.load(level + n)
    height, width, scale, _before = level_of(maps, which)
    x1, y1, x2, y2 = corners(boxes, n, True)
    cell, c = tl.arange(0, CELLS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    top, bottom = cells_of(y1, y2, scale, row, height, S)
    left, right = cells_of(x1, x2, scale, cell, width, S)
    at = pixels_of(maps, which) + (n // R).to(tl.int64) * height * width * C + c[None]
    filled = ((left < right) & (top + cell * 0 < bottom))[:, None] & (c < C)[None]
    best = tl.where(filled, -3.4028234663852886e38, tl.zeros((CELLS, BLOCK), tl.float32))  # torchvision's initial value
    found = tl.full((CELLS, BLOCK), -1, tl.int32)
    for y in range(top, bottom):
        for step in range(tl.max(tl.where(cell < S, right - left, 0), 0)):
            pixel = (y * width + left + step)[:, None]
            mask = filled & (left + step < right)[:, None]
            value = tl.load(at + pixel * C, mask, float("-inf")).to(tl.float32)
            found = tl.where(value > best, pixel, found)
            best = tl.where(value > best, value, best)
    place = ((n.to(tl.int64) * C + c[None]) * S + row) * S + cell[:, None]
    real = (cell < S)[:, None] & (c < C)[None]
    tl.store(out + place, best, real)
    tl.store(source + place, found, real)
