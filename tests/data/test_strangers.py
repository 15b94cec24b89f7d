"""Data sets as others publish them: unusual folder names, paths of other machines, damaged pictures."""

from pathlib import Path

import pytest

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats.find import find_layout, open_dataset, open_splits
from rcnn.detector import Detector
from rcnn.errors import DataError, SettingsError
from rcnn.evaluate import val
from rcnn.presets import build, settings_of
from tests.data import sets

BOX = [("dog", (5, 5, 20, 20))]


def voc(root: Path, annotations: str, images: str, count: int = 4) -> Path:
    """Write a VOC set with these folder names; its xml files contain paths of another machine."""
    (root / annotations).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        sets.image(root / images / f"{number}.jpg")
        there = f"<path>C:\\Users\\ann\\images\\{number}.jpg</path><filename>/home/ann/{number}.jpg</filename>"
        text = sets.xml(BOX).replace("<annotation>", f"<annotation>{there}")
        (root / annotations / f"{number}.xml").write_text(text)
    return root


@pytest.mark.parametrize("annotations", ["Annotations", "annotations", "annots", "ANNOTATIONS", "labels in xml"])
@pytest.mark.parametrize("images", ["images", "pictures of today"])
def test_voc_is_recognised_by_the_content_of_the_files(tmp_path: Path, annotations: str, images: str) -> None:
    root = voc(tmp_path / "set", annotations, images)
    for path in (root, root / annotations, tmp_path):
        data = open_dataset(path, "all", Data())
        assert (data.format, data.root, data.names, data.faults) == ("voc", root, ("dog",), ())
        assert [record.name for record in data.records] == [f"{images}/{number}.jpg" for number in range(4)]


@pytest.mark.parametrize("annotations", ["annotations", "Annotations", "xml"])
def test_splits_may_be_folders_of_annotations_and_of_images(tmp_path: Path, annotations: str) -> None:
    root = tmp_path / "set"
    for split, count in (("train", 3), ("valid", 1)):
        voc(root, f"{annotations}/{split}", f"images/{split}", count)
    for path in (root, root / annotations):
        train, val = open_splits(path, Data())
        assert (train.format, train.root, train.faults, val.faults) == ("voc", root, (), ())
        assert [record.name for record in train.records] == [f"images/train/{number}.jpg" for number in range(3)]
        assert [record.name for record in val.records] == ["images/valid/0.jpg"]


def test_lists_name_the_files_of_a_folder_of_any_name(tmp_path: Path) -> None:
    root = voc(tmp_path / "set", "annots", "images")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/val.txt").write_text("3\n")
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    assert [len(open_dataset(root, split, Data())) for split in ("train", "val")] == [3, 1]


def test_the_folder_of_images_alone_leads_to_the_data_set(tmp_path: Path) -> None:
    root = voc(tmp_path / "set", "annots", "images")
    with pytest.raises(DataError, match=rf"no annotations next to them\. There is a data set .*; give {root}$"):
        find_layout(root / "images")
    sets.image(tmp_path / "other/images/a.jpg")
    with pytest.raises(DataError, match=r"no annotations next to them\. Looked for VOC"):
        find_layout(tmp_path / "other/images")


def test_xml_of_something_else_is_no_annotation(tmp_path: Path) -> None:
    sets.image(tmp_path / "images/a.jpg")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.xml").write_text('<?xml version="1.0"?><net name="a"></net>')
    with pytest.raises(DataError, match="no data set is recognised"):
        find_layout(tmp_path)


def test_two_folders_of_annotations_are_refused(tmp_path: Path) -> None:
    voc(tmp_path / "set", "first", "images")
    voc(tmp_path / "set", "second", "images")
    with pytest.raises(DataError, match=r"several folders here hold xml annotations: .*first, .*second; give one"):
        find_layout(tmp_path / "set")
    assert len(open_dataset(tmp_path / "set/second", "all", Data())) == 4


@pytest.mark.parametrize("root", ["/home/ann/set/", "C:\\\\Users\\\\ann\\\\set\\\\"])
@pytest.mark.parametrize("path", ["", "path: /home/ann/set\n"])
def test_absolute_paths_of_another_machine_in_a_data_yaml(tmp_path: Path, root: str, path: str) -> None:
    sets.yolo(tmp_path, {"train": {"a": "0 0.5 0.5 0.2 0.2\n", "b": ""}, "val": {"c": ""}})
    (tmp_path / "list.txt").write_text("/home/ann/set/images/val/c.jpg\n")
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f'{path}train: "{root}images/train"\nval: "{root}list.txt"\nnames: [cat, dog]\n')
    train, val = open_splits(tmp_path, Data())
    assert [len(train), len(val)] == [2, 1]
    assert any(f"does not exist; {tmp_path / 'images/train'} is read instead" in note for note in train.notes)


@pytest.mark.parametrize("folder", ["/home/ann/set/images/", "C:\\Users\\ann\\set\\images\\", "/elsewhere/"])
def test_absolute_paths_of_another_machine_in_a_coco_json(tmp_path: Path, folder: str) -> None:
    tree = sets.coco_tree({"a.jpg": BOX, "b.jpg": BOX}, {"dog": 1})
    for image in tree["images"]:
        sets.image(tmp_path / "images" / image["file_name"])
        image["file_name"] = folder + image["file_name"]
    sets.write_json(tmp_path / "annotations/instances.json", tree)
    data = open_dataset(tmp_path, "all", Data())
    assert [record.name for record in data.records] == ["images/a.jpg", "images/b.jpg"]


def test_yolo_sets_of_annotation_tools(tmp_path: Path) -> None:
    """CVAT has one folder for images and labels, Label Studio an additional json."""
    cvat = tmp_path / "cvat/obj_train_data"
    for name in "ab":
        sets.labelled(cvat / f"{name}.jpg", cvat / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "cvat/obj.names").write_text("dog\n")
    studio = sets.yolo(tmp_path / "studio", {"train": {"a": "0 0.5 0.5 0.2 0.2\n"}, "val": {"c": ""}}, "[dog]")
    sets.write_json(studio / "notes.json", {"categories": [{"id": 0, "name": "dog"}]})
    for root in (cvat.parent, studio):
        train, val = open_splits(root, Data())
        assert (train.format, train.names, len(train) + len(val)) == ("yolo", ("dog",), 2)


def test_two_absolute_paths_do_not_end_in_one_folder(tmp_path: Path) -> None:
    """Otherwise training and validation would use the same images."""
    sets.yolo(tmp_path / "images", {"train": {"a": "0 0.5 0.5 0.2 0.2\n"}})
    (tmp_path / "data.yaml").write_text("train: /one/images\nval: /two/images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="val: /two/images does not exist; looked in"):
        open_splits(tmp_path, Data())


def test_the_annotations_of_a_coco_set_find_its_images(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "set", {"train": {"a.jpg": BOX}, "val": {"b.jpg": BOX}}, {"dog": 1})
    report = check(root / "annotations", Data())
    assert (report.faults, report.format, list(report.lists)) == ((), "coco", ["train", "val"])
    assert open_dataset(root / "annotations", "train", Data()).records[0].name == "images/a.jpg"


@pytest.mark.parametrize("bytes_left", [0, 3, 900])
def test_a_damaged_picture_is_left_out_and_noted(tmp_path: Path, bytes_left: int) -> None:
    root = voc(tmp_path / "set", "annotations", "images", count=20)
    file = root / "images/7.jpg"
    file.write_bytes(file.read_bytes()[:bytes_left])
    train, val = open_splits(root, Data())
    assert len(train) + len(val) == 19
    (note,) = [note for note in (*train.notes, *val.notes) if "damaged" in note]
    assert "1 damaged image of " in note
    assert str(file) in note
    with pytest.raises(DataError, match=r"a fault in the data.*\n.*7\.jpg"):
        open_splits(root, Data(on_fault="stop"))
    assert check(root, Data()).to_json()["damaged"] == 1


def test_faulty_labels_still_stop_and_all_faults_are_listed(tmp_path: Path) -> None:
    root = voc(tmp_path / "set", "annotations", "images")
    (root / "images/0.jpg").write_bytes(b"cut")
    (root / "images/1.jpg").unlink()
    (root / "annotations/2.xml").write_text(sets.xml([("dog", (20, 5, 5, 20))]))
    with pytest.raises(DataError, match="3 faults in the data") as caught:
        open_splits(root, Data())
    for message in ("0.jpg", "there is no image `1`", "is inverted"):
        assert message in str(caught.value)


def test_val_reads_the_sets_that_train_reads(tmp_path: Path) -> None:
    root = voc(tmp_path / "set", "annotations", "images")
    (root / "images/0.jpg").write_bytes(b"cut")
    settings = settings_of("tiny-fpn", ["preprocess.short=32", "model.channels=8", "roi.hidden=8"])
    detector = Detector(build(settings, 1), settings, ("dog",), device="cpu")
    assert len(val(detector, root, split="all").truths) == 3
    with pytest.raises(DataError, match=r"0\.jpg"):
        val(detector, root, split="all", on_fault="stop")
    with pytest.raises(SettingsError, match="on_fault"):
        val(detector, root, on_fault="perhaps")
    detector.save(tmp_path / "best.safetensors")
    assert len(val(tmp_path / "best.safetensors", root, split="all").truths) == 3
