"""`rcnn::roi_pool_backward` on a GPU: every pixel goes through the RoIs in order, without atomic additions.

B images, R RoIs per image, C channels, S cells per side.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import corners, launch
from rcnn.ops.triton.roi_pool import nearest
from rcnn.ops.triton.sampling import on_device


def roi_pool_backward(
    grad: Tensor, source: Tensor, levels: Sequence[Tensor], boxes: Tensor, level: Tensor, scales: Sequence[float]
) -> list[Tensor]:
    """The body of `rcnn::roi_pool_backward` on a GPU."""
    grad, source, where, out = grad.contiguous(), source.contiguous(), on_device(boxes, level), []
    for which, (like, scale) in enumerate(zip(levels, scales, strict=True)):
        out.append(torch.empty_like(like, memory_format=torch.contiguous_format))
        batch, channels, height, width = like.shape
        block = min(triton.next_power_of_2(channels), 128)
        grid = (height * width, batch, triton.cdiv(channels, block))
        sizes = (which, scale, boxes.shape[1], channels, height * width, width)
        launch(of_pixels, grid, grad, source, *where, out[-1], *sizes, S=grad.shape[-1], BLOCK=block)
    return out


@triton.jit
def near(low, high, scale, pixel, S: tl.constexpr):
    """Return the cells of a box that may contain a pixel along one axis: the first, and the one after the last."""
    first = nearest(low * scale)
    step = tl.maximum(nearest(high * scale) - first + 1, 1.0) / S
    begin, end = tl.floor((pixel - first) / step) - 1, tl.floor((pixel + 1 - first) / step) + 2
    end = tl.minimum(tl.maximum(end, 0.0), S)
    return tl.minimum(tl.maximum(begin, 0.0), S).to(tl.int32), end.to(tl.int32)


@triton.jit(do_not_specialize=["which", "R", "AREA", "W"])
def of_pixels(grad, source, boxes, level, out, which, scale, R, C, AREA, W, S: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the gradient of one pixel, for a block of channels, from the cells whose maximum came from it."""
    pixel, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for r in range(R):
        n = image * R + r
        if tl.load(level + n) == which:
            x1, y1, x2, y2 = corners(boxes, n, True)
            top, bottom = near(y1, y2, scale, pixel // W, S)
            left, right = near(x1, x2, scale, pixel % W, S)
            for cell in range(top * S + left, bottom * S):
                if (cell % S >= left) & (cell % S < right):
                    at = (n * C + c) * (S * S) + cell
                    mine = tl.load(source + at, c < C, -1) == pixel
                    total += tl.load(grad + at, mine, 0.0).to(tl.float32)
    tl.store(out + (image * C + c) * AREA + pixel, total, c < C)
