from pathlib import Path

import numpy as np
import pytest

from rcnn.cli.files import fresh_folder
from rcnn.config import Data
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from rcnn.training.run_folder import RunFolder
from tests.data import sets

ROW = "1 0.5 0.5 0.25 0.5\n"
LISTS = {"train": {"a": ROW + "0 0.1 0.2 0.2 0.4\n", "b": ""}, "val": {"c": ROW}}


def test_shares_become_pixels(tmp_path: Path) -> None:
    train, val = open_splits(sets.yolo(tmp_path / "d", LISTS), Data())
    assert (train.format, train.names, train.category_ids) == ("yolo", ("cat", "dog"), (1, 2))
    first, second = train.records
    assert (first.name, first.id, first.size) == ("images/train/a.jpg", "a", (40, 60))
    np.testing.assert_allclose(first.boxes, [[22.5, 10, 37.5, 30], [0, 0, 12, 16]], atol=1e-12)
    assert first.labels.tolist() == [1, 0]
    assert len(second.boxes) == 0
    assert [record.name for record in val.records] == ["images/val/c.jpg"]


def test_an_image_without_a_label_file_is_background(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", LISTS)
    (root / "labels/train/b.txt").unlink()
    data = open_dataset(root, "train", Data())
    assert (len(data), len(data.records[1].boxes), data.faults) == (2, 0, ())


@pytest.mark.parametrize("names", ["[no, 12, 1e3]", "{0: no, 1: 12, 2: 1e3}", "{2: 1e3, 0: no, 1: 12}"])
def test_names_are_text(tmp_path: Path, names: str) -> None:
    assert open_dataset(sets.yolo(tmp_path / "d", LISTS, names), "train", Data()).names == ("no", "12", "1e3")


@pytest.mark.parametrize("path", ["", "path: .\n", "path: ../d\n", "path: {root}\n", "path: /nowhere/else\n"])
def test_paths_are_relative_to_the_yaml_or_its_path(tmp_path: Path, path: str) -> None:
    root = sets.yolo(tmp_path / "d", LISTS)
    file = root / "data.yaml"
    file.write_text(path.format(root=root) + file.read_text())
    for place in (root, file):
        assert [len(data) for data in open_lists(place, Data())] == [2, 1]


def test_paths_that_exporters_write_one_folder_too_high(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        sets.labelled(tmp_path / f"{split}/images/a.jpg", tmp_path / f"{split}/labels/a.txt", ROW)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [cat, dog]\n")
    train, val = open_splits(tmp_path, Data())
    assert [data.records[0].name for data in (train, val)] == ["train/images/a.jpg", "valid/images/a.jpg"]
    (tmp_path / "data.yaml").unlink()
    assert [len(data) for data in open_splits(tmp_path, Data())] == [1, 1]


def test_lists_of_paths_with_backslashes_and_a_byte_order_mark(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", LISTS)
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf.\\images\\train\\b.jpg\r\nimages/val/c.jpg\r\n")
    (root / "data.yaml").write_text("train: [list.txt]\nval: images/train\nnames: [cat, dog]\n")
    data = open_dataset(root, "train", Data())
    assert [record.name for record in data.records] == ["images/train/b.jpg", "images/val/c.jpg"]


@pytest.mark.parametrize("classes", [None, "classes.txt"])
def test_folders_without_a_yaml(tmp_path: Path, classes: str | None) -> None:
    for stem in ("a", "b"):
        sets.labelled(tmp_path / f"images/{stem}.png", tmp_path / f"labels/{stem}.txt", ROW)
    if classes:
        (tmp_path / classes).write_text("cat\ndog\n")
    data = open_dataset(tmp_path, "all", Data())
    assert data.names == (("cat", "dog") if classes else ("0", "1"))
    assert bool(classes) != any("names the classes" in note for note in data.notes)


def test_labels_beside_images(tmp_path: Path) -> None:
    sets.labelled(tmp_path / "a.jpg", tmp_path / "a.txt", ROW)
    (tmp_path / "readme.txt").write_text("what this is")
    (tmp_path / "licence.txt").write_text("do as you like")
    assert len(open_dataset(tmp_path, "all", Data()).records[0].boxes) == 1


IMAGES = "train: images/train\nval: images/train\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{IMAGES}names: [cat, dog]\nnc: 3\n", "`nc` is 3, but `names` has 2: cat"),
        (f"{IMAGES}names: {{0: cat, 2: dog}}\n", "numbered 0 to 1"),
        (f"{IMAGES}names: [cat, cat]\n", "named twice"),
        (f"{IMAGES}nc: 2\n", "`names` must list the classes"),
        ("train: images/nope\nval: images/train\nnames: [cat, dog]\n", "train: images/nope does not exist; looked in"),
        ("train: {a: b}\nnames: [cat, dog]\n", "`train` must be a path"),
        ("names: [cat, dog]\n", "it names no existing train, val or test"),
        ("train: [images/train\nnames: [cat, dog]\n", r"data\.yaml:2: malformed yaml"),
        ("train: images/train\nnames: [cat, dog]\ntrain: images/val\n", r"yaml:3: .*`train` occurs twice, first"),
    ],
)
def test_a_faulty_yaml_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    root = sets.yolo(tmp_path / "d", LISTS)
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_dataset(root / "data.yaml", "train", Data())


def test_a_set_without_any_label_file_is_an_error(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", LISTS)
    for file in (root / "labels/train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"none of the 2 images has a label file; looked in .*labels/train"):
        open_dataset(root, "train", Data())


def test_results_among_the_images_are_not_read(tmp_path: Path) -> None:
    """Training and prediction leave their results in a folder of images and labels."""
    sets.labelled(tmp_path / "a.jpg", tmp_path / "a.txt", "0 0.5 0.5 0.1 0.1\n")
    sets.image(tmp_path / "more/b.jpg")
    for results in (fresh_folder(tmp_path / "runs/predict"), RunFolder.create(tmp_path / "runs/train", "d").path):
        sets.image(results / "plots/val.jpg")
    assert [record.name for record in open_dataset(tmp_path, "all", Data()).records] == ["a.jpg", "more/b.jpg"]
