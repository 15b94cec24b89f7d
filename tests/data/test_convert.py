import json
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.convert import convert
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset, open_lists
from rcnn.data.formats.registry import WRITERS
from rcnn.errors import SettingsError
from rcnn.result import Result
from tests.data import sets

IMAGES = {
    "a": [("dog", (1, 1, 20, 30)), ("no", (11.25, 6.5, 60, 39.125))],
    "with space": [("dog & <cat>", (3, 4, 5, 7.7))],
    "\u00fcber.v2": [],
    "d": [("dog", (7, 7, 33, 21))],
}
BOX = [("dog", (2, 3, 10, 10))]
LISTS = {"train": ["a", "with space"], "val": ["\u00fcber.v2"], "test": ["d"]}
XML = {stem: [(escape(name), box) for name, box in objects] for stem, objects in IMAGES.items()}


def assert_same(one: Dataset, other: Dataset) -> None:
    assert (one.split, one.names) == (other.split, other.names)
    theirs = {record.path.stem: record for record in other.records}
    assert len(theirs) == len(one.records)
    for record in one.records:
        twin = theirs[record.path.stem]
        order, twin_order = np.lexsort(record.boxes.T), np.lexsort(twin.boxes.T)
        np.testing.assert_allclose(twin.boxes[twin_order], record.boxes[order], rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(twin.labels[twin_order], record.labels[order])
        np.testing.assert_array_equal(twin.ignore[twin_order], record.ignore[order])
        assert twin.path.read_bytes() == record.path.read_bytes()


def test_one_format_after_the_other_keeps_boxes_lists_and_bytes(tmp_path: Path) -> None:
    first = open_lists(sets.voc(tmp_path / "d", XML, LISTS), Data())
    data = first
    for step, form in enumerate(("coco", "yolo", "labelme", "voc"), start=1):
        assert convert(data, form, tmp_path / f"{step}") == []
        data = open_lists(tmp_path / f"{step}", Data())
        assert [item.format for item in data] == [form] * 3
        assert [fault for item in data for fault in item.faults] == []
        for one, other in zip(first, data, strict=True):
            assert_same(one, other)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 58), st.floats(2, 38), st.floats(0.01, 1), st.floats(0.01, 1)), max_size=4))
@pytest.mark.parametrize("form", WRITERS)
def test_any_boxes_survive(tmp_path_factory: pytest.TempPathFactory, form: str, shares: list[tuple]) -> None:
    root = tmp_path_factory.mktemp("law")
    boxes = [(x, y, wide * (60 - x), high * (40 - y)) for x, y, wide, high in shares]
    # Boxes that are equal but for rounding may become one: a YOLO file has middles, and an object once.
    boxes = {tuple(round(side, 9) for side in box): box for box in [(0.0, 0.0, 30.0, 20.0), *boxes]}.values()
    boxes = [box for box in boxes if min(abs(box[2] - 1), abs(box[3] - 1)) > 1e-6]
    source = sets.coco(root / "d", {"all": {"a.jpg": [("dog", box) for box in boxes]}}, {"dog": 7})
    (one,) = open_lists(source, Data())
    convert(one, form, root / "out")
    assert_same(one, open_dataset(root / "out", "all", Data()))


@pytest.mark.parametrize("form", ["voc", "coco", "labelme"])
def test_ignored_boxes_stay_ignored(tmp_path: Path, form: str) -> None:
    data = open_dataset(sets.voc(tmp_path / "d", {"a": BOX}, extra="<difficult>1</difficult>"), "all", Data())
    assert convert(data, form, tmp_path / "out") == []
    assert_same(data, open_dataset(tmp_path / "out", "all", Data()))


def test_a_remark_names_what_a_format_can_not_hold(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX}, extra="<difficult>1</difficult>")
    (note,) = convert(open_dataset(root, "all", Data()), "yolo", tmp_path / "yolo")
    assert "1 were left out" in note
    thin_box = {"a.jpg": [("dog", (2, 3, 1, 10))]}
    source = sets.coco(tmp_path / "c", {"train": thin_box}, {"dog": 3, "cat": 5})
    thin, unused = convert(open_lists(source, Data()), "voc", tmp_path / "voc")
    assert "1 boxes have a side of exactly 1 pixel" in thin
    assert "lost: cat" in unused
    (again,) = open_lists(tmp_path / "voc", Data())
    np.testing.assert_allclose(again.records[0].boxes, [[2, 3, 3.01, 13]], rtol=1e-12)


def test_results_and_copies_are_written_by_one_rule(tmp_path: Path) -> None:
    """Boxes in a result and in a data set give the same xml, and the same numbers in json and label files."""
    boxes = [("dog", (2.25, 3.5, 1, 10)), ("cat", (0, 0, 60, 40)), ("dog", (10.5, 7.25, 0.5, 3.75))]
    (data,) = open_lists(sets.coco(tmp_path / "c", {"all": {"a.jpg": boxes}}, {"cat": 3, "dog": 5}), Data())
    for form in ("voc", "coco", "yolo"):
        convert(data, form, tmp_path / form)
    (record,) = data.records
    scores = np.ones(3, np.float32)
    image = str(tmp_path / "JPEGImages/a.jpg")
    result = Result(record.boxes, scores, record.labels, data.names, image, record.size, category_ids=data.category_ids)
    assert (tmp_path / "voc/Annotations/a.xml").read_text() == result.to_voc()
    rows = json.loads((tmp_path / "coco/annotations/all.json").read_text())["annotations"]
    shared = [{key: row[key] for key in ("image_id", "category_id", "bbox")} for row in rows]
    assert [row | {"score": 1} for row in shared] == result.to_coco(record.id)
    texts = (tmp_path / "yolo/labels/a.txt").read_text(), result.to_yolo()
    np.testing.assert_allclose(*(np.array(text.split(), float) for text in texts), atol=1e-6)


def test_coco_keeps_its_ids(tmp_path: Path) -> None:
    files = {"a.jpg": [("dog", (2, 3, 9, 10))], "b.jpg": []}
    (data,) = open_lists(sets.coco(tmp_path / "c", {"train": files}, {"dog": 3, "cat": 5}), Data())
    convert(data, "coco", tmp_path / "out")
    (again,) = open_lists(tmp_path / "out", Data())
    assert again.category_ids == (3, 5)
    assert [record.id for record in again.records] == [1, 2]


@pytest.mark.parametrize("form", WRITERS)
def test_images_of_one_name_in_two_folders_stay_apart(tmp_path: Path, form: str) -> None:
    files = {"x/1.jpg": [("dog", (2, 3, 9, 10))], "y/1.jpg": [("dog", (5, 3, 9, 10))], "y/1.png": []}
    (data,) = open_lists(sets.coco(tmp_path / "c", {"train": files}, {"dog": 3}), Data())
    convert(data, form, tmp_path / "out")
    (again,) = open_lists(tmp_path / "out", Data())
    assert sorted(len(record.boxes) for record in again.records) == [0, 1, 1]
    assert len({record.name for record in again.records}) == 3


@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_is_not_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (5, 5, 20, 20))], "b": []})
    copied: list[object] = []

    def fail(_: object, target: object) -> None:
        copied.append(target)
        if len(copied) == 2:
            raise end

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(type(end)):
        convert(open_dataset(root, "all", Data()), "coco", tmp_path / "copy")
    assert len(copied) == 2
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    data = open_dataset(sets.voc(tmp_path / "d", {"a": BOX}), "all", Data())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    for form, folder, reason in (
        ("yolo", "out", "the folder is not empty"),
        ("yolo", "d/yolo", "inside the data set"),
        ("openimages", "new", "unknown format `openimages`; choose voc, coco, yolo, labelme, csv, huggingface$"),
    ):
        with pytest.raises(SettingsError, match=reason):
            convert(data, form, tmp_path / folder)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
