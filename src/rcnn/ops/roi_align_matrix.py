"""The matrix of RoI align in closed form, and its products.

RoI align is linear in the features: an output cell is a weighted sum of T * T pixels, T = 2 * sampling_ratio, and the
weights are a product of one factor in y and one in x. Since every row of the matrix has the same length,
`embedding_bag` computes the product without a sparse tensor: on the CPU it takes a third to two thirds of the time of
MKL's CSR product, and does not need MKL.

B images, n RoIs over all images, C channels, S = output_size, L levels, P pixels of all levels and images concatenated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnn.ops.rois import at_least_float32, safe_boxes


def areas(levels: Sequence[Tensor]) -> list[int]:
    """Return the number of pixels of each level, over all images."""
    return [feature.shape[0] * feature.shape[2] * feature.shape[3] for feature in levels]


def pixels_of(levels: Sequence[Tensor]) -> Tensor:
    """L maps (B, C, H, W) -> (P, C)."""
    return at_least_float32(torch.cat([feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in levels]))


def as_levels(pixels: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """(P, C) -> views of it in the shapes (B, C, H, W) of the levels."""
    parts = zip(pixels.split(areas(levels)), levels, strict=True)
    return [part.view(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2) for part, like in parts]


class Axis(NamedTuple):
    """The T taps of each of the S cells along y or x. A sample is two taps; all lower taps come before all upper ones.

    Attributes:
        pixel: (n, S, T) int32, row or column of the level.
        weight: (n, S, T).
        slope: (n, S, T), derivative of the weight by the position of the sample, in pixels of the image.
        along: (S, T), the position of the sample as a fraction of the box.
        free: (n,), 0 if the box is clamped to its minimum length, else 1.
    """

    pixel: Tensor
    weight: Tensor
    slope: Tensor
    along: Tensor
    free: Tensor


class Taps(NamedTuple):
    """The matrix in its factors.

    Attributes:
        y, x: one axis each.
        first: (n,) int32, the first pixel of the map of the RoI's image and level among the P pixels.
        width: (n,) int32, the width of that map.
    """

    y: Axis
    x: Axis
    first: Tensor
    width: Tensor


def taps_of(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float], grid: tuple[int, int, bool]
) -> Taps:
    """Return the pixels that every RoI reads; `grid` is output_size, sampling_ratio and aligned."""
    dtype, device = torch.promote_types(levels[0].dtype, torch.float32), boxes.device
    counts = areas(levels)
    table = [[sum(counts[:i]), *feature.shape[2:]] for i, feature in enumerate(levels)]
    of_level = torch.tensor(table, dtype=torch.int32).to(device, non_blocking=True)
    first, height, width = of_level[level.flatten()].unbind(dim=1)
    image = torch.arange(len(boxes), dtype=torch.int32, device=device).repeat_interleave(boxes.shape[1])
    scale = torch.tensor(scales, dtype=dtype).to(device, non_blocking=True)[level.flatten()]
    x1, y1, x2, y2 = safe_boxes(boxes).to(dtype).flatten(0, 1).unbind(dim=1)
    y, x = _axis(y1, y2, scale, height, grid), _axis(x1, x2, scale, width, grid)
    return Taps(y, x, first + image * height * width, width)


def _axis(low: Tensor, high: Tensor, scale: Tensor, size: Tensor, grid: tuple[int, int, bool]) -> Axis:
    """Return the taps along one axis of boxes from `low` to `high` (n,) on maps of `size` (n,) pixels."""
    cells, samples, aligned = grid
    start, length = low * scale - (0.5 if aligned else 0.0), (high - low) * scale
    free = torch.ones_like(length) if aligned else (length > 1).to(length.dtype)
    step = (length if aligned else length.clamp(min=1))[:, None, None] / cells
    cell = torch.arange(cells, dtype=low.dtype, device=low.device)[:, None]
    part = torch.arange(samples, dtype=low.dtype, device=low.device) + 0.5
    # Added in torchvision's order, so that a sample falls on the same side of a pixel in both.
    at = start[:, None, None] + cell * step + part * step / samples  # (n, S, samples)
    last = (size[:, None, None] - 1).to(at.dtype)
    share = ((at >= -1) & (at <= last + 1)).to(at.dtype) / samples
    below = torch.minimum(at.clamp(min=0).floor(), last)
    fraction = (at.clamp(min=0) - below).masked_fill_(below == last, 0)
    slope = share.masked_fill((at <= 0) | (below == last), 0) * scale[:, None, None]
    index = torch.cat((below, torch.minimum(below + 1, last)), dim=2).int()
    weight = torch.cat(((1 - fraction) * share, fraction * share), dim=2)
    along = (cell + part / samples) / cells
    return Axis(index, weight, torch.cat((-slope, slope), dim=2), torch.cat((along, along), dim=1), free)


def matrix(taps: Taps) -> tuple[Tensor, Tensor]:
    """Return the pixels (n * S * S, T * T) int32 that every output cell reads, and their weights."""
    y, x = taps.y, taps.x
    rows = taps.first[:, None, None] + y.pixel * taps.width[:, None, None]
    index = rows[:, :, None, :, None] + x.pixel[:, None, :, None, :]
    weight = y.weight[:, :, None, :, None] * x.weight[:, None, :, None, :]
    return index.flatten(0, 2).flatten(1), weight.flatten(0, 2).flatten(1)


def transposed_product(index: Tensor, weight: Tensor, grad: Tensor, pixels: int) -> Tensor:
    """Return the transpose of the matrix (rows, T * T), times grad (rows, C), as (pixels, C)."""
    column, order = index.flatten().sort(stable=True)
    row = order.div(index.shape[1], rounding_mode="floor").int()
    begin = torch.bincount(column, minlength=pixels).cumsum(0).roll(1)
    begin[0] = 0
    return F.embedding_bag(row, grad, begin.int(), per_sample_weights=weight.flatten()[order], mode="sum")


def sampled_product(index: Tensor, grad: Tensor, pixels: Tensor) -> Tensor:
    """Return <grad of an output cell, pixel that it reads> for every entry (rows, T * T) of the matrix."""
    row = torch.arange(len(index), dtype=torch.int32, device=index.device)
    begin, owner = row * index.shape[1], row.repeat_interleave(index.shape[1])
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return backward(grad, pixels, index.flatten(), begin, owner, 0).view(index.shape)


def boxes_backward(taps: Taps, product: Tensor) -> Tensor:
    """Return the gradient (n, 4) of the boxes, from the derivatives of the loss with respect to the weights."""
    y, x = taps.y, taps.x
    product = product.view(len(y.pixel), *2 * y.along.shape[:1], *2 * y.along.shape[1:])  # (n, S, S, T, T)
    at_y = torch.einsum("nijpq,njq,nip->nip", product, x.weight, y.slope)
    at_x = torch.einsum("nijpq,nip,njq->njq", product, y.weight, x.slope)
    sides = []
    for at, axis in ((at_x, x), (at_y, y)):
        moved, stretched = at.sum(dim=(1, 2)), (at * axis.along).sum(dim=(1, 2)) * axis.free
        sides.append((moved - stretched, stretched))
    (x1, x2), (y1, y2) = sides
    return torch.stack((x1, y1, x2, y2), dim=1)
