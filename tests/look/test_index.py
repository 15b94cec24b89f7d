"""The cache of labels: it returns the same data sets, and reads them again after every change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.look import index
from rcnn.look.album import Album
from rcnn.look.index import indexed
from tests.pages import Looked, png

from .test_labels import same

Get = Callable[..., list[Dataset]]


@pytest.fixture
def data(looked: Looked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    assert looked.album.data is not None
    return Path(shutil.copytree(looked.album.data, tmp_path / "data"))


@pytest.fixture
def read(data: Path) -> Mock:
    """Reads the lists of the data set, and counts its calls."""

    def lists() -> list[Dataset]:
        return [open_dataset(data, split, Settings().data, decode=False) for split in ("train", "val")]  # type: ignore[arg-type]

    return Mock(side_effect=lists)


@pytest.fixture
def get(data: Path, read: Mock, tmp_path: Path) -> Get:
    return lambda *words: indexed(tmp_path / "cache", data, data, words, read)


def test_the_second_time_nothing_is_read_and_everything_is_the_same(read: Mock, get: Get) -> None:
    first, second = get(), get()
    assert read.call_count == 1
    for one, other in zip(first, second, strict=True):
        assert same(one, other)
        assert [record.size for record in one.records] == [record.size for record in other.records]
        for name in ("root", "format", "split", "names", "category_ids", "faults", "notes"):
            assert getattr(one, name) == getattr(other, name)
        for mine, theirs in zip(one.records, other.records, strict=True):
            for name in ("boxes", "labels", "ignore"):
                assert getattr(mine, name).dtype == getattr(theirs, name).dtype
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_changed_data_are_read_again(data: Path, read: Mock, get: Get, tmp_path: Path) -> None:
    get()
    os.utime(next(data.glob("annotations/*.json")), (1, 1))
    get()
    assert read.call_count == 2
    (data / "new.png").write_bytes(png())
    get()
    assert read.call_count == 3
    get("other settings")
    assert read.call_count == 4
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    for _ in range(2):
        get("other settings")
        assert read.call_count == 5


def test_data_that_can_not_be_cached_are_read(
    data: Path, read: Mock, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert len(get()) == 2
    (tmp_path / "cache").unlink()
    elsewhere = indexed(tmp_path / "cache", data, data / "annotations", (), read)
    assert len(elsewhere) == 2
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(index, "MAX_FILES", 3)
    get()
    assert not (tmp_path / "cache").exists()


def test_an_album_counts_the_images_that_it_has_read(data: Path, looked: Looked, tmp_path: Path) -> None:
    first, second = (Album(lambda: looked.detector, data, tmp_path / "cache") for _ in range(2))
    first.open()
    assert first.read == (3, 3)
    second.open()
    assert second.read == (0, 0)
    assert [picture.name for picture in first.pictures] == [picture.name for picture in second.pictures]
