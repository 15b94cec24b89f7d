"""Training on windows of larger pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.config import Data, Settings, override
from rcnn.data.dataset import Dataset, Record
from rcnn.data.formats.find import open_dataset
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.windows import scale_of, training_windows
from rcnn.data.synthetic import synthesise
from rcnn.errors import SettingsError
from rcnn.images.views import View
from rcnn.training.configure import choose_settings
from rcnn.training.train import train
from rcnn.weights.metadata import read_detector
from tests.training.pieces import without_pictures
from tests.training.test_train import OVERRIDES

PLAIN = ["preprocess.short=64", "preprocess.long=64", "data.workers=0", "augment.flip=0", "augment.scale=[1,1]"]


def settings(*changes: str) -> Settings:
    return override(Settings(), [*PLAIN, *changes])


def picture(path: Path, size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Record:
    rows = np.array(boxes, float).reshape(-1, 4)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    count = len(rows)
    return Record(path, path.name, path.stem, size, rows, np.arange(count) % 2, np.zeros(count, bool))


def made(*records: Record) -> Dataset:
    return Dataset(Path(), "voc", "train", ("a", "b"), (1, 2), records)


def test_windows_have_their_objects_and_pixels_and_a_share_has_none(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", (64, 800), (10, 10, 40, 40), (57, 0, 97, 40), (300, 20, 310, 30))
    small = picture(tmp_path / "small.png", (60, 40))
    chosen = settings("train.tile=64", "train.tile_empty=0.5")
    seen = training_windows(made(large, small), chosen)
    assert seen.notes == (f"train.tile=64: {len(seen)} windows of 2 images are trained on",)
    (kept,) = [record for record in seen.records if record.name == "small.png"]
    assert kept.view is not None
    assert kept.view.resized == (60, 40)
    cut = [record for record in seen.records if record.name != kept.name]
    full = [record for record in cut if not record.ignore.all()]
    assert len(cut) - len(full) == len(full) + 1  # the small one has no objects, and counts as it is
    found: set[tuple[float, ...]] = set()
    objects = {(*box, label) for box, label in zip(large.boxes.tolist(), large.labels.tolist(), strict=True)}
    for record in full:
        assert record.view is not None
        assert record.size == record.view.resized == (64, 64)
        boxes = (record.boxes + [record.view.left, record.view.top] * 2).tolist()
        rows = zip(boxes, record.labels.tolist(), record.ignore.tolist(), strict=True)
        found |= {(*box, label) for box, label, ignored in rows if not ignored}
    assert found >= objects  # and parts of the second one
    item = next(Loader(made(*full[:1]), chosen, training=False, batch=1).epoch(0))
    assert full[0].view is not None
    expected = full[0].view.crop(np.asarray(Image.open(large.path)))
    assert torch.equal(item.batch.images[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_the_choice_of_windows_without_objects_depends_on_the_seed_alone(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", (64, 2000), (10, 10, 40, 40), (1010, 0, 1050, 40))

    def windows(*changes: str) -> dict[str, Record]:
        seen = training_windows(made(large), settings("train.tile=64", *changes))
        return {record.name: record for record in seen.records}

    chosen = list(windows("train.tile_empty=0.6"))
    assert chosen == list(windows("train.tile_empty=0.6")) != list(windows("train.tile_empty=0.6", "train.seed=7"))
    assert all(len(record.boxes) for record in windows("train.tile_empty=0").values())


def test_a_note_says_that_no_image_is_larger_than_a_window(tmp_path: Path) -> None:
    small = made(picture(tmp_path / "small.png", (60, 40)))
    seen = training_windows(small, settings("train.tile=64"))
    assert [(record.name, record.view) for record in seen.records] == [("small.png", View(0, 0, 60, 40, (60, 40)))]
    assert seen.notes == ("train.tile=64: no image is larger, so none is cut",)
    assert training_windows(small, settings()) is small


def test_the_scale_of_a_training(tmp_path: Path) -> None:
    sizes = [(32, 32), (128, 128), (64, 960)]
    images = made(*(picture(tmp_path / f"{n}.png", size) for n, size in enumerate(sizes)))
    assert scale_of(images, settings()) == 0.5
    assert scale_of(images, settings("train.tile=64")) == 1


def test_weights_trained_on_windows_predict_on_windows(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        synthesise(tmp_path / "shapes", count, split=split, size=(64, 200), seed=1)
    options = {"epochs": 1, "batch": 2, "init": "none", "device": "cpu", "quiet": True}
    with without_pictures():
        run = train(tmp_path / "shapes", overrides=[*OVERRIDES, "train.tile=64"], runs=tmp_path / "runs", **options)
    _, about = read_detector(run.folder / "weights" / "last.safetensors")
    assert about.settings.predict.tile == "auto"
    assert about.summary["scale"] == 1
    detector = run.detector
    record = open_dataset(tmp_path / "shapes", "val", Data()).records[0]
    assert len(detector.viewer.views(record.size)) > 1
    assert detector.viewer.side == 64
    assert (detector.settings.preprocess.short, detector.settings.preprocess.long) == (64, 64)


@pytest.mark.parametrize("change", ["train.tile=64", "predict.tile=64"])
def test_schemes_with_proposals_are_for_whole_pictures(tmp_path: Path, change: str) -> None:
    with pytest.raises(SettingsError, match=r"train\.scheme=alternating works on proposals of whole images"):
        choose_settings(tmp_path, None, "tiny-fpn", [change, "train.scheme=alternating"], {})
