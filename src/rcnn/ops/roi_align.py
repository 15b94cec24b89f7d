"""`rcnn::roi_align`: RoI align over all levels and images in one call, as a product with a sparse matrix.

B images, R RoIs per image, C channels, S = output_size, L levels, P pixels of all levels and images concatenated. Boxes
are continuous xyxy pixels of the padded batch.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnn.ops.operator import LIBRARY, operator
from rcnn.ops.roi_align_matrix import (
    areas,
    as_levels,
    boxes_backward,
    matrix,
    pixels_of,
    sampled_product,
    taps_of,
    transposed_product,
)
from rcnn.ops.rois import at_least_float32, rois_by_level, safe_boxes


def roi_align(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average bilinear samples in S x S cells of every box; each box is read from one level.

    Differentiable in the levels and, if `sampling_ratio` is above 0, in the boxes. (Mask R-CNN, section 3; the results
    equal those of `torchvision.ops.roi_align`.)

    Args:
        levels: L feature maps (B, C, H, W); H and W may differ between levels.
        boxes: (B, R, 4) pixels of the image.
        level: (B, R) int64, index into `levels`.
        strides: L, pixels of the image per cell of the level.
        output_size: S, cells per side.
        sampling_ratio: samples per side of a cell; 0: as many as the cell covers pixels of the level, rounded up.
        aligned: whether to shift by half a pixel, so that a sample at a pixel's centre reads that pixel. Otherwise
            boxes are at least one cell wide and high.

    Returns:
        (B, R, C, S, S), in the dtype of the levels.

    Raises:
        NotImplementedError: `sampling_ratio` is 0 and the boxes require a gradient.
    """
    if sampling_ratio == 0 and boxes.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "RoI align with sampling_ratio 0 has no gradient for its boxes; set sampling_ratio to 1 or more, "
            "or detach the boxes."
        )
    scales = [1.0 / stride for stride in strides]
    return _roi_align(list(levels), boxes, level, scales, output_size, sampling_ratio, aligned).permute(0, 1, 4, 2, 3)


def roi_align_reference(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Compute `roi_align` one sample at a time; differentiable by autograd alone."""
    out = []
    for image, rois in enumerate(safe_boxes(boxes)):
        for roi, which in zip(rois, level[image].tolist(), strict=True):
            feature = levels[which][image]
            x1, y1, x2, y2 = roi / strides[which] - (0.5 if aligned else 0.0)
            width, height = (x2 - x1, y2 - y1) if aligned else ((x2 - x1).clamp(min=1), (y2 - y1).clamp(min=1))
            rows, columns = (sampling_ratio or max(0, math.ceil(side / output_size)) for side in (height, width))
            total = feature.new_zeros(output_size, output_size, len(feature))
            for i, j, p, q in product(range(output_size), range(output_size), range(rows), range(columns)):
                y = y1 + (i + (p + 0.5) / rows) * height / output_size
                x = x1 + (j + (q + 0.5) / columns) * width / output_size
                sample = _bilinear(feature, y, x) / (rows * columns)
                total = total.index_put((torch.tensor(i), torch.tensor(j)), sample, accumulate=True)
            out.append(total.permute(2, 0, 1))
    shape = (*boxes.shape[:2], levels[0].shape[1], output_size, output_size)
    return torch.stack(out).reshape(shape) if out else levels[0].new_zeros(shape)


def _bilinear(feature: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(C, H, W) read at a point -> (C,): the value of the border up to one cell outside, 0 beyond."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(len(feature))
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[:, top, left] * (1 - (x - left)) + feature[:, top, right] * (x - left)
    lower = feature[:, bottom, left] * (1 - (x - left)) + feature[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


@operator("roi_align")
def _roi_align(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Compute `roi_align` as (B, R, S, S, C), the order of the product and of a channels-last head."""
    size, dtype = output_size, levels[0].dtype
    shape = (*boxes.shape[:2], size, size, levels[0].shape[1])
    if math.prod(shape) == 0:
        return levels[0].new_zeros(shape)
    if _by_kernel(levels, sampling_ratio):
        out = levels[0].new_zeros(shape)
        boxes = _upright(boxes, sampling_ratio)
        for feature, scale, (rows, rois) in zip(levels, scales, rois_by_level(boxes, level, len(levels)), strict=True):
            feature = at_least_float32(feature)
            arguments = (scale, size, size, sampling_ratio, aligned)
            pooled = torch.ops.torchvision.roi_align(feature, rois.to(feature.dtype), *arguments)
            out.flatten(0, 1)[rows] = pooled.permute(0, 2, 3, 1).to(dtype)
        return out
    pixels = pixels_of(levels)
    index, weight = matrix(taps_of(levels, boxes, level, scales, (size, sampling_ratio, aligned)))
    return F.embedding_bag(index, pixels, per_sample_weights=weight, mode="sum").view(shape).to(dtype)


@torch.library.register_fake("rcnn::roi_align", lib=LIBRARY)
def _(levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: object, output_size: int, *_: object) -> Tensor:
    return levels[0].new_empty(*boxes.shape[:2], output_size, output_size, levels[0].shape[1])


@operator("roi_align_backward")
def _roi_align_backward(
    grad: Tensor,
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients (P, C) of the pixels and (B, R, 4) of the boxes; zeros if not `wanted` (pixels, boxes)."""
    size, channels = grad.shape[2], grad.shape[4]
    pixels_grad = levels[0].new_zeros(sum(areas(levels)), channels)
    boxes_grad = torch.zeros_like(boxes)
    if grad.numel() == 0:
        return pixels_grad, boxes_grad
    by_kernel = _by_kernel(levels, sampling_ratio)
    if wanted[0] and by_kernel:
        wide, upright = at_least_float32(grad).flatten(0, 1).permute(0, 3, 1, 2), _upright(boxes, sampling_ratio)
        parts = []
        for like, scale, (rows, rois) in zip(levels, scales, rois_by_level(upright, level, len(levels)), strict=True):
            arguments = (rois.to(wide.dtype), scale, size, size, *like.shape, sampling_ratio, aligned)
            parts.append(torch.ops.torchvision._roi_align_backward(wide[rows].contiguous(), *arguments))
        pixels_grad = pixels_of(parts).to(grad.dtype)
    if by_kernel and not wanted[1]:
        return pixels_grad, boxes_grad
    taps = taps_of(levels, boxes, level, scales, (size, sampling_ratio, aligned))
    index, weight = matrix(taps)
    rows = at_least_float32(grad).reshape(-1, channels)
    if wanted[0] and not by_kernel:
        pixels_grad = transposed_product(index, weight, rows, len(pixels_grad)).to(grad.dtype)
    if wanted[1]:
        boxes_grad = boxes_backward(taps, sampled_product(index, rows, pixels_of(levels))).view(boxes.shape)
        boxes_grad = (boxes_grad * boxes.isfinite()).to(boxes.dtype)
    return pixels_grad, boxes_grad


@torch.library.register_fake("rcnn::roi_align_backward", lib=LIBRARY)
def _(grad: Tensor, levels: Sequence[Tensor], boxes: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return levels[0].new_empty(sum(areas(levels)), grad.shape[4]), torch.empty_like(boxes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    levels, boxes, level, ctx.scales, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(boxes, level, *levels)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes, level, *levels = ctx.saved_tensors
    wanted = [any(ctx.needs_input_grad[0]), ctx.needs_input_grad[1]]
    settings = (ctx.scales, ctx.sampling_ratio, ctx.aligned)
    pixels_grad, boxes_grad = _roi_align_backward(grad, levels, boxes, level, *settings, wanted)
    return as_levels(pixels_grad, levels), boxes_grad, None, None, None, None, None


torch.library.register_autograd("rcnn::roi_align", _backward, setup_context=_setup_context, lib=LIBRARY)


def _by_kernel(levels: Sequence[Tensor], sampling_ratio: int) -> bool:
    """Return whether torchvision's kernel is used: on CUDA, or if the number of samples depends on the box."""
    return sampling_ratio == 0 or levels[0].is_cuda


def _upright(boxes: Tensor, sampling_ratio: int) -> Tensor:
    """Make inverted boxes empty for adaptive sampling, with which torchvision's kernel would allocate huge memory."""
    if sampling_ratio > 0:
        return boxes
    return torch.cat((boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])), dim=-1)
