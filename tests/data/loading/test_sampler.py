"""The sampler decides how often records are drawn and which records make up an item."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rcnn.data.dataset import Dataset, Record
from rcnn.data.loading.loader import LoadedImage, Loader, Sampler
from rcnn.data.proposals.external import NOTHING
from rcnn.images.batch import Size
from tests.data.loading.test_loader import SETTINGS, STILL, dataset, load, same

__all__ = ["dataset"]


class Mosaic(Sampler):
    """Puts four images around a point of the canvas, each cut off where it reaches beyond its quarter."""

    max_members = 4

    def members(self, index: int, by_name: Sequence[int], generator: np.random.Generator) -> Sequence[int]:
        return (index, *(by_name[place] for place in generator.integers(len(by_name), size=3)))

    def combine(self, samples: Sequence[LoadedImage], canvas: Size, generator: np.random.Generator) -> LoadedImage:
        image, parts = torch.zeros(3, *canvas, dtype=torch.uint8), []
        y, x = (int(side * generator.uniform(0.25, 0.75)) for side in canvas)
        corners = ((0, 0, y, x), (0, x, y, canvas[1]), (y, 0, canvas[0], x), (y, x, *canvas))
        for sample, (top, left, bottom, right) in zip(samples, corners, strict=True):
            height, width = min(sample.image.shape[1], bottom - top), min(sample.image.shape[2], right - left)
            image[:, top : top + height, left : left + width] = sample.image[:, :height, :width]
            boxes = (sample.record.boxes.clip(0, [width, height] * 2)) + [left, top] * 2
            visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            parts.append((boxes[visible], sample.record.labels[visible], sample.record.ignore[visible]))
        boxes, labels, ignore = (np.concatenate(column) for column in zip(*parts, strict=True))
        return LoadedImage(image, replace(samples[0].record, boxes=boxes, labels=labels, ignore=ignore), NOTHING)


class Twice(Sampler):
    """Draws one image twice an epoch."""

    def repeats(self, record: Record) -> int:
        return 2 if record.name == "4.png" else 1


def test_a_mosaic_of_four_records_is_a_sampler(dataset: Dataset) -> None:
    items = load(dataset, sampler=Mosaic())
    assert Counter(int(i) for item in items for i in item.index if i >= 0) == Counter(range(len(dataset)))
    for item in items:
        boxes, sizes = item.targets.boxes[item.targets.valid], item.batch.sizes
        edges = sizes[:, None, [1, 0, 1, 0]].expand(-1, item.targets.boxes.shape[1], -1)[item.targets.valid]
        assert (boxes >= 0).all()
        assert (boxes <= edges).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    count = sum(int(item.targets.valid.sum()) for item in items)
    assert count > sum(int(item.targets.valid.sum()) for item in load(dataset))


def test_the_boxes_of_a_mosaic_lie_on_the_pixels_of_their_objects(dataset: Dataset) -> None:
    white, grey = (torch.full((3, 20, 30), value, dtype=torch.uint8) for value in (255, 100))
    grey[:, 5:15, 10:20] = 255
    boxes = np.array([[10.0, 5, 20, 15]])
    record = replace(dataset.records[1], boxes=boxes, labels=np.zeros(1, np.int64), ignore=np.zeros(1, bool))
    whole = replace(record, boxes=np.array([[0.0, 0, 30, 20]]))
    for seed in range(20):
        samples = [LoadedImage(white, whole, NOTHING), *[LoadedImage(grey, record, NOTHING)] * 3]
        mosaic = Mosaic().combine(samples, (40, 60), np.random.default_rng(seed))
        covered = torch.zeros(40, 60, dtype=torch.bool)
        for left, top, right, bottom in mosaic.record.boxes.astype(int).tolist():
            assert (mosaic.image[:, top:bottom, left:right] == 255).all()
            covered[top:bottom, left:right] = True
        assert torch.equal(covered, (mosaic.image == 255).all(0))


@pytest.mark.parametrize("sampler", [Mosaic(), Twice()])
def test_draws_depend_on_seed_epoch_and_names_alone(dataset: Dataset, sampler: Sampler) -> None:
    shuffled = replace(dataset, records=dataset.records[::-1])
    first, again = (load(data, 3, sampler=sampler) for data in (dataset, shuffled))
    last = len(dataset) - 1
    again = [item._replace(index=torch.where(item.index < 0, item.index, last - item.index)) for item in again]
    assert same(first, again)
    assert same(first[2:], load(dataset, 3, start=2, sampler=sampler))
    assert same(first, load(dataset, 3, sampler=sampler, workers=2))
    assert not same(first, load(dataset, 4, sampler=sampler))


def test_a_repeated_record_is_drawn_twice_an_epoch_and_augmented_anew(dataset: Dataset) -> None:
    items = load(dataset, sampler=Twice())
    drawn = Counter(int(i) for item in items for i in item.index if i >= 0)
    assert drawn == Counter(range(len(dataset))) + Counter([4])
    seeds = {int(seed) for item in items for seed, i in zip(item.seeds, item.index, strict=True) if i == 4}
    assert len(seeds) == 2
    assert len(items) == Loader(dataset, SETTINGS, training=True, batch=4, seed=7, sampler=Twice()).steps


def test_samplers_are_for_training(dataset: Dataset) -> None:
    samplers = Sampler(), Mosaic(), Twice()
    plain, *others = (load(dataset, settings=STILL, training=False, sampler=sampler) for sampler in samplers)
    assert all(same(plain, other) for other in others)
