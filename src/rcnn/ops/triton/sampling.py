"""What the kernels of RoI align read: the levels, and the pixels and weights of a sample."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import corners

TILE = 2048  # cells times channels of a program


class Maps(NamedTuple):
    """L levels in the form that the kernels take.

    Sizes are floats, since Triton compiles a kernel anew for integers in a tuple that are 1 or divisible by 16.

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
    """Return the levels (B, C, H, W) in the form that the kernels take."""
    heights, widths = (tuple(float(feature.shape[dim]) for feature in levels) for dim in (2, 3))
    return Maps(tuple(feature.permute(0, 2, 3, 1).contiguous() for feature in levels), heights, widths, tuple(scales))


def tile(size: int, channels: int) -> dict[str, int]:
    """Return powers of two for a row of `size` cells and the number of channels that a program computes of it."""
    cells = triton.next_power_of_2(size)
    return {"CELLS": cells, "BLOCK": min(triton.next_power_of_2(channels), max(16, TILE // cells))}


def on_device(boxes: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes and their levels in the form that the kernels read."""
    return boxes.contiguous(), level.to(torch.int64).contiguous()


@triton.jit
def level_of(maps, which):
    """Return height, width and scale of one or many levels, and the pixels of an image in the levels before."""
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
    """Return the address of the pixels of a level."""
    base = maps.pixels[0]
    for i in tl.static_range(len(maps.pixels)):
        if which == i:
            base = maps.pixels[i]
    return base


@triton.jit
def side_of(low, high, scale, S: tl.constexpr, SR: tl.constexpr, ALIGNED: tl.constexpr):
    """Return a box's start along one axis, the length and the samples of a cell, and 0 if it is clamped to one cell.

    Divisions are rounded as on a CPU, since the last bit decides the number of samples if that depends on the box.
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
    """Return `side_of` box `n` along y, then along x."""
    x1, y1, x2, y2 = corners(boxes, n, True)
    return side_of(y1, y2, scale, S, SR, ALIGNED), side_of(x1, x2, scale, S, SR, ALIGNED)


@triton.jit
def sample(side, cell, k, size):
    """Return two pixels of sample `k` of a cell, their weights, and whether it is read and moves with the box.

    The computation is that of `rcnn.ops.roi_align_matrix`; the axis has `size` pixels.
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
