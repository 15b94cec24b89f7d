"""External proposals, from a file, another program or a grid of windows, and how they get into batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from rcnn.config import Anchors
from rcnn.model.sliding_windows import sliding_windows
from rcnn.model.structures import Batch, Proposals, to_device

if TYPE_CHECKING:
    from rcnn.model.faster_rcnn import FasterRCNN


class ImageProposals(NamedTuple):
    """External proposals of one image, best first: boxes (n, 4) in pixels of its file, scores (n,); float64."""

    boxes: np.ndarray
    scores: np.ndarray


class ProposalSet(NamedTuple):
    """Proposals of every image of a data set, in the order of its records; a batch holds the `count` best per image."""

    images: Sequence[ImageProposals]
    count: int  # pyrefly: ignore[bad-override]


class SlidingWindows(NamedTuple):
    """Dense sliding windows of every image: the anchors of a model, see `sliding_windows`. They are not stored.

    Attributes:
        anchors: the anchor rule.
        strides: stride of every level, pixels.
    """

    anchors: Anchors
    strides: tuple[int, ...]

    @classmethod
    def of(cls, model: "FasterRCNN") -> "SlidingWindows":
        """Return the windows at the anchors of the model's RPN."""
        return cls(model.rpn.anchors, model.rpn.strides)

    def of_batch(self, batch: Batch) -> Proposals:
        """Return the windows (B, P) of a batch, in pixels of the resized images, on their device."""
        shape = (batch.images.shape[2], batch.images.shape[3])
        windows = sliding_windows(self.anchors, self.strides, shape, batch.sizes.cpu())
        return to_device(windows, batch.images.device)


External = ProposalSet | SlidingWindows
"""Proposals in place of those of an RPN."""

NOTHING = ImageProposals(np.zeros((0, 4)), np.zeros(0))


def ranked(boxes: np.ndarray) -> ImageProposals:
    """Return boxes (n, 4), which are in the order of their rank, with scores that fall from 1 towards 0."""
    return ImageProposals(boxes, np.linspace(1, 0, len(boxes), endpoint=False))


def batch_proposals(proposals: Sequence[ImageProposals], batch: Batch, count: int) -> Proposals:
    """Return the `count` best proposals per image of a batch, in pixels of the resized images, without augmentation.

    Args:
        proposals: proposals of each image; fillers have none.
        batch: the B images.
        count: P; shorter lists are padded.
    """
    scales = batch.scales.cpu().double().numpy()[:, [1, 0, 1, 0]]
    resized = [ImageProposals(boxes * scale, scores) for (boxes, scores), scale in zip(proposals, scales, strict=True)]
    return to_device(pad_proposals(resized, count), batch.images.device)


def pad_proposals(proposals: Sequence[ImageProposals], count: int) -> Proposals:
    """Return the `count` best proposals per image as (B, P), on the CPU. Boxes are in pixels of the resized images."""
    boxes, scores = torch.zeros(len(proposals), count, 4), torch.zeros(len(proposals), count)
    for row, image in enumerate(proposals):
        best = torch.from_numpy(image.boxes[:count])
        boxes[row, : len(best)] = best.float()
        scores[row, : len(best)] = torch.from_numpy(image.scores[:count]).float()
    none = torch.zeros_like(scores, dtype=torch.int64)
    return Proposals(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), none, none)
