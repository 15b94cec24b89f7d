"""Boxes as tensors: area, overlap, clipping, and the parameterisation of the paper.

(..., 4) are continuous xyxy pixels: width = x2 - x1. An integer box of the paper, whose last pixel belongs to it, ends
one pixel later.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest decoded growth of a side: a delta never makes a box more than 62.5 times an anchor's size."""


class Normal(NamedTuple):
    """Normalisation of deltas t: (t - mean) / std. Each is a number, or (4,) for tx, ty, tw, th."""

    mean: Tensor | float = 0.0
    std: Tensor | float = 1.0


PLAIN = Normal()
"""Deltas without normalisation."""


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) area in square pixels; 0 for an inverted box."""
    return _sides(boxes).clamp(min=0).prod(dim=-1)


def _sides(boxes: Tensor) -> Tensor:
    low, high = boxes.split(2, dim=-1)
    return high - low


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    return area(torch.cat((low, high), dim=-1))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4), (..., 4), broadcast -> (...) intersection over union in [0, 1]; 0 for two boxes without area."""
    shared = _intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, 4), (..., M, 4) -> (..., N, M) IoU of every pair."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def generalised_iou(a: Tensor, b: Tensor, kind: Literal["iou", "giou", "diou", "ciou"]) -> Tensor:
    """(..., 4), (..., 4) -> (...) IoU and its relatives for losses; boxes need positive sides.

    GIoU (arXiv 1902.09630) subtracts the share of the hull that neither box covers; DIoU (arXiv 1911.08287) the squared
    distance of the centres over the hull's squared diagonal; CIoU also the disagreement of the aspect ratios.
    """
    overlap = iou(a, b)
    if kind == "iou":
        return overlap
    hull = torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), dim=-1)
    tiny = torch.finfo(a.dtype).tiny
    if kind == "giou":
        hull_area = area(hull).clamp(min=tiny)
        union = area(a) + area(b) - _intersection(a, b)
        return overlap - (hull_area - union) / hull_area
    (centre_a, size_a), (centre_b, size_b) = centre_size(a), centre_size(b)
    distance = (centre_a - centre_b).square().sum(dim=-1) / _sides(hull).square().sum(dim=-1).clamp(min=tiny)
    if kind == "diou":
        return overlap - distance
    angle_a, angle_b = (torch.atan2(size[..., 0], size[..., 1]) for size in (size_a, size_b))
    aspect = (4 / math.pi**2) * (angle_a - angle_b).square()
    weight = (aspect / (1 - overlap + aspect).clamp(min=tiny)).detach()
    return overlap - distance - weight * aspect


def centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) xyxy -> (..., 2) centres, (..., 2) sizes."""
    low, high = boxes.split(2, dim=-1)
    return (low + high) / 2, high - low


def encode(boxes: Tensor, anchors: Tensor, normal: Normal = PLAIN) -> Tensor:
    """(..., 4) boxes relative to (..., 4) anchors -> (..., 4) normalised deltas. All sides must be positive.

    Paper, section 3.1.2: tx = (x - xa) / wa, tw = log(w / wa), likewise y and h, of centres and sizes.
    """
    (centre, size), (origin, unit) = centre_size(boxes), centre_size(anchors)
    deltas = torch.cat(((centre - origin) / unit, (size / unit).log()), dim=-1)
    return deltas if normal is PLAIN else (deltas - normal.mean) / normal.std


def decode(deltas: Tensor, anchors: Tensor, normal: Normal = PLAIN) -> Tensor:
    """(..., 4) normalised deltas on (..., 4) anchors -> (..., 4) boxes; undoes `encode` below `MAX_LOG_SCALE`."""
    origin, unit = centre_size(anchors)
    shift, log_size = (deltas if normal is PLAIN else deltas * normal.std + normal.mean).split(2, dim=-1)
    centre, half = origin + shift * unit, unit * log_size.clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def larger_than(boxes: Tensor, least: float) -> Tensor:
    """(..., 4) -> (...) bool: True if each side is positive and at least `least` pixels long."""
    shorter = _sides(boxes).amin(dim=-1)
    return shorter >= least if least > 0 else shorter > 0


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(B, ..., 4) boxes, (B, 2) sizes as (height, width) -> (B, ..., 4) boxes inside [0, width] x [0, height]."""
    limit = sizes.to(boxes.dtype).flip(-1).repeat(1, 2)  # (B, 4) as (w, h, w, h)
    limit = limit.view(limit.shape[0], *(1,) * (boxes.dim() - 2), 4)
    return boxes.clamp(min=0).minimum(limit)
