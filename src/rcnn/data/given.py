"""External proposals, from a file or another program, and how they get into batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rcnn.model.structures import Batch, Proposals, to_device


class Given(NamedTuple):
    """External proposals of one image, best first: boxes (n, 4) in pixels of its file, scores (n,); float64."""

    boxes: np.ndarray
    scores: np.ndarray


class ProposalSet(NamedTuple):
    """Proposals of every image of a data set, in the order of its records; a batch holds the `count` best per image."""

    images: Sequence[Given]
    count: int  # pyrefly: ignore[bad-override]


NOTHING = Given(np.zeros((0, 4)), np.zeros(0))


def ranked(boxes: np.ndarray) -> Given:
    """Give boxes (n, 4) in the order of their rank scores that fall from 1 towards 0."""
    return Given(boxes, np.linspace(1, 0, len(boxes), endpoint=False))


def place(given: Sequence[Given], batch: Batch, count: int) -> Proposals:
    """Return the `count` best proposals per image of a batch, in pixels of the resized images, without augmentation.

    Args:
        given: proposals of each image; fillers have none.
        batch: the B images.
        count: P; shorter lists are padded.
    """
    scales = batch.scales.cpu().double().numpy()[:, [1, 0, 1, 0]]
    resized = [Given(boxes * scale, scores) for (boxes, scores), scale in zip(given, scales, strict=True)]
    return to_device(padded(resized, count), batch.images.device)


def padded(given: Sequence[Given], count: int) -> Proposals:
    """Return the `count` best proposals per image as (B, P), on the CPU. Boxes are in pixels of the resized images."""
    boxes, scores = torch.zeros(len(given), count, 4), torch.zeros(len(given), count)
    for row, proposals in enumerate(given):
        best = torch.from_numpy(proposals.boxes[:count])
        boxes[row, : len(best)] = best.float()
        scores[row, : len(best)] = torch.from_numpy(proposals.scores[:count]).float()
    none = torch.zeros_like(scores, dtype=torch.int64)
    return Proposals(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), none, none)
