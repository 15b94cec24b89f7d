"""`rcnn::roi_align_backward` on a GPU, without atomic additions, so that every run gives the same bits.

For the features, the reads of all cells are sorted by pixel, and each pixel then sums its own reads; this takes about
16 bytes per read, S * S * (2 * sampling_ratio) ** 2 of them per RoI, and a sort. For the boxes, a program sums a row of
cells. P pixels of all levels and images concatenated, E reads.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import launch
from rcnn.ops.triton.sampling import Maps, box_of, level_of, maps_of, on_device, pixels_of, sample, tile

READS = 1024  # reads per program of the kernel that finds them
AT_ONCE = 8  # reads that a pixel sums at a time


def roi_align_backward(
    grad: Tensor,
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor] | None:
    """The body of `rcnn::roi_align_backward` on a GPU; None if the number of samples depends on the box."""
    if sampling_ratio == 0:
        return None
    grad, maps = grad.contiguous(), maps_of(levels, scales)
    where, fixed = on_device(boxes, level), {"S": grad.shape[2], "SR": sampling_ratio, "ALIGNED": aligned}
    count = sum(feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in levels)
    if wanted[0] and grad.numel():
        pixels = _of_pixels(grad, maps, where, count, fixed)
    else:
        pixels = levels[0].new_zeros(count, grad.shape[4])
    if not (wanted[1] and grad.numel()):
        return pixels, torch.zeros_like(boxes)
    (batch, rois), (size, channels) = boxes.shape[:2], grad.shape[3:]
    parts = boxes.new_empty(batch, rois, size, 4, dtype=torch.float32)
    grid = (batch * rois * size,)
    launch(of_boxes, grid, grad, maps, *where, parts, rois, channels, **fixed, **tile(size, channels))
    return pixels, (parts.sum(dim=2) * boxes.isfinite()).to(boxes.dtype)


def _of_pixels(grad: Tensor, maps: Maps, where: tuple[Tensor, Tensor], count: int, fixed: dict[str, int]) -> Tensor:
    """The gradient (P, C) of the pixels."""
    batch, rois, size, _, channels = grad.shape
    taps = 2 * fixed["SR"]
    total = batch * rois * size * size * taps * taps
    pixel, weight = grad.new_empty(total, dtype=torch.int32), grad.new_empty(total, dtype=torch.float32)
    alive = grad.any(dim=-1).view(torch.uint8)  # RoIs of the padding coincide, and have no gradient
    blocks = (triton.cdiv(total, READS),)
    launch(reads, blocks, maps, *where, alive, pixel, weight, total, count, batch, rois, **fixed, READS=READS)
    pixel, order = pixel.sort(stable=True)
    begin = torch.searchsorted(pixel, torch.arange(count + 1, dtype=torch.int32, device=grad.device))
    out = grad.new_empty(count, channels)
    block = min(triton.next_power_of_2(channels), 256)
    launch(
        of_pixels, (count, triton.cdiv(channels, block)), grad, weight, order, begin, out, channels,
        TAPS=taps * taps, AT_ONCE=AT_ONCE, BLOCK=block,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["total", "count", "B", "R"])
def reads(
    maps, boxes, level, alive, pixel, weight, total, count, B, R,
    S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr, READS: tl.constexpr,
):  # fmt: skip
    """Pixel and weight of every read; `count`, behind all pixels, where it carries no gradient."""
    T: tl.constexpr = 2 * SR
    e = tl.program_id(0).to(tl.int64) * READS + tl.arange(0, READS)
    real = e < total
    cell, tap = e // (T * T), (e % (T * T)).to(tl.int32)
    n, place = cell // (S * S), (cell % (S * S)).to(tl.int32)
    height, width, scale, before = level_of(maps, tl.load(level + n, real, 0))
    side_y, side_x = box_of(boxes, tl.where(real, n, 0), scale, S, SR, ALIGNED)
    tap_y, tap_x = tap // T, tap % T
    top, bottom, upper, lower, _, _ = sample(side_y, place // S, tap_y // 2, height)
    left, right, first, second, _, _ = sample(side_x, place % S, tap_x // 2, width)
    y, x = tl.where(tap_y % 2 == 0, top, bottom), tl.where(tap_x % 2 == 0, left, right)
    share = tl.where(tap_y % 2 == 0, upper, lower) * tl.where(tap_x % 2 == 0, first, second) / (SR * SR)
    at = before * B + (n // R).to(tl.int32) * height * width + y * width + x
    carries = (share != 0) & (tl.load(alive + cell, real, 0) != 0)
    tl.store(pixel + e, tl.where(carries, at, count), real)
    tl.store(weight + e, share, real)


@triton.jit
def of_pixels(grad, weight, order, begin, out, C, TAPS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the gradient of one pixel: the cells that read it, times their weights."""
    pixel, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(begin + pixel + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(tl.load(begin + pixel), end, AT_ONCE):
        place = first + tl.arange(0, AT_ONCE)
        read = tl.load(order + place, place < end, 0)
        share = tl.load(weight + read, place < end, 0.0)
        rows = tl.load(grad + (read // TAPS)[:, None] * C + c[None], (place < end)[:, None] & (c < C)[None], 0.0)
        total += tl.sum(share[:, None] * rows.to(tl.float32), 0)
    tl.store(out + pixel * C + c, total, c < C)


@triton.jit(do_not_specialize=["R"])
def of_boxes(
    grad, maps, boxes, level, out, R, C,
    S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr, CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the contribution of one row of cells to the gradient of its box."""
    n, row = tl.program_id(0) // S, tl.program_id(0) % S + tl.arange(0, 1)
    which = tl.load(level + n)
    height, width, scale, _before = level_of(maps, which)
    side_y, side_x = box_of(boxes, n, scale, S, SR, ALIGNED)
    cell, channel = tl.arange(0, CELLS), tl.arange(0, BLOCK)
    at = pixels_of(maps, which) + (n // R).to(tl.int64) * height * width * C
    rows = grad + (tl.program_id(0).to(tl.int64) * S + cell)[:, None] * C
    y1 = tl.zeros((CELLS,), tl.float32)
    y2, x1, x2 = y1, y1, y1
    for k in range(SR * SR):
        top, bottom, upper, lower, _, moves_y = sample(side_y, row, k // SR, height)
        left, right, first, second, _, moves_x = sample(side_x, cell, k % SR, width)
        along_y = (row + (k // SR + 0.5) / SR) / S * side_y[3]
        along_x = (cell + (k % SR + 0.5) / SR) / S * side_x[3]
        by_y, by_x = tl.zeros((CELLS,), tl.float32), tl.zeros((CELLS,), tl.float32)
        for begin in range(0, C, BLOCK):
            c = (begin + channel)[None]
            mask = (cell < S)[:, None] & (c < C)
            g = tl.load(rows + c, mask, 0.0).to(tl.float32)
            above, below = at + (top * width + left)[:, None] * C + c, at + (bottom * width + left)[:, None] * C + c
            step = (right - left)[:, None] * C
            a, b = tl.load(above, mask, 0.0).to(tl.float32), tl.load(above + step, mask, 0.0).to(tl.float32)
            d, e = tl.load(below, mask, 0.0).to(tl.float32), tl.load(below + step, mask, 0.0).to(tl.float32)
            by_y += tl.sum(g * ((d - a) * first[:, None] + (e - b) * second[:, None]), 1)
            by_x += tl.sum(g * ((b - a) * upper[:, None] + (e - d) * lower[:, None]), 1)
        by_y = tl.where(moves_y, by_y, 0.0) * scale / (SR * SR)
        by_x = tl.where(moves_x, by_x, 0.0) * scale / (SR * SR)
        y1, y2 = y1 + by_y * (1 - along_y), y2 + by_y * along_y
        x1, x2 = x1 + by_x * (1 - along_x), x2 + by_x * along_x
    part = out + tl.program_id(0).to(tl.int64) * 4
    tl.store(part, tl.sum(x1, 0))
    tl.store(part + 1, tl.sum(y1, 0))
    tl.store(part + 2, tl.sum(x2, 0))
    tl.store(part + 3, tl.sum(y2, 0))
