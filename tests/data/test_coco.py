import json
from pathlib import Path

import pytest

from rcnn.config import Data
from rcnn.data.dataset import DataError
from rcnn.data.find import open_dataset, open_lists, open_splits

from . import sets

IDS = {"dog": 18, "cat": 17, "bird": 16}
TWO = {"a.jpg": [("dog", (0, 0, 20, 30)), ("cat", (10.5, 5, 49.5, 35))], "b.jpg": []}


def test_classes_are_in_the_order_of_ids_and_keep_them(tmp_path: Path) -> None:
    data = open_dataset(sets.coco(tmp_path / "d", {"train": TWO, "val": TWO}, IDS), "train", Data())
    assert (data.format, data.names, data.category_ids) == ("coco", ("bird", "cat", "dog"), (16, 17, 18))
    first, second = data.records
    assert (first.name, first.id, first.size) == ("images/a.jpg", 1, (40, 60))
    assert first.boxes.tolist() == [[0, 0, 20, 30], [10.5, 5, 60, 40]]
    assert first.labels.tolist() == [2, 1]
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_crowds_are_kept_as_ignored(tmp_path: Path, key: str) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO}, IDS)
    tree = sets.coco_tree(TWO, IDS)
    tree["annotations"][1][key] = 1
    sets.write_json(root / "annotations/train.json", tree)
    assert open_dataset(root, "all", Data()).records[0].ignore.tolist() == [False, True]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", "annotations"),
        ("train.json", "."),
        ("labels.json", "data"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path: Path, annotations: str, images: str) -> None:
    for name in TWO:
        sets.image(tmp_path / images / name)
    sets.write_json(tmp_path / annotations, sets.coco_tree(TWO, IDS))
    for path in (tmp_path, tmp_path / annotations):
        data = open_dataset(path, "all", Data())
        assert [record.path for record in data.records] == [tmp_path / images / name for name in TWO]


def test_file_names_may_have_folders_and_backslashes(tmp_path: Path) -> None:
    names = {"day\\one two.jpg": TWO["a.jpg"], "night/\u00fcber.jpg": []}
    sets.image(tmp_path / "images/day/one two.jpg")
    sets.image(tmp_path / "images/night/\u00fcber.jpg")
    sets.write_json(tmp_path / "annotations/train.json", sets.coco_tree(names, IDS))
    records = open_dataset(tmp_path, "all", Data()).records
    assert [record.name for record in records] == ["images/day/one two.jpg", "images/night/\u00fcber.jpg"]


def test_one_file_named_for_evaluation_is_val_and_test(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO, "val": TWO}, IDS)
    file = root / "annotations/val.json"
    assert len(open_dataset(file, "val", Data())) == len(open_dataset(file, "test", Data())) == 2
    with pytest.raises(DataError, match="no `train` list; found val"):
        open_splits(file, Data())
    assert [data.split for data in open_lists(file, Data())] == ["val"]


def test_captions_and_keypoints_are_passed_over(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"instances_train2017": TWO, "instances_val2017": TWO}, IDS)
    for name in ("captions_train2017", "person_keypoints_val2017"):
        sets.write_json(root / f"annotations/{name}.json", {"images": [], "annotations": []})
    assert [data.split for data in open_lists(root, Data())] == ["train", "val"]


def test_two_files_of_one_list_are_not_guessed_between(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train_a": TWO, "train_b": TWO}, IDS)
    with pytest.raises(DataError, match=r"several json files could be the `train` list: train_a\.json, train_b\.json"):
        open_dataset(root, "train", Data())


def test_val_is_read_by_name_not_by_number(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO}, IDS)
    sets.write_json(root / "annotations/val.json", sets.coco_tree(TWO, {"cat": 1, "dog": 2}))
    train, val = open_splits(root, Data())
    assert val.names == train.names
    assert val.records[0].labels.tolist() == train.records[0].labels.tolist()
    assert val.category_ids == (3, 1, 2)


@pytest.mark.parametrize(
    ("text", "byte", "reason"),
    [
        ('{"images": [], "annotations": [}', 31, "malformed"),
        ('{"images": [{"id": 1,}], "annotations": [], "categories": []}', 20, "malformed"),
        ('{"images": [\u00fc', 12, "an object is expected"),
        ('{"a": "\u00fc\u00fc", "images": [1]}', 25, "an object is expected"),
        ('{"images": [] "annotations": []}', 14, "expected"),
        ('{"images": [], "annotations": []}', 0, "no array `categories`"),
        ('{"images": []} {}', 15, "follows the end"),
        ("[]", 0, "expected"),
        ("", 0, "expected"),
        ("{" * 5 + '"a": ' + "[" * 100_000, 1, "malformed"),
    ],
)
def test_malformed_json_is_told_by_its_byte(tmp_path: Path, text: str, byte: int, reason: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        open_dataset(file, "all", Data())
    (fault,) = caught.value.faults
    assert fault.where.startswith(f"{file}:byte ")
    assert byte <= int(fault.where.rsplit(" ", 1)[1]) <= byte + 1


def test_bytes_are_counted_past_a_mark_and_wide_characters(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO}, {**IDS, "\u00fcml\u00e4ut\U0001f600": 1})
    file = root / "annotations/train.json"
    tree = sets.coco_tree(TWO, {"\u00fcml\u00e4ut\U0001f600": 1, **IDS})
    tree["annotations"][1]["bbox"] = [0, 0, -4, 3]
    raw = b"\xef\xbb\xbf" + json.dumps(dict(reversed(tree.items())), ensure_ascii=False).encode()
    file.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        open_dataset(root, "all", Data())
    byte = raw.index(b'{"id": 2, "image_id"')
    assert caught.value.faults[0].where == f"{file}:byte {byte}"


def test_all_images_missing_is_one_error_with_the_places(tmp_path: Path) -> None:
    sets.write_json(tmp_path / "annotations/train.json", sets.coco_tree(TWO, IDS))
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"none of its images is there.*looked in .*annotations.*images"):
        open_dataset(tmp_path, "all", Data())
