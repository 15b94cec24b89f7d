"""Boxes that are safe to compute an index from."""

import torch
from torch import Tensor

LIMIT = 1e6  # pixels: far outside any image, and small enough that differences and areas stay exact and finite


def safe_boxes(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 4) in at least float32, every coordinate finite and within +-LIMIT; NaN becomes 0."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    return boxes.nan_to_num(nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp(-LIMIT, LIMIT)
