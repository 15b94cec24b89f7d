"""Proposals on the disk: computed once for all images of a data set, and read back batch by batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rcnn.config import Settings, override
from rcnn.data.augment import apply_to_boxes, draw_plan
from rcnn.data.dataset import Dataset
from rcnn.data.loader import FILLER, Item, Loader
from rcnn.detector import Detector
from rcnn.model.structures import Proposals
from rcnn.preprocess.batch import Preprocessor
from rcnn.training.distributed import Team
from rcnn.weights.file import load_weights, save_weights


def write_proposals(
    path: Path, detector: Detector, dataset: Dataset, team: Team, counts: tuple[int, int], say: Callable[[str], None]
) -> None:
    """Save the proposals of every image of a data set, best first, in pixels of the files; all processes together.

    Args:
        path: the file; it appears whole or not at all.
        detector: what proposes; not for use afterwards.
        dataset: the images; they are not augmented.
        team: the processes that share the images.
        counts: boxes a level before NMS, and proposals an image.
        say: told how far it has come.
    """
    settings = detector.settings
    detector.model.settings = override(settings, {"rpn": {"pre_test": counts[0], "post_test": counts[1]}})
    loader = Loader(
        dataset,
        settings,
        training=False,
        batch=settings.val.batch,
        seed=settings.train.seed,
        workers=settings.data.workers,
        rank=team.rank,
        world=team.world,
    )
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for step, item in enumerate(loader.epoch(0)):
        results = detector.region_proposals(item.batch)
        found |= {i: (r.boxes, r.scores) for i, r in zip(item.index.tolist(), results, strict=True) if i != FILLER}
        say(f"proposals: batch {step + 1} of {loader.steps}")
    every = {index: pair for part in team.gather(found) for index, pair in part.items()}
    if team.writer:
        rows = [every[index] for index in range(len(dataset))]
        tensors = {
            "boxes": torch.from_numpy(np.concatenate([boxes for boxes, _ in rows])).float(),
            "scores": torch.from_numpy(np.concatenate([scores for _, scores in rows])).float(),
            "counts": torch.tensor([len(boxes) for boxes, _ in rows]),
        }
        save_weights(path, tensors, {"kind": "proposals"})
    team.gather(None)  # the file is there before anyone reads it


class StoredProposals:
    """Proposals from the disk for the batches of a loader, as they lie in its images.

    Args:
        path: what `write_proposals` wrote.
        dataset: the images that it was written for.
        settings: those of the loader.
        count: P, proposals an image at most.
        training: the loader augments.
    """

    def __init__(self, path: Path, dataset: Dataset, settings: Settings, *, count: int, training: bool) -> None:
        tensors, _ = load_weights(path)
        ends = tensors["counts"].cumsum(0)[:-1].numpy()
        self._boxes = np.split(tensors["boxes"].double().numpy(), ends)
        self._scores = np.split(tensors["scores"].numpy(), ends)
        self._records, self._settings = dataset.records, settings
        self._preprocessor = Preprocessor(settings.preprocess)
        self._count, self._training = count, training

    def __call__(self, item: Item) -> Proposals:
        """(B, P) proposals of a batch; of those that augmentation cuts, what is left."""
        rows, count = len(item.index), self._count
        boxes, scores = torch.zeros(rows, count, 4), torch.zeros(rows, count)
        for row, (index, seed) in enumerate(zip(item.index.tolist(), item.seeds.tolist(), strict=True)):
            if index != FILLER:
                placed, left = self._placed(index, seed)
                found = placed[left][:count]
                boxes[row, : len(found)] = torch.from_numpy(found)
                scores[row, : len(found)] = torch.from_numpy(self._scores[index][left][:count])
        none = torch.zeros(rows, count, dtype=torch.int64)
        return Proposals(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), none, none)

    def _placed(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) of an image as the network is shown it, and which of them have an area there."""
        record = self._records[index]
        canvas = self._preprocessor.resized(record.size)
        scale = np.array([canvas[1] / record.size[1], canvas[0] / record.size[0]] * 2)
        boxes = self._boxes[index] * scale
        if self._training:  # the loader's plan follows from the image and the seed, and is drawn once more
            generator = np.random.Generator(np.random.Philox(key=seed))
            plan = draw_plan(canvas, record.boxes * scale, self._settings.augment, generator)
            with np.errstate(invalid="ignore"):  # the visible share of a box without area
                boxes, _ = apply_to_boxes(plan, boxes, canvas)
        return boxes, np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
