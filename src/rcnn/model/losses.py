"""Losses of both stages, and their divisors.

A loss is a pair (sum, count) of scalars: the division comes after the sum over processes. Masks are applied before the
nonlinear step: rows that do not count are replaced by harmless ones, so that they can't cause a NaN in a gradient.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rcnn.config import LossKind
from rcnn.model import boxes as box_ops

Normaliser = Literal["paper", "sampled-cells", "per-image", "sampled", "requested", "mean"]


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Return 0.5 d^2 / beta where |d| < beta, else |d| - 0.5 beta; beta = 1 / sigma^2. With beta 0: |d|."""
    size = difference.abs()
    if beta == 0:
        return size
    return torch.where(size < beta, 0.5 * size.square() / beta, size - 0.5 * beta)


def box_loss(
    deltas: Tensor,
    targets: Tensor,
    anchors: Tensor,
    kind: LossKind,
    beta: float,
    normal: box_ops.Normal = box_ops.PLAIN,
) -> Tensor:
    """Loss of each row, summed over coordinates; (..., 4), (..., 4), (..., 4) -> (...).

    Args:
        deltas: predicted.
        targets: ground-truth boxes, of positive sides.
        anchors: boxes that the deltas are relative to.
        kind: on deltas (`smooth_l1`, `l1`) or 1 - overlap of the decoded boxes.
        beta: where smooth L1 turns linear.
        normal: normalisation of the deltas.
    """
    if kind in ("smooth_l1", "l1"):
        difference = deltas - box_ops.encode(targets, anchors, normal)
        return smooth_l1(difference, beta if kind == "smooth_l1" else 0.0).sum(dim=-1)
    return 1 - box_ops.generalised_iou(box_ops.decode(deltas, anchors, normal), targets, kind)


def objectness_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Log loss of each anchor: logits (B, n), or (B, n, 2) as (background, object), and (B, n) bool -> (B, n)."""
    if logits.dim() == positive.dim():
        return functional.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    wrong = torch.where(positive, logits[..., 0] - logits[..., 1], logits[..., 1] - logits[..., 0])
    return functional.softplus(wrong)


def focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss (Lin et al., arXiv 1708.02002): log loss that weighs correct predictions less; any shape -> the same.

    With p the probability of the true answer: -(1 - p)^gamma log p, times alpha where `target` (bool), else 1 - alpha.
    """
    right = torch.where(target, logits, -logits)
    # Not written as a power of 1 - p, whose gradient is not finite at 0.
    easy = (-gamma * functional.softplus(right)).exp()
    return torch.where(target, alpha, 1 - alpha) * easy * functional.softplus(-right)


def normalise(
    classification: Tensor,
    box: Tensor,
    valid: Tensor,
    positive: Tensor,
    normaliser: Normaliser,
    cells: Tensor,
    positive_weight: float | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(sum, count) of the RPN's two losses, classification and boxes (paper, equation 1: N_cls and N_reg).

    paper: N_cls = samples requested per image; N_reg = cells of the unpadded image over all levels. sampled-cells: the
    same N_reg, with N_cls = anchors sampled. per-image: each image is divided by its own samples, then the images are
    averaged. sampled: all samples of the batch. requested: samples requested. mean: N_reg = 4 x positives.

    Args:
        classification: (B, n) loss of each sample, 0 where not valid.
        box: (B, n) loss of each sample, 0 where not positive.
        valid: (B, n) bool.
        positive: (B, n) bool.
        normaliser: the rule.
        cells: (B,) locations of each unpadded image; 0 for a filler image.
        positive_weight: sum of the weights of an image's boxes, read by `per-image`. None: 1 / samples each.
    """
    sampled, requested = valid.sum(dim=1), valid.shape[1] * (cells > 0)
    if normaliser == "per-image":
        share = 1 / sampled.clamp(min=1)
        box_share = share if positive_weight is None else positive_weight / positive.sum(dim=1).clamp(min=1)
        images = (cells > 0).sum()
        return ((classification.sum(dim=1) * share).sum(), images), ((box.sum(dim=1) * box_share).sum(), images)
    counts = {
        "paper": (requested, cells),
        "sampled-cells": (sampled, cells),
        "sampled": (sampled, sampled),
        "requested": (requested, requested),
        "mean": (sampled, 4 * positive.sum(dim=1)),
    }[normaliser]
    return (classification.sum(), counts[0].sum()), (box.sum(), counts[1].sum())
