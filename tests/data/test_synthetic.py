import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.formats.find import open_splits
from rcnn.data.synthetic import CLASSES, CONTRAST, Scene, scenes, synthesise, synthesise_set

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return list(scenes(200, seed=1))


def joined(drawn: list[Scene]) -> Scene:
    """Return the images and ground truth of all scenes, concatenated."""
    return Scene(*(np.concatenate(column) for column in zip(*drawn, strict=True)))


def test_the_set_is_as_hard_as_documented(drawn: list[Scene]) -> None:
    _, boxes, labels, covered, _ = joined(drawn)
    side = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert min(drawn[0].image.shape[:2]) >= 256
    assert (side < 32).mean() >= 0.2
    assert ((covered >= 0.1) & (covered <= 0.5)).mean() >= 0.2
    assert covered.max() <= 0.5
    assert np.mean([len(scene.boxes) == 0 for scene in drawn]) == pytest.approx(0.1, abs=0.02)
    assert (np.bincount(labels) / len(labels) > 0.25).all()
    assert len(np.bincount(labels)) == len(CLASSES) >= 3
    assert side.min() >= 17
    assert side.max() <= 112


def test_colours_do_not_depend_on_the_class(drawn: list[Scene]) -> None:
    _, _, labels, _, colours = joined(drawn)
    error = colours.std(0) * np.sqrt(len(CLASSES) / len(colours))
    for label in range(len(CLASSES)):
        assert (np.abs(colours[labels == label].mean(0) - colours.mean(0)) < 4 * error).all()
    # The class whose mean colour is the nearest is right no more often than chance.
    means = np.stack([colours[::2][labels[::2] == label].mean(0) for label in range(len(CLASSES))])
    guess = np.linalg.norm(colours[1::2, None] - means, axis=2).argmin(1)
    assert (guess == labels[1::2]).mean() < 1 / len(CLASSES) + 0.1


@pytest.mark.parametrize("name", ["disc", "square", "triangle", "ring", "cross"])
def test_boxes_are_tight_around_shapes_that_stand_out(name: str) -> None:
    alone = [scene for scene in scenes(60, seed=3, classes=(name,)) if len(scene.boxes) == 1]
    assert alone
    beyond = []
    for scene in alone:
        left, top, right, bottom = scene.boxes[0].astype(int)
        assert 0 <= left < right <= scene.image.shape[1]
        assert 0 <= top < bottom <= scene.image.shape[0]
        colour = scene.colours[0]
        near = np.linalg.norm(scene.image - colour, axis=2) < 45
        frame = near[top:bottom, left:right]
        for edge in (frame[:3], frame[-3:], frame[:, :3], frame[:, -3:]):
            assert edge.any()
        strips = near[:, right + 1 : right + 4], near[bottom + 1 : bottom + 4]
        beyond += [strip.mean() for strip in strips if strip.size]
        around = scene.image[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] @ LUMA
        ground = around[np.abs(around - colour @ LUMA) > 30]
        assert abs(ground.mean() - colour @ LUMA) > CONTRAST / 2
    assert np.mean(beyond) < 0.02


def test_picture_i_depends_only_on_the_seed_and_i() -> None:
    few, many = list(scenes(3, seed=5)), list(scenes(6, seed=5))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(few, many, strict=False))
    assert not np.array_equal(few[0].image, next(scenes(1, seed=6)).image)


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        synthesise(tmp_path / folder, 4, size=(96, 128), seed=2)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_a_set_is_written_in_every_form(tmp_path: Path, form: str) -> None:
    synthesise_set(tmp_path / "set", {"train": (3, 4), "val": (2, 5)}, form)
    train, val = open_splits(tmp_path / "set", Data())
    assert (train.format, len(train), len(val), train.faults) == (form, 3, 2, ())
    for record, scene in zip(train.records, scenes(3, seed=4), strict=True):
        np.testing.assert_allclose(record.boxes, scene.boxes, atol=1e-9)
        assert [train.names[label] for label in record.labels] == [CLASSES[label] for label in scene.labels]


def test_the_written_set_is_read_back(tmp_path: Path) -> None:
    synthesise(tmp_path, 12, size=(120, 160), seed=0)
    synthesise(tmp_path, 5, size=(120, 160), seed=1, split="val")
    train, val = open_splits(tmp_path, Data())
    assert (train.names, len(train), len(val)) == (CLASSES, 12, 5)
    assert train.faults == val.faults == ()
    for dataset, seed in ((train, 0), (val, 1)):
        for record, scene in zip(dataset.records, scenes(len(dataset), size=(120, 160), seed=seed), strict=True):
            assert record.size == (120, 160)
            assert np.array_equal(record.boxes, scene.boxes)
            assert np.array_equal(record.labels, scene.labels)
            difference = np.asarray(Image.open(record.path)).astype(float) - scene.image
            assert np.abs(difference).mean() < 8
    assert len(json.loads((tmp_path / "annotations" / "instances_train.json").read_text())["annotations"]) > 12
