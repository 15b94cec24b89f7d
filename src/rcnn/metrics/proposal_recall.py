"""Class-agnostic recall of the ground truth by proposals, as the reference code py-faster-rcnn measures it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn.metrics.overlap import area, best_first, box_iou
from rcnn.metrics.types import Truth

TOPS = (50, 100, 300, 1000)
"""Numbers of proposals per image."""

IOUS = np.arange(50, 100, 5) / 100
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""Ranges of the area in pixels of the original image, without the upper bound."""


@dataclass(frozen=True, slots=True)
class ProposalMetrics:
    """Recall of the best-scored proposals, for T numbers of proposals per image.

    Attributes:
        tops: the T numbers of proposals per image.
        ious: (10,) 0.5, 0.55 .. 0.95.
        recall: (T, 10) share of the objects that are covered at each IoU; NaN without objects.
        ar: (T,) mean of `recall` over the IoUs: AR@top.
        ar_by_size: small, medium and large -> (T,).
        counts: small, medium and large -> number of objects.
        most: largest number of proposals that an image has.
    """

    tops: tuple[int, ...]
    ious: np.ndarray
    recall: np.ndarray
    ar: np.ndarray
    ar_by_size: dict[str, np.ndarray]
    counts: dict[str, int]
    most: int


def proposal_recall(
    truths: Sequence[Truth],
    proposals: Sequence[tuple[np.ndarray, np.ndarray]],
    tops: Sequence[int] = TOPS,
) -> ProposalMetrics:
    """Compute the recall of class-agnostic boxes over N images, by object size. Ignored boxes are left out.

    Objects and proposals are paired one to one, the pair with the largest IoU first. All sizes are paired together,
    so that a proposal for a large object can't be counted again for a small one.

    Args:
        truths: ground truth of N images.
        proposals: N pairs of boxes (P, 4) and scores (P,), in any order.
        tops: numbers of best-scored proposals per image.
    """
    objects = [truth.boxes[~truth.ignore] for truth in truths]
    ranked = [boxes[best_first(scores)] for boxes, scores in proposals]
    pairs = list(zip(objects, ranked, strict=True))
    covers = np.array(
        [np.concatenate([best_cover(box_iou(truth, boxes[:top])) for truth, boxes in pairs] or [[]]) for top in tops]
    )
    areas = area(np.concatenate(objects or [np.zeros((0, 4))]).astype(np.float64))
    masks = {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}
    recall = _recall(covers)
    return ProposalMetrics(
        tops=tuple(tops),
        ious=IOUS,
        recall=recall,
        ar=recall.mean(axis=1),
        ar_by_size={name: _recall(covers[:, mask]).mean(axis=1) for name, mask in masks.items()},
        counts={name: int(mask.sum()) for name, mask in masks.items()},
        most=max((len(boxes) for boxes, _ in proposals), default=0),
    )


def best_cover(overlap: np.ndarray) -> np.ndarray:
    """Return (G,): the IoU of the proposal paired with each object in IoUs (G, P), 0 if below the smallest of `IOUS`.

    Pairing is greedy, largest IoU first; ties go to the first object, then to the better proposal.
    """
    cover = np.zeros(len(overlap))
    remaining = overlap[:, (overlap >= IOUS[0]).any(axis=0)]
    while remaining.size and remaining.max() >= IOUS[0]:
        truth, proposal = np.unravel_index(remaining.argmax(), remaining.shape)
        cover[truth] = remaining[truth, proposal]
        remaining[truth], remaining[:, proposal] = -1, -1
    return cover


def _recall(covers: np.ndarray) -> np.ndarray:
    """Return the recall (T, 10) from IoUs (T, G); NaN if there are no objects."""
    if covers.shape[1] == 0:
        return np.full((len(covers), len(IOUS)), np.nan)
    return (covers[:, :, None] >= IOUS).mean(axis=1)
