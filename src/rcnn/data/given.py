"""Proposals of images as a file or another program gives them, and how they get into the batches of a network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rcnn.config import Settings
from rcnn.data.augment import apply_to_boxes, draw_plan
from rcnn.data.dataset import Dataset
from rcnn.data.loader import FILLER, Item
from rcnn.model.structures import Batch, Proposals, to_device
from rcnn.preprocess.batch import Preprocessor


class Given(NamedTuple):
    """Proposals of one image, best first: boxes (n, 4) in pixels of its file, scores (n,); float64."""

    boxes: np.ndarray
    scores: np.ndarray


NOTHING = Given(np.zeros((0, 4)), np.zeros(0))


def place(given: Sequence[Given], batch: Batch, count: int) -> Proposals:
    """The `count` best proposals of each image of a batch, in pixels of the resized images; without augmentation.

    Args:
        given: of each image; fillers have none.
        batch: the images.
        count: P, what is missing is padded.
    """
    scales = batch.scales.cpu().double().numpy()[:, [1, 0, 1, 0]]
    resized = [Given(found.boxes * scale, found.scores) for found, scale in zip(given, scales, strict=True)]
    return to_device(_padded(resized, count), batch.images.device)


class GivenProposals:
    """Proposals for the batches of a loader, as they lie in its images; its augmentation is theirs too.

    Args:
        given: of each image of the data set.
        dataset: the images.
        settings: those of the loader.
        count: P, the best of an image; what is missing is padded.
        training: the loader augments.
    """

    def __init__(
        self, given: Sequence[Given], dataset: Dataset, settings: Settings, *, count: int, training: bool
    ) -> None:
        self._given, self._records, self._settings = given, dataset.records, settings
        self._preprocessor = Preprocessor(settings.preprocess)
        self._count, self._training = count, training

    def __call__(self, item: Item) -> Proposals:
        """(B, P) proposals of a batch; of those that augmentation cuts, what is left."""
        index = item.index.tolist()
        if not self._training:
            return place([NOTHING if i == FILLER else self._given[i] for i in index], item.batch, self._count)
        pairs = zip(index, item.seeds.tolist(), strict=True)
        return _padded([NOTHING if i == FILLER else self._augmented(i, seed) for i, seed in pairs], self._count)

    def _augmented(self, index: int, seed: int) -> Given:
        """Boxes of an image as the network is shown it, those that have an area there."""
        record, given = self._records[index], self._given[index]
        canvas = self._preprocessor.resized(record.size)
        scale = np.array([canvas[1] / record.size[1], canvas[0] / record.size[0]] * 2)
        # The loader's plan follows from the image and the seed, and is drawn once more.
        generator = np.random.Generator(np.random.Philox(key=seed))
        plan = draw_plan(canvas, record.boxes * scale, self._settings.augment, generator)
        with np.errstate(invalid="ignore"):  # the visible share of a box without area
            boxes, _ = apply_to_boxes(plan, given.boxes * scale, canvas)
        left = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        return Given(boxes[left], given.scores[left])


def _padded(given: Sequence[Given], count: int) -> Proposals:
    """The `count` best of each image as (B, P), on the CPU; the boxes are in pixels of the resized images already."""
    boxes, scores = torch.zeros(len(given), count, 4), torch.zeros(len(given), count)
    for row, found in enumerate(given):
        best = torch.from_numpy(found.boxes[:count])
        boxes[row, : len(best)] = best.float()
        scores[row, : len(best)] = torch.from_numpy(found.scores[:count]).float()
    none = torch.zeros_like(scores, dtype=torch.int64)
    return Proposals(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), none, none)
