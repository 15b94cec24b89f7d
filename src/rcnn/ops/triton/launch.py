"""Common parts of the kernels: how they are launched, and how they read boxes."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LIMIT = tl.constexpr(1e6)  # as in `rcnn.ops.rois`


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Queue a kernel, unless its grid is empty.

    Products and sums are not contracted, so that an IoU has the same bits as on the CPU.
    """
    if all(grid):
        kernel[grid](*arguments, **constants, enable_fp_fusion=False)


def as_bytes(mask: Tensor) -> Tensor:
    """A bool mask -> contiguous uint8; a view if the mask is contiguous."""
    return mask.contiguous().view(torch.uint8)


@triton.jit
def safe(x):
    """Apply `rcnn.ops.rois.safe_boxes` to loaded coordinates, in float32."""
    x = x.to(tl.float32)
    return tl.where(x == x, tl.minimum(tl.maximum(x, -LIMIT), LIMIT), 0.0)


@triton.jit
def corners(boxes, row, mask):
    """Read the rows `row` of (n, 4) boxes as four columns."""
    at = boxes + row.to(tl.int64) * 4
    x1, y1 = safe(tl.load(at, mask, 0.0)), safe(tl.load(at + 1, mask, 0.0))
    x2, y2 = safe(tl.load(at + 2, mask, 0.0)), safe(tl.load(at + 3, mask, 0.0))
    return x1, y1, x2, y2


@triton.jit
def overlap(x1, y1, x2, y2, X1, Y1, X2, Y2):
    """Return the area of the intersection of two boxes."""
    return tl.maximum(tl.minimum(x2, X2) - tl.maximum(x1, X1), 0.0) * tl.maximum(
        tl.minimum(y2, Y2) - tl.maximum(y1, Y1), 0.0
    )
