"""`rcnn::roi_pool`: RoI max pooling (Fast R-CNN, section 2.1) over all levels and images in one call.

B images, R RoIs per image, C channels, S = output_size, L levels. A box is read in inclusive pixels: its corners are
divided by the stride and rounded, halves away from zero, and both rounded ends belong to it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn.ops.operator import LIBRARY, operator
from rcnn.ops.rois import at_least_float32, rois_by_level, safe_boxes


def roi_pool(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[float], output_size: int
) -> Tensor:
    """Return the maximum of each of S x S cells of every box, read from one level; 0 if a cell is empty.

    Differentiable in the levels. The results equal those of `torchvision.ops.roi_pool`.

    Args:
        levels: L feature maps (B, C, H, W); H and W may differ between levels.
        boxes: (B, R, 4) pixels of the image, inclusive.
        level: (B, R) int64, index into `levels`.
        strides: L, pixels of the image per cell of the level.
        output_size: S, cells per side.

    Returns:
        (B, R, C, S, S), in the dtype of the levels.
    """
    scales = [1.0 / stride for stride in strides]
    return _roi_pool(list(levels), boxes.detach(), level, scales, output_size)[0]


def roi_pool_reference(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[float], output_size: int
) -> Tensor:
    """Compute `roi_pool` one cell at a time; differentiable by autograd alone."""
    out = []
    for image, rois in enumerate(safe_boxes(boxes)):
        for roi, which in zip(rois.tolist(), level[image].tolist(), strict=True):
            feature = levels[which][image]
            x1, y1, x2, y2 = (_round(v / strides[which]) for v in roi)
            rows = _cells(y1, y2, output_size, feature.shape[1])
            columns = _cells(x1, x2, output_size, feature.shape[2])
            for part in (feature[:, row, column] for row in rows for column in columns):
                out.append(part.amax(dim=(1, 2)) if part.numel() else part.new_zeros(len(feature)))
    shape = (*boxes.shape[:2], output_size, output_size, levels[0].shape[1])
    pooled = torch.stack(out).reshape(shape) if out else levels[0].new_zeros(shape)
    return pooled.permute(0, 1, 4, 2, 3)


def _round(value: float) -> int:
    """Round to the nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _cells(first: int, last: int, count: int, size: int) -> list[slice]:
    """Return the pixels of each cell of a box from `first` to `last`, clipped to the map."""
    step = max(last - first + 1, 1) / count
    edges = [(first + math.floor(i * step), first + math.ceil((i + 1) * step)) for i in range(count)]
    return [slice(min(max(low, 0), size), min(max(high, 0), size)) for low, high in edges]


@operator("roi_pool")
def _roi_pool(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float], output_size: int
) -> tuple[Tensor, Tensor]:
    """Return the maxima (B, R, C, S, S), and the pixel of the map that each came from, -1 if the cell is empty."""
    size = output_size
    out = levels[0].new_zeros(*boxes.shape[:2], levels[0].shape[1], size, size)
    source = torch.zeros_like(out, dtype=torch.int32)
    if out.numel() == 0:
        return out, source
    for feature, scale, (rows, rois) in zip(levels, scales, rois_by_level(boxes, level, len(levels)), strict=True):
        feature = at_least_float32(feature)
        pooled, argmax = torch.ops.torchvision.roi_pool(feature, rois.to(feature.dtype), scale, size, size)
        out.flatten(0, 1)[rows] = pooled.to(out.dtype)
        source.flatten(0, 1)[rows] = argmax
    return out, source


@torch.library.register_fake("rcnn::roi_pool", lib=LIBRARY)
def _(
    levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: object, output_size: int
) -> tuple[Tensor, Tensor]:
    out = levels[0].new_empty(*boxes.shape[:2], levels[0].shape[1], output_size, output_size)
    return out, torch.empty_like(out, dtype=torch.int32)


@operator("roi_pool_backward")
def _roi_pool_backward(
    grad: Tensor, source: Tensor, levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float]
) -> list[Tensor]:
    if grad.numel() == 0:
        return [torch.zeros_like(feature, memory_format=torch.contiguous_format) for feature in levels]
    size, wide, out = grad.shape[-1], at_least_float32(grad).flatten(0, 1), []
    for like, scale, (rows, rois) in zip(levels, scales, rois_by_level(boxes, level, len(levels)), strict=True):
        # One argument list serves all devices; the kernel reads only the sources and the image column of the RoIs.
        arguments = (source.flatten(0, 1)[rows].contiguous(), scale, size, size, *like.shape)
        part = torch.ops.torchvision._roi_pool_backward(wide[rows].contiguous(), rois.to(wide.dtype), *arguments)
        out.append(part.to(like.dtype))
    return out


@torch.library.register_fake("rcnn::roi_pool_backward", lib=LIBRARY)
def _(grad: Tensor, source: Tensor, levels: Sequence[Tensor], *_: object) -> list[Tensor]:
    return [torch.empty_like(feature, memory_format=torch.contiguous_format) for feature in levels]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    levels, boxes, level, ctx.scales, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], boxes, level, *levels)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    source, boxes, level, *levels = ctx.saved_tensors
    return _roi_pool_backward(grad, source, levels, boxes, level, ctx.scales), None, None, None, None


torch.library.register_autograd("rcnn::roi_pool", _backward, setup_context=_setup_context, lib=LIBRARY)
