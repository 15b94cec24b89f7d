"""Which anchors and RoIs are trained, and on what: labels from overlaps, then a uniform draw by keys.

B images, N candidates (anchors or RoIs), G padded ground-truth boxes, n samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import rcnn.ops as ops
from rcnn.model.structures import take


class Assignment(NamedTuple):
    """The training label of every candidate. A candidate that is neither positive nor negative is not trained.

    Attributes:
        positive: (B, N) bool, an object.
        negative: (B, N) bool, background.
        truth: (B, N) int64, the ground-truth box of the highest IoU; meaningless where not positive.
    """

    positive: Tensor
    negative: Tensor
    truth: Tensor


class Sample(NamedTuple):
    """The candidates that are trained.

    Attributes:
        indices: (B, n) int64 into the candidates; positives first, or the hardest first if sampled by loss.
        valid: (B, n) bool.
        positive: (B, n) bool, a subset of `valid`.
    """

    indices: Tensor
    valid: Tensor
    positive: Tensor


class Rule(NamedTuple):
    """How overlaps become labels.

    Attributes:
        positive: IoU >= this is positive.
        low: lowest IoU of negatives, included.
        high: highest IoU of negatives, not included.
        force: the best candidates of each object are positive too.
        forget: drop ignored objects, so that candidates inside them may be negative.
    """

    positive: float
    low: float
    high: float
    force: bool
    forget: bool = False


def assign(candidates: Tensor, allowed: Tensor, boxes: Tensor, valid: Tensor, ignore: Tensor, rule: Rule) -> Assignment:
    """Label candidates by their overlaps (paper, section 3.1.2).

    An object that touches no candidate forces none: its best IoU must be above 0. A candidate that is not positive and
    has at least half of its area inside an ignored object is not trained; ignored objects are never matched.

    Args:
        candidates: (N, 4) anchors, or (B, N, 4) RoIs.
        allowed: (B, N) bool; other candidates are not trained and never count as the best of an object.
        boxes: (B, G, 4) ground-truth boxes.
        valid: (B, G) bool.
        ignore: (B, G) bool.
        rule: the thresholds.
    """
    matches = ops.match(candidates, boxes, valid & ~ignore, allowed, None if rule.forget else valid & ignore)
    positive = matches.best_iou >= rule.positive
    if rule.force:
        positive = positive | matches.is_best
    negative = (matches.best_iou >= rule.low) & (matches.best_iou < rule.high) & ~matches.covered
    return Assignment(positive & allowed, negative & ~positive & allowed, matches.best_truth)


def sample(
    assignment: Assignment, keys: Tensor, count: int, positive_fraction: float, precedence: Tensor | None = None
) -> Sample:
    """Draw at most `count` candidates per image, at most `positive_fraction` of them positive; the rest are negative.

    The candidates with the largest keys are drawn, so the draw is uniform if the keys are.

    Args:
        assignment: of N candidates.
        keys: (B, N) float in [0, 1).
        count: samples per image.
        positive_fraction: largest share of positives.
        precedence: (B, N) integers >= 0; negatives of higher precedence are drawn first. None: all are equal.
    """
    max_positives = round(count * positive_fraction)
    positive_index, is_positive = _largest(keys, assignment.positive, max_positives)
    order = keys if precedence is None else keys + precedence
    negative_index, is_negative = _largest(order, assignment.negative, count)
    positives = is_positive.sum(dim=1, keepdim=True)  # (B, 1) number drawn
    slot = torch.arange(count, device=keys.device).expand(keys.shape[0], count)
    positive = slot < positives  # (B, n) positives come first
    negative_slot = (slot - positives).clamp(min=0)
    index = take(negative_index, negative_slot)
    if max_positives > 0:
        index = torch.where(positive, take(positive_index, slot.clamp(max=max_positives - 1)), index)
    valid = positive | (take(is_negative, negative_slot) & ~positive)
    return Sample(torch.where(valid, index, 0), valid, positive)


def _largest(keys: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices (B, count) of the largest keys among the marked candidates, and which of them are valid."""
    masked = keys.masked_fill(~among, -1.0)
    short = max(0, count - masked.shape[1])
    masked = torch.nn.functional.pad(masked, (0, short), value=-1.0)
    # Ties need no order: keys are multiples of 2^-53, and candidates that are not marked, all equal, are not valid.
    value, index = masked.topk(count, dim=1)
    return torch.where(value >= 0, index, 0), value >= 0
