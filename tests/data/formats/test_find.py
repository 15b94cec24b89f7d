from collections.abc import Callable
from pathlib import Path

import pytest

import rcnn
from rcnn.config import Data, Settings, override
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.errors import DataError, SettingsError
from tests.data import sets

BOX = [("dog", (5, 5, 20, 20))]
MANY = {f"image {number:03}": BOX for number in range(40)}


def test_a_tenth_is_held_out_and_noted(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", MANY)
    train, val = open_splits(root, Data())
    assert (len(train), len(val)) == (36, 4)
    assert not {record.name for record in train.records} & {record.name for record in val.records}
    for data in (train, val):
        assert "no validation list: 4 of 40 images, by a hash of their names, are held out" in data.notes
    again = open_dataset(root, "val", Data())
    assert [record.name for record in again.records] == [record.name for record in val.records]


def test_the_held_out_images_depend_on_their_names_alone(tmp_path: Path) -> None:
    _, voc = open_splits(sets.voc(tmp_path / "v", MANY), Data())
    files = {f"{stem}.png": [("dog", (4, 4, 16, 16))] for stem in reversed(MANY)}
    _, coco = open_splits(sets.coco(tmp_path / "c", {"trainval": files}, {"dog": 1}), Data())
    assert {record.path.stem for record in voc.records} == {record.path.stem for record in coco.records}


def test_the_share_can_be_set_and_is_one_image_at_least(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", MANY)
    assert len(open_dataset(root, "val", Data(holdout=0.25))) == 10
    assert len(open_dataset(root, "val", Data(holdout=0))) == 1
    assert len(open_dataset(root, "train", Data(holdout=1))) == 1


def test_one_image_can_not_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two images"):
        open_splits(sets.voc(tmp_path / "d", {"a": BOX}), Data())


@pytest.mark.parametrize("name", ["train", "trainval"])
def test_validation_images_are_held_out_of_a_single_training_list(tmp_path: Path, name: str) -> None:
    root = sets.voc(tmp_path / "d", MANY, {name: list(MANY)[:20], "test": list(MANY)[20:]})
    train, val = open_splits(root, Data())
    assert (len(train), len(val), len(open_dataset(root, "test", Data()))) == (18, 2, 20)


def test_the_lists_can_be_chosen_by_name(tmp_path: Path) -> None:
    names = list(MANY)[:6]
    lists = {"train": names[:3], "val": names[3:5], "trainval": names[:5], "test": names[5:]}
    root = sets.voc(tmp_path / "d", MANY, lists)
    train, val = open_splits(root, Data(train="trainval", val="test"))
    assert [record.id for record in train.records] == names[:5]
    assert [record.id for record in val.records] == names[5:]


def test_a_missing_list_names_those_that_are_there(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", MANY, {"train": list(MANY)[:20], "val": list(MANY)[20:]})
    with pytest.raises(DataError, match="no `test` list; found train, val"):
        open_dataset(root, "test", Data())


def test_images_in_both_lists_are_noted(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": BOX}, {"train": ["a", "b"], "val": ["b"]})
    _, val = open_splits(root, Data())
    assert any("1 images are in both" in note and "b.jpg" in note for note in val.notes)


def test_a_class_in_val_that_train_lacks_is_fatal_and_named(tmp_path: Path) -> None:
    images = {"a": BOX, "b": [("dgo", (5, 5, 9, 9))], "c": BOX}
    root = sets.voc(tmp_path / "d", images, {"train": ["a"], "val": ["b", "c"]})
    with pytest.raises(DataError, match=r"b\.xml:4: class `dgo` is not among the classes dog; did you mean `dog`"):
        open_splits(root, Data())
    _, val = open_splits(root, Data(on_fault="skip"))
    assert [record.id for record in val.records] == ["c"]
    assert [(fault.kind, fault.image) for fault in val.faults] == [("fatal", "JPEGImages/b.jpg")]
    assert val.faults[0].reason.endswith("; data.classes renames classes and leaves them out")


def test_a_class_without_a_training_box_is_noted(tmp_path: Path) -> None:
    lists = {"train": {"a.jpg": [("dog", (5, 5, 9, 9))]}, "val": {"b.jpg": [("cat", (5, 5, 9, 9))]}}
    _, val = open_splits(sets.coco(tmp_path / "d", lists, {"dog": 1, "cat": 2}), Data())
    assert "classes with boxes in validation and none in training: cat" in val.notes


def test_no_class_in_common_lists_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its classes are dog, but those of the model or of.* are cat, bird;"):
        open_dataset(sets.voc(tmp_path / "d", MANY), "all", Data(), names=["cat", "bird"])


def test_all_fatal_faults_of_both_lists_are_reported_together(tmp_path: Path) -> None:
    images = {"a": [("dog", (9, 9, 5, 5)), ("dog", (5, "nan", 9, 9))], "b": [("dog", (9, 9, 5, 5))], "c": BOX}
    root = sets.voc(tmp_path / "d", images, {"train": ["a", "c"], "val": ["b"]})
    with pytest.raises(DataError) as caught:
        open_splits(root, Data())
    assert len(caught.value.faults) == 3
    for place in ("a.xml:5", "a.xml:9", "b.xml:5"):
        assert place in str(caught.value)
    with pytest.raises(DataError, match=r"no usable image is left in `val`"):
        open_splits(root, Data(on_fault="skip"))


def test_mendable_faults_do_not_stop(tmp_path: Path) -> None:
    data = open_dataset(sets.voc(tmp_path / "d", {"a": [*BOX, ("dog", (3, 3, 3, 3))]}), "all", Data())
    assert [fault.kind for fault in data.faults] == ["mendable"]
    assert len(data.records[0].boxes) == 1


def test_a_missing_path_names_neighbours(tmp_path: Path) -> None:
    (tmp_path / "blood-cells").mkdir()
    with pytest.raises(DataError, match=r"no such file or folder; similar names in .*blood-cells"):
        open_dataset(tmp_path / "blood_cell", "train", Data())


def test_an_empty_folder_and_a_folder_of_images_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty"):
        open_dataset(tmp_path, "train", Data())
    sets.image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"Found: a\.jpg.*no annotations .*Looked for VOC .* COCO .* YOLO "):
        open_dataset(tmp_path, "train", Data())
    with pytest.raises(DataError, match="not a data set"):
        open_dataset(tmp_path / "a.jpg", "train", Data())


def test_two_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": "0 0.5 0.5 0.1 0.1\n"}})
    sets.write_json(root / "annotations/train.json", sets.coco_tree({"train/a.jpg": []}, {"cat": 1}))
    with pytest.raises(DataError, match=r"more than one data set is here: COCO \(annotations/train\.json\); YOLO"):
        open_dataset(root, "train", Data())
    assert open_dataset(root / "data.yaml", "all", Data()).format == "yolo"
    assert open_dataset(root / "annotations/train.json", "all", Data()).format == "coco"


def test_lists_without_images_or_objects_are_errors(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": []}, {"train": [], "val": ["b"]})
    with pytest.raises(DataError, match=r"train\.txt: it contains no images"):
        open_dataset(root, "train", Data())
    with pytest.raises(DataError, match=r"val\.txt: it contains no objects"):
        open_dataset(root, "val", Data())
    assert len(open_dataset(root, "val", Data(), names=["dog"])) == 1


def test_faults_are_named_if_no_object_is_left(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX, "b": []})
    (root / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"it contains no objects, so there are no classes\n.*a\.xml:1: malformed xml"):
        open_dataset(root, "all", Data())


def test_a_list_that_is_not_text_is_named(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": BOX}, {"train": ["a"]})
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match=r"train\.txt: can't be read"):
        open_dataset(root, "train", Data())


def test_python_takes_all_settings_or_none_and_refuses_an_unknown_split(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", MANY)
    held_out = rcnn.open_dataset(root, "val", override(Settings(), ["data.holdout=0.5"]))
    assert (len(rcnn.open_dataset(root, "all")), len(held_out)) == (40, 20)
    with pytest.raises(SettingsError, match="unknown split `valid`; there are train, val, test, all"):
        rcnn.open_dataset(root, "valid")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "read",
    [
        lambda: rcnn.open_dataset("", "val"),
        lambda: open_splits("", Data()),
        lambda: rcnn.anchors(""),
        lambda: rcnn.val("blood-cells", ""),
        lambda: rcnn.why("blood-cells", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(read: Callable[[], object]) -> None:
    with pytest.raises(SettingsError, match="the path of the data is empty; `"):
        read()
