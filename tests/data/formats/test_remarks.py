"""Remarks on all lists together: images that none names, groups among the classes, numbers in place of names."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from tests.data import sets

BOX = [("dog", (5, 5, 20, 20))]
ROW = "60,40,dog,5,5,20,20"
UNLISTED = "not in any list of labels"


def about(notes: Sequence[str], words: str) -> list[str]:
    return [note for note in notes if words in note]


def coco_folder(root: Path, lists: Sequence[str] = ("train", "val")) -> Path:
    """A set with two images per list, all in images/, and two images that no list names."""
    sets.coco(root, {name: {f"{name}{k}.jpg": BOX for k in range(2)} for name in lists}, {"dog": 1})
    for name in ("x.jpg", "y.png"):
        sets.image(root / "images" / name)
    (root / "images/notes.txt").write_text("not an image\n")
    return root


def test_images_that_no_json_names_are_counted(tmp_path: Path) -> None:
    root = coco_folder(tmp_path)
    expected = f"2 images in images/ are {UNLISTED}, such as images/x.jpg; left out"
    for notes in (check(root, Data()).notes, open_lists(root, Data())[0].notes, open_splits(root, Data())[0].notes):
        (note,) = about(notes, UNLISTED)
        assert note.startswith(expected)


def test_images_of_a_list_that_was_not_read_do_not_count(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, ["train", "val", "test"])
    assert about(check(root, Data()).notes, "2 images")
    assert not about([note for split in open_splits(root, Data()) for note in split.notes], UNLISTED)
    assert not about(open_dataset(root, "val", Data()).notes, UNLISTED)
    assert not about(open_dataset(root / "annotations/val.json", "all", Data()).notes, UNLISTED)


def test_a_single_json_or_table_counts_the_images_beside_it(tmp_path: Path) -> None:
    for name in "abc":
        sets.image(tmp_path / f"{name}.jpg")
    sets.write_json(tmp_path / "labels.json", sets.coco_tree({"a.jpg": BOX}, {"dog": 1}))
    for path in (tmp_path, tmp_path / "labels.json"):
        (note,) = about(check(path, Data()).notes, UNLISTED)
        assert note.startswith(f"2 images in {tmp_path} are {UNLISTED}, such as b.jpg")
    (tmp_path / "labels.json").unlink()
    sets.csv(tmp_path / "labels.csv", [f"a.jpg,{ROW}", "b.jpg,,,,,,,"])
    (note,) = about(check(tmp_path / "labels.csv", Data()).notes, UNLISTED)
    assert note.startswith(f"1 image in {tmp_path} is {UNLISTED}, such as c.jpg")


def test_a_folder_of_its_own_for_each_list(tmp_path: Path) -> None:
    """As Roboflow exports them: the test list is not read by a training, and its folder not searched."""
    for split, names in (("train", "abc"), ("valid", "de"), ("test", "fgh")):
        for name in names:
            sets.image(tmp_path / split / f"{name}.jpg")
        tree = sets.coco_tree({f"{names[0]}.jpg": BOX}, {"dog": 1})
        sets.write_json(tmp_path / split / "_annotations.coco.json", tree)
    (note,) = about([note for split in open_splits(tmp_path, Data()) for note in split.notes], UNLISTED)
    assert note.startswith(f"3 images in 2 folders are {UNLISTED}, such as train/b.jpg")
    (note,) = about(check(tmp_path, Data()).notes, UNLISTED)
    assert note.startswith(f"5 images in 3 folders are {UNLISTED}")


def test_folders_without_a_listed_image_are_not_searched(tmp_path: Path) -> None:
    root = sets.coco(tmp_path, {"train": {"a.jpg": BOX}}, {"dog": 1})
    sets.image(root / "other/b.jpg")
    assert not about(check(root, Data()).notes, UNLISTED)


def test_images_without_a_label_file_are_counted(tmp_path: Path) -> None:
    sets.yolo(tmp_path, {"train": {"a": "0 0.5 0.5 0.2 0.2\n", "b": ""}, "val": {"c": ""}})
    assert not about(check(tmp_path, Data()).notes, "label file")
    sets.image(tmp_path / "images/train/z.jpg")
    (note,) = about(check(tmp_path, Data()).notes, "label file")
    assert note == "1 of 3 images has no label file, such as images/train/z.jpg; read as images without objects"


def roboflow(root: Path, used: Sequence[str] = ("cat",)) -> Path:
    """A set whose first category is the group of the others."""
    sets.image(root / "train/a.jpg")
    tree = sets.coco_tree({"a.jpg": [(name, (5, 5, 20, 20)) for name in used]}, {"animals": 0, "cat": 1, "dog": 2})
    for category in tree["categories"]:
        category["supercategory"] = "none" if category["name"] == "animals" else "animals"
    sets.write_json(root / "train/_annotations.coco.json", tree)
    return root


def test_a_group_without_boxes_is_pointed_out_and_can_be_left_out(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    (note,) = about(check(root, Data()).notes, "supercategory")
    assert note.startswith("class 0 `animals` has no boxes and is the supercategory of other classes")
    setting = note.rsplit("`", 2)[1].strip("'")
    assert setting == "data.classes={animals: null}"
    classes = yaml.safe_load(setting.partition("=")[2])
    data = open_dataset(root, "all", Data(classes=classes))
    assert (data.names, about(data.notes, "supercategory")) == (("cat", "dog"), [])


def test_a_group_with_boxes_and_other_unused_classes_are_no_mistake(tmp_path: Path) -> None:
    assert not about(check(roboflow(tmp_path, ["animals", "cat"]), Data()).notes, "supercategory")
    own_group = sets.coco_tree({"a.jpg": [("cat", (5, 5, 20, 20))]}, {"cat": 1, "person": 2})
    for category in own_group["categories"]:
        category["supercategory"] = category["name"]
    sets.image(tmp_path / "own/a.jpg")
    sets.write_json(tmp_path / "own/labels.json", own_group)
    assert not about(check(tmp_path / "own", Data()).notes, "supercategory")


def test_the_classes_of_a_model_are_not_remarked_on(tmp_path: Path) -> None:
    data = open_dataset(roboflow(tmp_path), "all", Data(), ["animals", "cat", "dog"])
    assert not about(data.notes, "supercategory")


@pytest.mark.parametrize("file", ["voc.names", "_darknet.labels", "train/_darknet.labels", "../classes.txt"])
def test_numbers_are_explained_by_a_file_of_names(tmp_path: Path, file: str) -> None:
    root = tmp_path / "above/set"
    for split in ("train", "valid"):
        rows = "0 0.5 0.5 0.2 0.2\n2 0.4 0.4 0.2 0.2\n"
        sets.labelled(root / f"{split}/images/a.jpg", root / f"{split}/labels/a.txt", rows)
    assert not about(check(root, Data()).notes, "to use them")
    (root / file).write_text("cat\nbig dog\nbird\n")
    (note,) = about(check(root, Data()).notes, "to use them")
    assert "the classes are called by their numbers, and " in note
    assert Path(file).name in note
    setting = note.rsplit("`", 2)[1].strip("'")
    names = yaml.safe_load(setting.partition("=")[2])
    assert open_dataset(root, "train", Data(classes=names)).names == ("cat", "big dog", "bird")


@pytest.mark.parametrize("lines", ["cat\ndog\n", "cat\ndog\ndog\n", "cat\ndog\n2\n", "cat\ndog\n\x1bx\n", "\0\xff"])
def test_a_file_with_other_names_does_not_explain_numbers(tmp_path: Path, lines: str) -> None:
    rows = "0 0.5 0.5 0.2 0.2\n2 0.4 0.4 0.2 0.2\n"
    sets.labelled(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", rows)
    (tmp_path / "voc.names").write_bytes(lines.encode("latin-1"))
    assert not about(check(tmp_path, Data()).notes, "to use them")


def test_many_names_are_not_repeated(tmp_path: Path) -> None:
    sets.labelled(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", "99 0.5 0.5 0.2 0.2\n")
    (tmp_path / "voc.names").write_text("".join(f"name {k}\n" for k in range(100)))
    (note,) = about(check(tmp_path, Data()).notes, "to use them")
    assert "has 100 names" in note
    assert len(note) < 300
    assert "'data.classes={0: name 0, 1: name 1, ...}'" in note
