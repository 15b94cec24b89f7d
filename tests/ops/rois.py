"""Feature maps and regions of interest that several operators are tested on."""

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


def scene(
    seed: int, batch: int = 2, rois: int = 5, channels: int = 3
) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
    """Two levels of a 64 x 48 image, and boxes that may lie outside it."""
    generator = torch.Generator().manual_seed(seed)
    strides = [4, 8]
    levels = [torch.randn(batch, channels, 48 // s, 64 // s, generator=generator, dtype=torch.float64) for s in strides]
    corner = torch.rand(batch, rois, 2, generator=generator, dtype=torch.float64) * 80 - 10
    side = torch.rand(batch, rois, 2, generator=generator, dtype=torch.float64) * 50 - 5
    return (
        levels,
        torch.cat((corner, corner + side), 2),
        torch.randint(0, 2, (batch, rois), generator=generator),
        strides,
    )
