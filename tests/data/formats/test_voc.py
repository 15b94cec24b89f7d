from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from tests.data import sets

TWO = {"a": [("dog", (1, 1, 20, 30)), ("cat", (11, 6, 60, 40))], "b": [("dog", (5, 5, 10, 10))]}


def test_corners_lose_1_at_the_low_end_and_classes_are_sorted(tmp_path: Path) -> None:
    data = open_dataset(sets.voc(tmp_path / "d", TWO), "all", Data())
    assert (data.format, data.names, data.category_ids) == ("voc", ("cat", "dog"), (1, 2))
    first, second = data.records
    assert (first.name, first.id, first.size) == ("JPEGImages/a.jpg", "a", (40, 60))
    assert first.boxes.tolist() == [[0, 0, 20, 30], [10, 5, 60, 40]]
    assert first.labels.tolist() == [1, 0]
    assert second.boxes.dtype == np.float64
    assert data.faults == ()


@pytest.mark.parametrize("zero", [0, "0.0", 0.4])
def test_a_zero_anywhere_in_the_set_means_0_based_and_is_noted(tmp_path: Path, zero: float) -> None:
    images = {"a": TWO["a"], "b": [("dog", (zero, 3, 10, 10))]}
    root = sets.voc(tmp_path / "d", images, {"train": ["a"], "val": ["b"]})
    train, val = open_splits(root, Data.model_validate({}))
    assert train.records[0].boxes[1].tolist() == [11, 6, 60, 40]
    assert val.names == ("cat", "dog")
    assert any("0-based" in note and "b.xml" in note for note in train.notes)


def test_the_origin_can_be_set(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (0, 3, 10, 10))]})
    (record,) = open_dataset(root, "all", Data(voc_origin=1)).records
    assert record.boxes.tolist() == [[0, 2, 10, 10]]
    root = sets.voc(tmp_path / "e", {"a": [("dog", (2, 3, 10, 10))]})
    assert open_dataset(root, "all", Data(voc_origin=0)).records[0].boxes.tolist() == [[2, 3, 10, 10]]


def test_difficult_objects_are_kept_as_ignored(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (2, 3, 10, 10))]}, extra="<difficult>1</difficult>")
    assert open_dataset(root, "all", Data()).records[0].ignore.tolist() == [True]


def test_images_without_objects_are_background(tmp_path: Path) -> None:
    record = open_dataset(sets.voc(tmp_path / "d", {**TWO, "c": []}), "all", Data()).records[2]
    assert record.boxes.shape == (0, 4)
    assert record.labels.shape == record.ignore.shape == (0,)


def test_fractions_of_a_pixel_are_kept(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (2.25, 3.5, 10.75, 3.25))]})
    assert open_dataset(root, "all", Data()).records[0].boxes.tolist() == [[1.25, 2.5, 10.75, 3.25]]


def test_lists_choose_and_order_images(tmp_path: Path) -> None:
    images = dict.fromkeys("abcd", TWO["b"])
    lists = {"train": ["b", "a"], "val": ["c"], "trainval": ["a", "b", "c"], "test": ["d"]}
    root = sets.voc(tmp_path / "d", images, lists)
    ids = {split: [record.id for record in open_dataset(root, split, Data()).records] for split in ("train", "val")}
    assert ids == {"train": ["b", "a"], "val": ["c"]}
    assert [record.id for record in open_dataset(root, "all", Data()).records] == ["b", "a", "c", "d"]
    assert [data.split for data in open_lists(root, Data())] == ["train", "val", "test"]


def test_trainval_less_val_is_train(tmp_path: Path) -> None:
    images = dict.fromkeys("abc", TWO["b"])
    root = sets.voc(tmp_path / "d", images, {"trainval": ["a", "b", "c"], "val": ["b"]})
    train, val = open_splits(root, Data())
    assert ([r.id for r in train.records], [r.id for r in val.records]) == (["a", "c"], ["b"])


def test_lists_from_other_systems_are_understood(tmp_path: Path) -> None:
    names = ["one", "with space 1", "dot.ted", "\u00e4\u00f6", "folder"]
    root = sets.voc(tmp_path / "d", dict.fromkeys(names, TWO["b"]), {"train": ["x"]})
    lines = ["one -1", "with space 1", "dot.ted.jpg", "\u00e4\u00f6  1", "JPEGImages\\folder.jpg", ""]
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    data = open_dataset(root, "all", Data())
    assert [record.id for record in data.records] == names


@pytest.mark.parametrize("inner", ["", "VOC2007"])
def test_the_devkit_and_annotations_folders_are_recognised(tmp_path: Path, inner: str) -> None:
    root = sets.voc(tmp_path / "devkit" / inner, TWO)
    for path in (tmp_path / "devkit", root, root / "Annotations"):
        assert len(open_dataset(path, "all", Data())) == 2


def test_several_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        sets.voc(tmp_path / year, TWO)
    with pytest.raises(DataError, match=r"several VOC data sets.*VOC2007.*VOC2012"):
        open_dataset(tmp_path, "all", Data())


def test_xml_beside_images_and_folders_of_splits(tmp_path: Path) -> None:
    for folder in ("flat", "splits/train", "splits/valid"):
        sets.image(tmp_path / folder / "a b.png")
        (tmp_path / folder / "a b.xml").write_text(sets.xml(TWO["a"]))
    assert [record.name for record in open_dataset(tmp_path / "flat", "all", Data()).records] == ["a b.png"]
    train, val = open_splits(tmp_path / "splits", Data())
    assert [data.records[0].name for data in (train, val)] == ["train/a b.png", "valid/a b.png"]


def test_namespaces_parts_and_comments_are_ignored(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", TWO)
    (root / "Annotations/a.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<!-- made by hand -->\n'
        '<v:annotation xmlns:v="urn:voc" verified="yes"><v:object><v:pose>Left</v:pose><v:name> dog </v:name>'
        "<v:part><v:name>head</v:name><v:bndbox><v:xmin>2</v:xmin></v:bndbox></v:part>"
        "<v:bndbox><v:ymin>3</v:ymin><v:xmin>2</v:xmin><v:xmax>9</v:xmax><v:ymax>8</v:ymax></v:bndbox>"
        "</v:object></v:annotation>"
    )
    data = open_dataset(root, "all", Data())
    assert data.names == ("dog",)
    assert data.records[0].boxes.tolist() == [[1, 2, 9, 8]]


def test_boxes_of_rotated_images_are_on_the_upright_image(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (1, 1, 40, 60))]}, size=(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    sets.image(root / "JPEGImages/a.jpg", exif=exif)
    (record,) = open_dataset(root, "all", Data()).records
    assert record.size == (60, 40)
    assert record.boxes.tolist() == [[0, 0, 40, 60]]


def test_given_names_fix_the_labels(tmp_path: Path) -> None:
    data = open_dataset(sets.voc(tmp_path / "d", TWO), "all", Data(), names=["dog", "bird", "cat"])
    assert data.names == ("dog", "bird", "cat")
    assert data.records[0].labels.tolist() == [0, 2]
