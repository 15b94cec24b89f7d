"""`train.epochs=auto` becomes a number when a training starts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config import override, read
from rcnn.errors import SettingsError
from rcnn.presets import settings_of
from rcnn.training.run_folder import RunFolder
from rcnn.training.settle import EPOCHS, IMAGES, MAX_EPOCHS, MIN_EPOCHS, epochs_for, settle_epochs
from rcnn.training.train import train
from tests.training.pieces import FEW_PROPOSALS, OPTIONS, SMALL, shapes, without_pictures

AUTO = override(settings_of("tiny-fpn"), {"train": {"epochs": "auto"}})


@given(st.integers(0, 10_000_000), st.integers(1, 1_000_000))
def test_more_images_get_at_most_as_many_epochs_and_at_least_as_many_steps(images: int, more: int) -> None:
    few, many = epochs_for(images), epochs_for(images + more)
    assert MIN_EPOCHS <= many <= few <= MAX_EPOCHS
    assert few * images <= (many + 1) * (images + more)  # up to the rounding of the epochs


def test_the_number_follows_the_images() -> None:
    assert epochs_for(IMAGES) == EPOCHS
    assert [epochs_for(images) for images in (0, 10, 130, 205, 900, 5011, 118_287)] == [100, 100, 70, 44, 21, 12, 10]


def test_chosen_numbers_and_steps_are_kept() -> None:
    chosen = override(AUTO, {"train": {"epochs": 7}})
    assert settle_epochs(chosen, 205) == (chosen, ())
    settled, notes = settle_epochs(override(AUTO, {"train": {"steps": 9}}), 205)
    assert (settled.train.epochs, settled.train.length, notes) == (44, "9 steps", ())
    with pytest.raises(SettingsError, match=r"train\.epochs=auto is replaced by a number when a training starts"):
        AUTO.train.epoch_count  # noqa: B018


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
