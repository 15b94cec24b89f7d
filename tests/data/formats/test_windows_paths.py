"""Paths that were written on Windows, in every kind of file that names images or folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.dataset import Record
from rcnn.data.formats.coco import image_ids
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.data.proposals.read import read_proposals
from rcnn.errors import DataError
from rcnn.images.storage import is_address, location, name_below
from tests.data import sets

BOX = [("dog", (5, 5, 20, 20))]
WRITTEN = [
    "images\\train\\a.jpg",
    ".\\images\\train\\a.jpg",
    "images\\/train\\a.jpg",
    "C:\\set\\images\\train\\a.jpg",
    "c:\\set/images\\train/a.jpg",
    "C:\\\\set\\\\images\\\\train\\\\a.jpg",
    "D:/work/set/images/train/a.jpg",
    "D://work//set//images//train//a.jpg",
    "\\\\server\\share\\set\\images\\train\\a.jpg",
]
"""Ways in which Windows programs name images/train/a.jpg."""


def coco(root: Path, name: str) -> Path:
    sets.image(root / "images/train/a.jpg")
    tree = sets.coco_tree({name: BOX}, {"dog": 1})
    return sets.write_json(root / "annotations/all.json", tree).parent.parent


def csv(root: Path, name: str) -> Path:
    sets.image(root / "images/train/a.jpg")
    return sets.csv(root / "labels.csv", [f"{name},60,40,dog,5,5,20,20"]).parent


def yolo(root: Path, name: str) -> Path:
    sets.labelled(root / "images/train/a.jpg", root / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n")
    (root / "list.txt").write_text(f"{name}\r\n")
    (root / "data.yaml").write_text("train: .\\list.txt\nnames: [dog]\n")
    return root


def voc(root: Path, name: str) -> Path:
    sets.voc(root, {"a": BOX}, {"train": [name]})
    return root


@pytest.mark.parametrize("write", [coco, csv, yolo, voc])
@pytest.mark.parametrize("name", WRITTEN)
def test_an_image_is_found_by_a_path_of_windows(tmp_path: Path, write: Callable[[Path, str], Path], name: str) -> None:
    report = check(write(tmp_path / "set", name), Data())
    assert (report.faults, [stats.boxes for stats in report.lists.values()]) == ((), [1])


@pytest.mark.parametrize(
    "entries",
    [
        "train: images\\train",
        "train: .\\images\\train",
        "train: ..\\images\\train",
        "train: C:\\set\\images\\train",
        "train: 'C:\\set\\images\\train'",
        "train: \\\\server\\share\\set\\images\\train",
        'train: "images\\\\train"',
        "path: ..\\set\ntrain: images\\train",
        "path: C:\\work\\set\ntrain: images\\train",
        "path: images\ntrain: .\\train",
        "path: C:\\work\\images\ntrain: train",
        "path: /home/ann/images\ntrain: train",
    ],
)
def test_a_folder_of_a_data_yaml_is_found_by_a_path_of_windows(tmp_path: Path, entries: str) -> None:
    root = sets.yolo(tmp_path / "set", {"train": {"a": "0 0.5 0.5 0.2 0.2\n", "b": ""}, "val": {"c": ""}})
    (root / "data.yaml").write_text(f"{entries}\nval: {root / 'images/val'}\nnames: [cat, dog]\n")
    train, val = open_splits(root, Data())
    assert (len(train), len(val)) == (2, 1)


@pytest.mark.parametrize("path", ["C:\\set\\images\\train", "C:\\Users\\ann\\train", "..\\train", "images\\train"])
def test_backslashes_in_double_quotes_are_explained(tmp_path: Path, path: str) -> None:
    root = sets.yolo(tmp_path / "set", {"train": {"a": "0 0.5 0.5 0.2 0.2\n"}, "val": {"c": ""}})
    (root / "data.yaml").write_text(f'train: "{path}"\nval: images/val\nnames: [cat, dog]\n')
    with pytest.raises(DataError, match=r"in double quotes, yaml reads a backslash .* write / instead"):
        open_dataset(root, "train", Data())


@pytest.mark.parametrize("name", WRITTEN)
def test_proposals_and_image_ids_are_found_by_paths_of_windows(tmp_path: Path, name: str) -> None:
    nothing = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    record = Record(tmp_path / "images/train/a.jpg", "images/train/a.jpg", "a", (40, 60), *nothing)
    file = sets.write_json(tmp_path / "proposals.json", {name: [[1, 2, 3, 4]]})
    (found,) = read_proposals(file, [record])
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    ids = image_ids(sets.write_json(tmp_path / "ids.json", {"images": [{"file_name": name, "id": 7}]}))
    assert ids == {name.replace("\\", "/"): 7}


def test_a_drive_is_no_scheme_and_addresses_keep_their_form(tmp_path: Path) -> None:
    assert not is_address("C://set//a.jpg")
    assert location("C://set//a.jpg") == Path("C:/set/a.jpg")
    assert name_below("https://server/a\\b.jpg", tmp_path) == "https://server/a\\b.jpg"
    assert name_below("memory://set/images\\a.jpg", location("memory://set")) == "images/a.jpg"
    assert name_below("memory://other/a.jpg", location("memory://set")) == "memory://other/a.jpg"
