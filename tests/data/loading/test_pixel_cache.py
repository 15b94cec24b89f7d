import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.data.loading import pixel_cache
from rcnn.data.loading.pixel_cache import PixelCache
from rcnn.images import storage
from rcnn.images.decode import read_image
from rcnn.images.storage import location
from rcnn.images.stream import DEFAULT_OPTIONS, ReadOptions
from tests.data import sets

MB = 1_000_000


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return sets.image(tmp_path / "a.png", (50, 40))


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse(*_: object, **__: object) -> np.ndarray:
    raise AssertionError("the file is read again")


def test_an_image_is_decoded_once(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS).read(picture)
    monkeypatch.setattr(ReadOptions, "read", refuse)
    again = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS).read(picture)
    assert (first == again).all()
    assert again.flags.writeable
    assert (first == read_image(picture)).all()


def test_an_image_that_changed_or_is_read_in_another_way_is_decoded_again(tmp_path: Path, picture: Path) -> None:
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)
    before = cache.read(picture)
    grey = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS._replace(in_channels=1)).read(picture)
    assert grey.shape == (40, 50, 1)
    sets.image(picture.with_name("other.png"), (50, 40)).replace(picture)
    assert (cache.read(picture) != before).any()
    assert len(entries(tmp_path / "cache")) == 3


@pytest.mark.parametrize("damage", [b"", b"rcnnpix1", None])
def test_damaged_entries_are_written_again(tmp_path: Path, picture: Path, damage: bytes | None) -> None:
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)
    before = cache.read(picture)
    (entry,) = entries(tmp_path / "cache")
    content = entry.read_bytes()
    entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage is None else damage)
    assert (cache.read(picture) == before).all()
    assert entry.read_bytes() == content


def test_the_folder_stays_below_its_size_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    pictures = [sets.image(tmp_path / f"{number}.png", (200, 100)) for number in range(40)]
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)  # room for 16
    for number, picture in enumerate(pictures):
        cache.read(picture)
        cache.read(pictures[0])
        assert sum(entry.stat().st_size for entry in entries(tmp_path / "cache")) <= MB
        assert number < 8 or len(entries(tmp_path / "cache")) >= 8
    kept = entries(tmp_path / "cache")
    for picture in (pictures[0], *pictures[-5:]):
        cache.read(picture)
    assert entries(tmp_path / "cache") == kept


def test_files_that_are_not_entries_are_kept(tmp_path: Path) -> None:
    pictures = [sets.image(tmp_path / f"{number}.png", (200, 100)) for number in range(40)]
    own = [tmp_path / "cache" / name for name in ("images/1.png", "ab/thesis.txt", "ab/cd/" + "0" * 38, "note.txt")]
    for file in own:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(400_000))
        os.utime(file, (1, 1))
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)
    for picture in pictures:
        cache.read(picture)
    assert all(file.exists() for file in own)
    assert 8 <= len(entries(tmp_path / "cache")) - len(own) <= 16


@pytest.mark.parametrize("writers", [1, 2, 4, 16])
def test_the_folder_stays_below_its_size_with_several_writers(tmp_path: Path, writers: int) -> None:
    pictures = [sets.image(tmp_path / f"{number}.png", (20, 10)) for number in range(640)]  # room for 322
    caches = [PixelCache(tmp_path / "cache", 200_000, DEFAULT_OPTIONS) for _ in range(writers)]
    for number, picture in enumerate(pictures):
        caches[number % writers].read(picture)
        if number > 280:
            assert sum(entry.stat().st_size for entry in entries(tmp_path / "cache")) <= 200_000


def test_an_image_larger_than_half_of_the_folder_is_not_kept(tmp_path: Path) -> None:
    PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS).read(sets.image(tmp_path / "a.png", (500, 400)))
    assert not entries(tmp_path / "cache")


def test_leftovers_of_killed_writers_are_deleted(tmp_path: Path, picture: Path) -> None:
    folder = tmp_path / "cache/00"
    folder.mkdir(parents=True)
    old, new = folder / ".part-host-1-0", folder / ".part-host-2-0"
    old.write_bytes(b"1")
    new.write_bytes(b"1")
    os.utime(old, (time.time() - 7200,) * 2)
    PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS).read(picture)
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_does_not_stop_the_reading(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)
    assert (cache.read(picture) == read_image(picture)).all()
    assert not entries(tmp_path / "cache")


def test_a_server_is_asked_once_whether_an_image_has_changed(
    tmp_path: Path, picture: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/a.png", picture.read_bytes())
    cache = PixelCache(tmp_path / "cache", MB, DEFAULT_OPTIONS)
    before = cache.read(location("memory://bucket/a.png"))
    monkeypatch.setattr(pixel_cache, "identity", refuse)
    monkeypatch.setattr(storage, "_read", refuse)
    assert (cache.read(location("memory://bucket/a.png")) == before).all()
    assert (before == read_image(picture)).all()
