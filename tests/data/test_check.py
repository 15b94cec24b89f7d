from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.errors import DataError
from tests.data import sets
from tests.data.test_pixels import damage

BOX = [("dog", (5, 5, 20, 20))]


def test_sound_data_has_figures_and_no_faults(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": [], "c": BOX}, {"train": ["a", "b"], "val": ["c"]})
    calls: list[tuple[int, int]] = []
    report = check(root, Data(), lambda done, total: calls.append((done, total)))
    assert (report.format, report.names, report.faults) == ("voc", ("dog",), ())
    counts = {name: (stats.images, stats.boxes) for name, stats in report.lists.items()}
    assert counts == {"train": (2, 1), "val": (1, 1)}
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_every_image_of_every_list_is_decoded(tmp_path: Path) -> None:
    images = {"a": BOX, "b": BOX, "c": [("dog", (9, 9, 5, 5))]}
    root = sets.voc(tmp_path / "d", images, {"train": ["a"], "test": ["b", "c"]})
    for stem in "bc":
        file = root / f"JPEGImages/{stem}.jpg"
        file.write_bytes(file.read_bytes()[:-300])
    report = check(root, Data())
    wheres = [fault.where for fault in report.faults]
    assert wheres == [f"{root}/JPEGImages/b.jpg", f"{root}/JPEGImages/c.jpg", f"{root}/Annotations/c.xml:5"]
    assert all("truncated" in fault.reason for fault in report.faults[:2])
    assert report.counts == {"fatal": 1, "damaged": 2, "mendable": 0}
    assert report.to_json()["faults"][0]["image"] == "JPEGImages/b.jpg"


def test_damage_that_only_decoding_shows_is_found(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": BOX})
    (root / "JPEGImages/b.jpg").unlink()
    file = damage(sets.image(root / "JPEGImages/b.png"))
    assert [fault.where for fault in check(root, Data()).faults] == [str(file)]


def test_both_kinds_are_reported(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [*BOX, ("dog", (3, 3, 3, 9)), ("dog", (9, 9, 5, 5))]})
    assert check(root, Data()).counts == {"fatal": 1, "damaged": 0, "mendable": 1}


def test_a_list_that_can_not_be_read_is_a_fault_beside_the_others(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": [("dog", (5, 5, 0, 9))]}}, {"dog": 1})
    (root / "annotations/val.json").write_text('{"images": [')
    report = check(root, Data())
    assert sorted(fault.kind for fault in report.faults) == ["fatal", "mendable"]
    assert list(report.lists) == ["train"]


def test_images_in_two_lists_are_noted(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": BOX}, {"train": ["a", "b"], "test": ["a"]})
    assert "1 images are in both `train` and `test`, such as a.jpg" in check(root, Data()).notes


@pytest.mark.parametrize(("top", "noted"), [(4095, True), (4096, False)])
def test_12_bit_images_get_a_note_on_their_white(tmp_path: Path, top: int, noted: bool) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX})
    (root / "JPEGImages/a.jpg").unlink()
    Image.fromarray(np.full((40, 60), top, dtype=np.uint16)).save(root / "JPEGImages/a.png")
    assert any("data.white=4095" in note for note in check(root, Data()).notes) == noted
    assert not any("data.white" in note for note in check(root, Data(white=4095)).notes)


def test_8_bit_images_are_not_taken_for_12_bit(tmp_path: Path) -> None:
    assert check(sets.voc(tmp_path / "d", {"a": BOX}), Data()).notes == ()


def test_nothing_is_written(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": [("dog", (9, 9, 5, 5))]})
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    check(root, Data())
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        check(tmp_path, Data())
