"""Values in place of `auto`, the epochs and the anchors of a new run, and messages about anchors that miss objects."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config import Settings, override, read
from rcnn.data.dataset import Dataset, Record
from rcnn.errors import SettingsError
from rcnn.presets import settings_of
from rcnn.training.run_folder import RunFolder
from rcnn.training.settle import EPOCHS, IMAGES, MAX_EPOCHS, MIN_EPOCHS, epochs_for, settle_anchors, settle_epochs
from rcnn.training.start import prepare_run
from rcnn.training.train import train
from rcnn.weights.packaged import packaged_path
from tests.training.pieces import ALONE, FEW_PROPOSALS, OPTIONS, SMALL, shapes, without_pictures

AUTO = {"anchors": {"fit": "auto"}}
AUTO_EPOCHS = override(settings_of("tiny-fpn"), {"train": {"epochs": "auto"}})


def dataset(width: float, height: float, count: int = 60, images: int = 10) -> Dataset:
    """Return images of 448 x 448, which are not resized, with objects of one size."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(images):
        low = rng.uniform(0, 448 - max(width, height), (count // images, 2))
        boxes = np.concatenate((low, low + (width, height)), axis=1)
        labels, ignore = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
        records.append(Record(Path(f"{index}.png"), f"{index}.png", f"{index}", (448, 448), boxes, labels, ignore))
    return Dataset(Path("here"), "coco", "train", ("thing",), (1,), tuple(records))


def settings(**train: object) -> Settings:
    return settings_of("mobilenet-fpn", {"train": {"init": "none", **train}})


def test_fitted_anchors_that_raise_recall_are_suggested_as_settings() -> None:
    same, (note,) = settle_anchors(settings(), dataset(18, 18))
    assert same == settings()
    assert note.startswith("100% of the objects have no anchor of IoU 0.5 or more. Fitted anchors would raise")
    words = note.rsplit(": ", 1)[1].split()
    fitted, (fitting_note,) = settle_anchors(override(settings(), AUTO), dataset(18, 18))
    assert override(settings(), words) == fitted
    assert fitted.anchors.fit == "off"
    assert "raise recall at IoU 0.5 from 0.00 to 0.98" in fitting_note


def test_objects_too_small_for_any_anchors_are_reported_by_size() -> None:
    _, (note,) = settle_anchors(settings(), dataset(2, 2))
    assert "and fitted anchors would change little. 60 of these 60 objects have a side of < 16 pixels" in note
    unchanged, (fitting_note,) = settle_anchors(override(settings(), AUTO), dataset(2, 2))
    assert unchanged == settings()
    assert "the anchors are kept: recall at IoU 0.5 is 0.00, and fitted ones would hardly raise it" in fitting_note


@pytest.mark.parametrize("data", [dataset(32, 32), dataset(18, 18, count=5, images=5), dataset(9, 9, 0)])
def test_nothing_is_reported_if_the_anchors_are_good_or_objects_are_few(data: Dataset) -> None:
    assert settle_anchors(settings(), data) == (settings(), ())


def test_no_anchors_are_fitted_to_five_objects() -> None:
    note = "anchors.fit=auto: 5 objects are too few to fit anchors to (fewer than 50)"
    assert settle_anchors(override(settings(), AUTO), dataset(18, 18, 5, 5)) == (settings(), (note,))


def test_a_run_that_starts_from_a_detector_keeps_its_anchors() -> None:
    start = settings(init="blood-cells")
    assert settle_anchors(start, dataset(18, 18)) == (start, ())
    note = "anchors.fit=auto: the run starts from a detector and keeps its anchors"
    assert settle_anchors(override(start, AUTO), dataset(18, 18)) == (start, (note,))


def test_a_remote_detector_keeps_its_anchors_like_a_local_one(memory: Any) -> None:
    memory.pipe("/bucket/net.safetensors", packaged_path("blood-cells").read_bytes())
    start = settings(init="memory://bucket/net.safetensors")
    note = "anchors.fit=auto: the run starts from a detector and keeps its anchors"
    assert settle_anchors(override(start, AUTO), dataset(18, 18)) == (start, (note,))


def test_fitting_anchors_changes_the_model_but_draws_no_random_number(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    settle_anchors(override(settings(), AUTO), dataset(18, 18))
    assert torch.equal(torch.get_rng_state(), before)
    small = override(settings(), {**AUTO, "model": {"channels": 8}, "roi": {"hidden": 8}})
    data = dataset(18, 18)
    fitted, start, _ = prepare_run(small, (data, data), ALONE, None, partial(RunFolder.create, tmp_path))
    assert start.model.rpn.anchors == fitted.anchors
    assert fitted.anchors.sizes != small.anchors.sizes
    assert start.notes[0].startswith("anchors.fit=auto: anchors fitted to 60 objects raise recall")


@given(st.integers(0, 10_000_000), st.integers(1, 1_000_000))
def test_more_images_get_at_most_as_many_epochs_and_at_least_as_many_steps(images: int, more: int) -> None:
    few, many = epochs_for(images), epochs_for(images + more)
    assert MIN_EPOCHS <= many <= few <= MAX_EPOCHS
    assert few * images <= (many + 1) * (images + more)  # up to the rounding of the epochs


def test_the_number_follows_the_images() -> None:
    assert epochs_for(IMAGES) == EPOCHS
    assert [epochs_for(images) for images in (0, 10, 130, 205, 900, 5011, 118_287)] == [100, 100, 70, 44, 21, 12, 10]


def test_chosen_numbers_and_steps_are_kept() -> None:
    chosen = override(AUTO_EPOCHS, {"train": {"epochs": 7}})
    assert settle_epochs(chosen, 205) == (chosen, ())
    settled, notes = settle_epochs(override(AUTO_EPOCHS, {"train": {"steps": 9}}), 205)
    assert (settled.train.epochs, settled.train.length, notes) == (44, "9 steps", ())
    with pytest.raises(SettingsError, match=r"train\.epochs=auto is replaced by a number when a training starts"):
        AUTO_EPOCHS.train.epoch_count  # noqa: B018


@without_pictures()
def test_a_run_holds_the_number_and_can_be_lengthened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.training.settle.MIN_EPOCHS", 1)
    monkeypatch.setattr("rcnn.training.settle.IMAGES", 1)
    monkeypatch.setattr("rcnn.training.settle.EPOCHS", 1)
    data = shapes(tmp_path, 4, 2)
    options = {**OPTIONS, "init": "none", "epochs": "auto", "workers": 0}
    run = train(data, runs=tmp_path, name="a", overrides=[*SMALL, *FEW_PROPOSALS], **options)
    folder = RunFolder(run.folder)
    assert len(run.rows) == read(folder.config).train.epochs == 1
    assert "train.epochs=auto: 1 epoch for 4 images" in (run.folder / "log.txt").read_text()
    with pytest.raises(SettingsError, match=r"--epochs auto sets the length of a new run: .*a-1 longer"):
        train(resume=run.folder, epochs="auto")
    assert len(train(resume=run.folder, epochs=2, quiet=True).rows) == 2
