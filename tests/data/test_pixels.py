from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from tests.data import sets

BOX = [("dog", (5, 5, 20, 20))]
LISTS = {"train": ["a", "b"], "val": ["c"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A VOC folder of a, b (train) and c (val), all of them PNG images."""
    root = sets.voc(tmp_path / "d", dict.fromkeys("abc", BOX), LISTS)
    for stem in "abc":
        (root / f"JPEGImages/{stem}.jpg").unlink()
        save(root, stem, noise())
    return root


def save(root: Path, stem: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(root / f"JPEGImages/{stem}.png")


def noise(shape: tuple[int, ...] = (40, 60, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def damage(file: Path) -> Path:
    """Change a byte in the middle of a file; its beginning and end stay the same."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    return file


def test_damaged_pixels_of_all_lists_are_reported_before_training(root: Path) -> None:
    damaged = [damage(root / f"JPEGImages/{stem}.png") for stem in "bc"]
    calls: list[tuple[int, int]] = []
    with pytest.raises(DataError) as error:
        open_splits(root, Data(), lambda done, images: calls.append((done, images)))
    assert [fault.where for fault in error.value.faults] == list(map(str, damaged))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [len(data) for data in open_lists(root, Data(), decode=False)] == [2, 1]
    assert len(open_dataset(root, "train", Data(), decode=False)) == 2


def test_damaged_images_are_left_out(root: Path) -> None:
    file = damage(root / "JPEGImages/b.png")
    train, val = open_splits(root, Data())
    assert [record.id for record in (*train.records, *val.records)] == ["a", "c"]
    (fault,) = train.faults
    assert (fault.where, fault.kind, fault.image) == (str(file), "damaged", "JPEGImages/b.png")


def test_a_file_without_a_header_is_reported_once(root: Path) -> None:
    (root / "JPEGImages/b.png").write_bytes(b"")
    assert len(open_splits(root, Data(on_fault="skip"))[0].faults) == 1


@pytest.mark.parametrize("top", [4095, 4096])
def test_training_notes_that_16_bit_images_look_like_12_bit(root: Path, top: int) -> None:
    for stem, largest in zip("abc", (300, 1000, top), strict=True):
        save(root, stem, np.full((40, 60), largest, np.uint16))
    notes = open_splits(root, Data())[0].notes
    assert any("above 4095: are they 12-bit? If so, set data.white=4095" in note for note in notes) == (top == 4095)
    assert open_splits(root, Data(white=4095))[0].notes == ()


def test_training_notes_once_that_transparent_pixels_get_a_white_background(root: Path) -> None:
    save(root, "a", np.dstack([noise(), np.full((40, 60), 255, np.uint8)]))
    for stem in "bc":
        save(root, stem, noise((40, 60, 4)))
    (note,) = (note for data in open_splits(root, Data()) for note in data.notes)
    assert note.startswith("images with transparent pixels: 2, such as JPEGImages/b.png; they get a white background")
