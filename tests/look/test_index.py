"""Labels that were read once: the same the next time, and read anew when anything has changed."""

import os
from collections.abc import Callable
from pathlib import Path

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


class Reader:
    """Reads the lists of a data set, and counts how often."""

    def __init__(self, data: Path) -> None:
        self.data, self.times = data, 0

    def __call__(self) -> list[Dataset]:
        self.times += 1
        return [open_dataset(self.data, split, Settings().data, decode=False) for split in ("train", "val")]  # type: ignore[arg-type]


Get = Callable[..., list[Dataset]]


@pytest.fixture
def reader(looked: Looked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    data = tmp_path / "data"
    data.mkdir()
    assert looked.album.data is not None
    for path in looked.album.data.rglob("*"):
        if path.is_file():
            copy = data / path.relative_to(looked.album.data)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return Reader(data)


@pytest.fixture
def get(reader: Reader, tmp_path: Path) -> Get:
    return lambda *words: indexed(tmp_path / "cache", reader.data, reader.data, words, reader)


def test_the_second_time_nothing_is_read_and_all_is_the_same(reader: Reader, get: Get) -> None:
    first, second = get(), get()
    assert reader.times == 1
    for one, other in zip(first, second, strict=True):
        assert same(one, other)
        assert [record.size for record in one.records] == [record.size for record in other.records]
        for name in ("root", "format", "split", "names", "category_ids", "faults", "notes"):
            assert getattr(one, name) == getattr(other, name)
        for mine, theirs in zip(one.records, other.records, strict=True):
            for name in ("boxes", "labels", "ignore"):
                assert getattr(mine, name).dtype == getattr(theirs, name).dtype
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_what_has_changed_is_read_anew(reader: Reader, get: Get, tmp_path: Path) -> None:
    get()
    labels = next(reader.data.glob("annotations/*.json"))
    os.utime(labels, (1, 1))
    get()
    assert reader.times == 2
    (reader.data / "new.png").write_bytes(png())
    get()
    assert reader.times == 3
    get("other settings")
    assert reader.times == 4
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    get("other settings")
    assert reader.times == 5
    get("other settings")
    assert reader.times == 5


def test_what_can_not_be_kept_is_read_all_the_same(
    reader: Reader, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert len(get()) == 2
    (tmp_path / "cache").unlink()
    elsewhere = indexed(tmp_path / "cache", reader.data, reader.data / "annotations", (), reader)
    assert len(elsewhere) == 2
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(index, "MAX_FILES", 3)
    get()
    assert not (tmp_path / "cache").exists()


def test_an_album_says_how_far_it_has_read(reader: Reader, looked: Looked, tmp_path: Path) -> None:
    first, second = (Album(lambda: looked.detector, reader.data, tmp_path / "cache") for _ in range(2))
    first.open()
    assert first.read == (3, 3)
    second.open()
    assert second.read == (0, 0)
    assert [picture.name for picture in first.pictures] == [picture.name for picture in second.pictures]
