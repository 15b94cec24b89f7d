"""Boxes as the operators read them: finite, and for torchvision's pooling kernels as rows (image, x1, y1, x2, y2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

LIMIT = 1e6  # pixels: far outside any image, and small enough that differences and areas stay exact and finite


def safe_boxes(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 4) in at least float32, every coordinate finite and within +-LIMIT; NaN becomes 0."""
    return at_least_float32(boxes).nan_to_num(nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp(-LIMIT, LIMIT)


def rois_by_level(boxes: Tensor, level: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, R, 4), (B, R) -> for each of `count` levels: indices (n,) into the B * R boxes, and their rows (n, 5)."""
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    rows = torch.cat((image[:, None], safe_boxes(boxes).flatten(0, 1)), dim=1)
    for which in range(count):
        index = (level.flatten() == which).nonzero().squeeze(1)
        yield index, rows[index]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32, as boxes, losses and the CPU kernels need."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
