"""`rcnn::roi_align` on a GPU: one launch over all levels, channels last in and out, summed in float32.

B images, R RoIs per image, C channels, S cells per side.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import launch
from rcnn.ops.triton.sampling import box_of, level_of, maps_of, on_device, pixels_of, sample, tile


def roi_align(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The body of `rcnn::roi_align` on a GPU."""
    (batch, count), channels, size = boxes.shape[:2], levels[0].shape[1], output_size
    out = levels[0].new_empty(batch, count, size, size, channels)
    shape = tile(size, channels)
    grid = (batch * count * size, triton.cdiv(channels, shape["BLOCK"]))
    fixed = {"S": size, "SR": sampling_ratio, "ALIGNED": aligned, **shape}
    launch(forward, grid, maps_of(levels, scales), *on_device(boxes, level), out, count, channels, **fixed)
    return out


@triton.jit(do_not_specialize=["R"])
def forward(
    maps, boxes, level, out, R, C,
    S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one row of cells of one RoI, for a block of channels."""
    n = tl.program_id(0) // S
    row = tl.program_id(0) % S + tl.arange(0, 1)  # a block: in the interpreter, comparisons of scalars are floats
    which = tl.load(level + n)
    height, width, scale, _before = level_of(maps, which)
    side_y, side_x = box_of(boxes, n, scale, S, SR, ALIGNED)
    rows, columns = side_y[2], side_x[2]
    cell, c = tl.arange(0, CELLS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = (cell < S)[:, None] & (c < C)[None]
    at = pixels_of(maps, which) + (n // R).to(tl.int64) * height * width * C + c[None]
    total = tl.zeros((CELLS, BLOCK), tl.float32)
    for k in range(rows * columns):
        top, bottom, upper, lower, here_y, _ = sample(side_y, row, k // columns, height)
        left, right, first, second, here_x, _ = sample(side_x, cell, k % columns, width)
        mask = real & (here_y & here_x)[:, None]
        above, below = at + (top * width + left)[:, None] * C, at + (bottom * width + left)[:, None] * C
        step = (right - left)[:, None] * C
        total += (upper * first)[:, None] * tl.load(above, mask, 0.0).to(tl.float32)
        total += (upper * second)[:, None] * tl.load(above + step, mask, 0.0).to(tl.float32)
        total += (lower * first)[:, None] * tl.load(below, mask, 0.0).to(tl.float32)
        total += (lower * second)[:, None] * tl.load(below + step, mask, 0.0).to(tl.float32)
    place = (tl.program_id(0).to(tl.int64) * S + cell)[:, None] * C + c[None]
    tl.store(out + place, total / tl.maximum(rows * columns, 1), real)
