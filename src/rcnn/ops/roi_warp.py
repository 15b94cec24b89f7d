"""RoI warp (MNC, section 3.2): RoIs are cropped, resized bilinearly and max pooled; differentiable in the boxes.

B images, R RoIs per image, C channels, S = output_size, n = samples, L levels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rcnn.ops.roi_align import roi_align, roi_align_reference


def roi_warp(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[float],
    output_size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Return the maximum of n x n bilinear samples in each of S x S cells of every box, read from one level.

    The resized crop has S * n samples per side, each at the centre of its part of the box, without rounding. The
    gradient of the boxes flows through the largest sample of each cell.

    Args:
        levels: L feature maps (B, C, H, W); H and W may differ between levels.
        boxes: (B, R, 4) pixels of the image.
        level: (B, R) int64, index into `levels`.
        strides: L, pixels of the image per cell of the level.
        output_size: S, cells per side.
        samples: n, samples per side of a cell, 1 or more.
        aligned: as for `roi_align`.

    Returns:
        (B, R, C, S, S), in the dtype of the levels.
    """
    crop = roi_align(levels, boxes, level, strides, output_size * samples, 1, aligned)
    return F.max_pool2d(crop.flatten(0, 1), samples).unflatten(0, boxes.shape[:2])


def roi_warp_reference(
    levels: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    strides: Sequence[float],
    output_size: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Compute `roi_warp` one cell at a time; differentiable by autograd alone."""
    crop = roi_align_reference(levels, boxes, level, strides, output_size * samples, 1, aligned)
    spans = [slice(i * samples, (i + 1) * samples) for i in range(output_size)]
    rows = [torch.stack([crop[..., y, x].amax(dim=(3, 4)) for x in spans], dim=3) for y in spans]
    return torch.stack(rows, dim=3)
