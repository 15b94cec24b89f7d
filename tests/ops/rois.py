"""Feature maps and regions of interest for the tests of several operators."""

import torch
from torch import Tensor

MAP = torch.tensor([[(7 * y + 3 * x) % 11 for x in range(6)] for y in range(6)], dtype=torch.float64)[None, None]
ROI = torch.tensor([[[10.0, 20, 70, 85]]], dtype=torch.float64)
ZERO = torch.zeros(1, 1, dtype=torch.int64)
EDGES = torch.tensor(
    [
        [-40, -40, 200, 200],
        [-8, -8, 0, 0],
        [60, 44, 64, 48],
        [63.5, 47.5, 90, 90],
        [0, 0, 64, 48],
        [-500, -500, -400, -400],
        [30, 30, 20, 20],
        [7, 7, 7, 7],
        [-12, 3, 5, 52],
        [1e9, 0, -1e9, 5],
    ],
    dtype=torch.float64,
)


def by_torchvision(pool, levels, boxes, level, strides, size, *options) -> Tensor:
    """Call one of torchvision's operators for each RoI."""
    rows = []
    for image in range(boxes.shape[0]):
        for box, which in zip(boxes[image], level[image].tolist(), strict=True):
            roi = torch.cat((box.new_tensor([image]), box))[None]
            rows.append(pool(levels[which], roi, size, 1 / strides[which], *options))
    return torch.cat(rows).unflatten(0, boxes.shape[:2])


def feature_gradients(function, levels, *arguments) -> tuple[Tensor, ...]:
    """Return the gradients of the levels for a fixed gradient of the outputs."""
    leaves = [feature.clone().requires_grad_() for feature in levels]
    out = function(leaves, *arguments)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    return torch.autograd.grad(out, leaves, weight)


def scene(
    seed: int, batch: int = 2, rois: int = 5, channels: int = 3
) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
    """Return two levels of a 64 x 48 image, and boxes that may lie outside it."""
    generator = torch.Generator().manual_seed(seed)
    strides = [4, 8]
    levels = [torch.randn(batch, channels, 48 // s, 64 // s, generator=generator, dtype=torch.float64) for s in strides]
    corner = torch.rand(batch, rois, 2, generator=generator, dtype=torch.float64) * 80 - 10
    side = torch.rand(batch, rois, 2, generator=generator, dtype=torch.float64) * 50 - 5
    level = torch.randint(0, 2, (batch, rois), generator=generator)
    return levels, torch.cat((corner, corner + side), 2), level, strides


def wild(boxes: Tensor) -> Tensor:
    """Return the boxes with huge or non-finite numbers in the first two boxes of each image."""
    boxes = boxes.clone()
    boxes[0, 0], boxes[0, 1, 2], boxes[1, 0, 1], boxes[1, 1] = torch.nan, torch.inf, -torch.inf, 1e30
    return boxes
