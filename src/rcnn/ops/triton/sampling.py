"""Where RoI align reads, for its kernels: the levels that they take, and the pixels and weights of a sample."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import corners

TILE = 2048  # cells times channels of a program


class Maps(NamedTuple):
    """L levels as the kernels take them.

    Sizes travel as floats: Triton compiles a kernel anew for integers of a tuple that are 1 or divisible by 16.

    Attributes:
        pixels: (B, H, W, C) each, views where the levels are channels last.
        heights, widths: of each.
        scales: cells of each per pixel of the image.
    """

    pixels: tuple[Tensor, ...]
    heights: tuple[float, ...]
    widths: tuple[float, ...]
    scales: tuple[float, ...]


def maps_of(levels: Sequence[Tensor], scales: Sequence[float]) -> Maps:
    """The levels (B, C, H, W) as the kernels take them."""
    heights, widths = (tuple(float(feature.shape[dim]) for feature in levels) for dim in (2, 3))
    return Maps(tuple(feature.permute(0, 2, 3, 1).contiguous() for feature in levels), heights, widths, tuple(scales))


def tile(size: int, channels: int) -> dict[str, int]:
    """Powers of two for a row of `size` cells and as many channels as a program takes with it."""
    cells = triton.next_power_of_2(size)
    return {"CELLS": cells, "BLOCK": min(triton.next_power_of_2(channels), max(16, TILE // cells))}


def on_device(boxes: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and their levels as the kernels read them."""
    return boxes.contiguous(), level.to(torch.int64).contiguous()


@triton.jit
def level_of(maps, which):
    """Height, width and scale of one or many levels, and the pixels of an image in the levels before."""
    height = (which * 0).to(tl.float32)
    width, scale, before, total = height, height, height, 0.0
    for i in tl.static_range(len(maps.heights)):
        here = which == i
        height, width = tl.where(here, maps.heights[i], height), tl.where(here, maps.widths[i], width)
        scale, before = tl.where(here, maps.scales[i], scale), tl.where(here, total, before)
        total += maps.heights[i] * maps.widths[i]
    return height.to(tl.int32), width.to(tl.int32), scale, before.to(tl.int32)


@triton.jit
def pixels_of(maps, which):
    """Where the pixels of a level lie."""
    base = maps.pixels[0]
    for i in tl.static_range(len(maps.pixels)):
        if which == i:
            base = maps.pixels[i]
    return base


@triton.jit
def side_of(low, high, scale, S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr):
    """Of a box along one axis: where it starts, the length of a cell, samples per cell, and 0 if held at one cell.

    Divisions are rounded as on a CPU: where the number of samples depends on the box, the last bit decides it.
    """
    shift = 0.5 if ALIGNED else 0.0
    start = low * scale - shift
    length = tl.maximum(high, low) * scale - shift - start if SR == 0 else (high - low) * scale
    free = 1.0
    if not ALIGNED:
        free = tl.where(length > 1, 1.0, 0.0)
        length = tl.maximum(length, 1.0)
    step = tl.div_rn(length, tl.zeros_like(length) + S)
    samples = tl.ceil(step).to(tl.int32) if SR == 0 else SR
    return start, step, samples, free


@triton.jit
def box_of(boxes, n, scale, S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr):
    """`side_of` the box `n` along y, then along x."""
    x1, y1, x2, y2 = corners(boxes, n, True)
    return side_of(y1, y2, scale, S, SR, ALIGNED), side_of(x1, x2, scale, S, SR, ALIGNED)


@triton.jit
def sample(side, cell, k, size):
    """Sample `k` of a cell on `size` pixels: two pixels, their weights, whether it is read and moves with the box.

    As in `rcnn.ops.roi_align_matrix`.
    """
    start, step, samples, _ = side
    part = (k + 0.5) * step
    at = start + cell * step + tl.div_rn(part, tl.zeros_like(part) + samples)
    inside = (at >= -1.0) & (at <= size)
    last = size - 1
    held = tl.maximum(at, 0.0)
    low = tl.minimum(tl.where(inside, held, 0.0).to(tl.int32), last)
    high = tl.minimum(low + 1, last)
    fraction = tl.where(inside & (low < last), held - low, 0.0)
    upper = tl.where(inside, 1.0 - fraction, 0.0)
    return low, high, upper, fraction, inside, inside & (at > 0) & (low < last)
