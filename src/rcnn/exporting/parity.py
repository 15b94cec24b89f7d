"""The agreement of two runtimes: their detections and proposals on the same batches, box by box."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcnn.model.structures import AnyBatch, Detections, Proposals
from rcnn.runtime.protocol import Runtime

PIXELS, SCORE, SHARE = 0.05, 1e-3, 0.995
"""Largest differences of a coordinate (pixels of the resized image) and of a score of boxes that agree, and the
share of boxes that must agree."""


@dataclass
class Parity:
    """The number of boxes of two runtimes that agree.

    Attributes:
        images: number of images.
        detections: their number, for each image that of the runtime with more of them.
        agreed: number of detections that both runtimes have.
        proposals, proposals_agreed: the same for proposals.
        pixels: largest difference of a coordinate between detections that agree.
        score: largest difference of a score between them.
    """

    images: int = 0
    detections: int = 0
    agreed: int = 0
    proposals: int = 0
    proposals_agreed: int = 0
    pixels: float = 0.0
    score: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether enough detections and enough proposals agree."""
        shares = ((self.agreed, self.detections), (self.proposals_agreed, self.proposals))
        return all(agreed >= SHARE * total for agreed, total in shares)


_Boxes = tuple[Tensor, Tensor, Tensor]
"""Boxes (n, 4), scores (n,) and labels (n,) of one image."""


def compare(first: Runtime, second: Runtime, batches: Iterable[AnyBatch]) -> Parity:
    """Return the agreement of two runtimes on the same batches.

    Args:
        first: any runtime.
        second: another one.
        batches: images.
    """
    parity = Parity()
    for batch in batches:
        one, other = first.execute(batch), second.execute(batch)
        parity.images += len(batch.images)
        for row in range(len(batch.images)):
            total, agreed, pixels, score = _agree(_boxes(one.detections, row), _boxes(other.detections, row))
            parity.detections, parity.agreed = parity.detections + total, parity.agreed + agreed
            parity.pixels, parity.score = max(parity.pixels, pixels), max(parity.score, score)
            total, agreed, _, _ = _agree(_boxes(one.proposals, row), _boxes(other.proposals, row))
            parity.proposals, parity.proposals_agreed = parity.proposals + total, parity.proposals_agreed + agreed
    return parity


def _boxes(found: Detections | Proposals | None, row: int) -> _Boxes:
    """Return the boxes in one image of a batch. All proposals are of class 0."""
    assert found is not None
    valid = found.valid[row].cpu()
    labels = found.labels[row] if isinstance(found, Detections) else torch.zeros_like(found.level[row])
    return found.boxes[row].cpu()[valid], found.scores[row].cpu()[valid], labels.cpu()[valid]


def _agree(one: _Boxes, other: _Boxes) -> tuple[int, int, float, float]:
    """Return the number of boxes, how many agree, and the largest differences of their coordinates and scores."""
    (boxes, scores, labels), (other_boxes, other_scores, other_labels) = one, other
    total = max(len(boxes), len(other_boxes))
    if not len(boxes) or not len(other_boxes):
        return total, 0, 0.0, 0.0
    pixels = (boxes[:, None] - other_boxes).abs().amax(dim=-1)  # (n, m)
    score = (scores[:, None] - other_scores).abs()
    near = (pixels <= PIXELS) & (score <= SCORE) & (labels[:, None] == other_labels)
    # Equal boxes may have several partners, so both sides are counted.
    agreed = min(int(near.any(dim=1).sum()), int(near.any(dim=0).sum()))
    if not agreed:
        return total, 0, 0.0, 0.0
    partner = pixels.masked_fill(~near, torch.inf).argmin(dim=1, keepdim=True)  # (n, 1)
    apart = [float(part.gather(1, partner)[near.any(dim=1)].max()) for part in (pixels, score)]
    return total, agreed, apart[0], apart[1]
