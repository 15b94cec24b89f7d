"""Do two runtimes agree? Their detections and proposals on the same batches, box by box."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn.model.structures import AnyBatch, Detections, Proposals
from rcnn.runtime.protocol import Runtime

PIXELS, SCORE, SHARE = 0.05, 1e-3, 0.995
"""Boxes agree if no coordinate (pixels of the resized image) and no score differs by more; this share of all must."""


@dataclass
class Parity:
    """How many boxes of two runtimes agree.

    Attributes:
        images: shown to both.
        detections: number of them; image by image that of the runtime which has more.
        agreed: of these, how many both have.
        proposals: likewise.
        proposals_agreed: likewise.
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
        """True if enough detections and enough proposals agree."""
        shares = ((self.agreed, self.detections), (self.proposals_agreed, self.proposals))
        return all(agreed >= SHARE * total for agreed, total in shares)


class _Boxes(NamedTuple):
    """Boxes (n, 4), scores (n,) and labels (n,) of one image."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def compare(first: Runtime, second: Runtime, batches: Iterable[AnyBatch]) -> Parity:
    """Show the same batches to two runtimes.

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
    """What was found in one image of a batch; proposals are all of class 0."""
    assert found is not None
    valid = found.valid[row].cpu()
    labels = found.labels[row] if isinstance(found, Detections) else torch.zeros_like(found.level[row])
    return _Boxes(*(part.cpu()[valid] for part in (found.boxes[row], found.scores[row], labels)))


def _agree(one: _Boxes, other: _Boxes) -> tuple[int, int, float, float]:
    """The number of boxes, how many agree, and the largest differences of coordinates and scores among these."""
    total = max(len(one.boxes), len(other.boxes))
    if not len(one.boxes) or not len(other.boxes):
        return total, 0, 0.0, 0.0
    pixels = (one.boxes[:, None] - other.boxes).abs().amax(dim=-1)  # (n, m)
    score = (one.scores[:, None] - other.scores).abs()
    near = (pixels <= PIXELS) & (score <= SCORE) & (one.labels[:, None] == other.labels)
    # Equal boxes may have several partners, so both sides are counted.
    agreed = min(int(near.any(dim=1).sum()), int(near.any(dim=0).sum()))
    if not agreed:
        return total, 0, 0.0, 0.0
    partner = pixels.masked_fill(~near, torch.inf).argmin(dim=1, keepdim=True)  # (n, 1)
    apart = [float(part.gather(1, partner)[near.any(dim=1)].max()) for part in (pixels, score)]
    return total, agreed, apart[0], apart[1]
