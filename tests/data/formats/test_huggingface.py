import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.convert import convert
from rcnn.data.dataset import Dataset
from rcnn.data.formats import huggingface
from rcnn.data.formats.find import Split, open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from tests.data import sets

BOX = [5, 6, 15, 24]
PIXELS = [5, 6, 20, 30]


def row(name: str, *labels: object, key: str = "categories", **more: Any) -> dict[str, Any]:
    return {"file_name": name, "objects": {"bbox": [BOX for _ in labels], key: [*labels]}, **more}


def metadata(folder: Path, *rows: Any, name: str = "metadata.jsonl") -> Path:
    """Write a metadata.jsonl and the images that it names."""
    for line in rows:
        if isinstance(line, dict):
            sets.image(folder / line["file_name"])
    folder.mkdir(parents=True, exist_ok=True)
    lines = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def read(root: Path) -> Dataset:
    return open_dataset(root, "all", Data(), decode=False)


@pytest.mark.parametrize("given", [".", "metadata.jsonl"])
@pytest.mark.parametrize("key", ["categories", "category", "label", "labels", "name", "names"])
def test_boxes_are_corner_and_size_in_pixels(tmp_path: Path, given: str, key: str) -> None:
    metadata(tmp_path, row("a.jpg", "dog", "cat", key=key), row("b.jpg", key=key), "")
    data = read(tmp_path / given)
    assert (data.format, data.names, data.faults, data.notes) == ("huggingface", ("cat", "dog"), (), ())
    first, second = data.records
    assert (first.name, first.id, first.labels.tolist()) == ("a.jpg", "a", [1, 0])
    assert first.boxes[0].tolist() == PIXELS
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize("objects", [[{"bbox": BOX, "category": "dog", "id": 3}], {"bbox": [BOX], "category": ["dog"]}])
def test_objects_are_lists_or_a_list_of_objects(tmp_path: Path, objects: Any) -> None:
    empty = [{"file_name": f"{index}.jpg", "objects": empty} for index, empty in enumerate(([], {}))]
    metadata(tmp_path, {"file_name": "a.jpg", "objects": objects}, *empty)
    assert [record.boxes.tolist() for record in read(tmp_path).records] == [[PIXELS], [], []]


@pytest.mark.parametrize("folders", [("train", "validation", "test"), ("data/train", "data/val", "data/test")])
def test_each_list_has_a_folder(tmp_path: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        metadata(tmp_path / folder, row("a.jpg", "dog"))
    assert [item.split for item in open_lists(tmp_path, Data())] == ["train", "val", "test"]
    train, val = open_splits(tmp_path, Data())
    assert (train.records[0].path, val.records[0].path) == tuple(tmp_path / name / "a.jpg" for name in folders[:2])


def test_one_file_may_name_the_images_of_all_lists(tmp_path: Path) -> None:
    rows = [row("train/a.jpg", "dog"), row("test/c.jpg", "cat"), row("validation/b.jpg", "dog"), row("train/b.jpg")]
    metadata(tmp_path, *rows, row("other/d.jpg", "cat"))
    sets.image(tmp_path / "train/unlisted.jpg")
    splits: tuple[Split, ...] = ("train", "val", "test", "all")
    lists = [open_dataset(tmp_path, split, Data(), names=("cat", "dog")) for split in splits]
    assert [[record.name for record in item.records] for item in lists] == [
        ["train/a.jpg", "train/b.jpg"],
        ["validation/b.jpg"],
        ["test/c.jpg"],
        ["train/a.jpg", "test/c.jpg", "validation/b.jpg", "train/b.jpg"],
    ]
    assert set(lists[0].notes) == {
        "1 line of metadata.jsonl about images outside the folders of the lists left out",
        "1 image without a line in metadata.jsonl, such as unlisted.jpg; left out, as not labelled",
    }


FEATURES = {"bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"}}
NAMES = ["zebra", "dog", "ape"]
YAML = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names: {'0': indoors, '1': outdoors}
  - name: objects
    sequence:
    - name: category
      dtype:
        class_label:
          names:
            '1': dog
            '0': zebra
            '2': ape
    - name: bbox
      sequence: float32
      length: 4
---
# A set
"""


def info(names: object, key: str, nested: bool) -> str:
    label = {"names": names, "_type": "ClassLabel"}
    features = FEATURES | {key: {"feature": label, "_type": "Sequence"} if nested else label}
    other = {"names": ["indoors"], "_type": "ClassLabel"}
    inside = {"feature": features, "_type": "Sequence"} if nested else features
    return json.dumps({"features": {"label": other, "objects": inside}})


@pytest.mark.parametrize("folder", [".", "train"])
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset_info.json", info(NAMES, "category", nested=True)),
        ("dataset_info.json", info(NAMES, "categories", nested=False)),
        ("README.md", YAML),
        ("classes.txt", "zebra\ndog\nape\n"),
        ("labels.txt", "zebra\r\ndog\r\nape"),
    ],
)
def test_numbers_of_classes_are_named_by_a_file_beside_or_above(
    tmp_path: Path, folder: str, file: str, text: str
) -> None:
    metadata(tmp_path / folder, row("a.jpg", 1, 0))
    (tmp_path / file).write_text(text, newline="")
    for path in (tmp_path, tmp_path / folder / "metadata.jsonl"):
        data = read(path)
        assert (data.format, data.names, data.notes) == ("huggingface", tuple(NAMES), ())
        assert data.records[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize("text", ["", "{", "[[", '{"objects": 3}', info([1, 2], "category", nested=True), "[" * 90_000])
def test_numbers_without_names_are_the_names(tmp_path: Path, text: str) -> None:
    metadata(tmp_path, row("a.jpg", 2, 0))
    (tmp_path / "dataset_info.json").write_text(text)
    (tmp_path / "README.md").write_text(f"---\n{text[:99]}\n---\n")
    data = read(tmp_path)
    assert (data.names, data.records[0].labels.tolist()) == (("0", "1", "2"), [2, 0])
    looked = "dataset_info.json, README.md, classes.txt, labels.txt"
    assert data.notes == (f"no file names the classes (looked for {looked}): they are called 0 to 2",)


def test_names_in_rows_need_no_file(tmp_path: Path) -> None:
    metadata(tmp_path, row("a.jpg", "dog", "cat"))
    (tmp_path / "classes.txt").write_text("zebra\n")
    assert read(tmp_path).names == ("cat", "dog")


def test_size_id_and_crowds_are_read_if_they_are_there(tmp_path: Path) -> None:
    first = row("a.jpg", "dog", "cat", width=60, height=40, image_id=7)
    first["objects"] |= {"iscrowd": [0, 1], "area": [1, 2]}
    metadata(tmp_path, first)
    (record,) = read(tmp_path).records
    assert (record.id, record.ignore.tolist()) == (7, [False, True])
    metadata(tmp_path, first | {"width": 61})
    with pytest.raises(DataError, match="the annotation says 61x40 pixels, the image has 60x40"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "place", "message"),
    [
        ('{"file_name": "a.jpg"', "2", "malformed json: Expecting ',' delimiter (column"),
        ("[" * 100_000, "2", "malformed json"),
        ("[1]", "2", "an object with the `file_name` of an image is expected"),
        ('{"file_name": 1, "objects": {}}', "2", "an object with the `file_name` of an image is expected"),
        ('{"file_name": "b.jpg", "objects": {}}', "2", "image `b.jpg` is missing; looked in"),
        ('{"file_name": "a.jpg"}', "2", "`objects` needs a list `bbox` and a list `categories`"),
        ('{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]]}}', "2", "`objects` needs a list `bbox` and"),
        (row("a.jpg", "dog") | {"objects": {"bbox": [], "label": ["dog"]}}, "2", "has 0 boxes and 1 class"),
        (row("a.jpg", None), "2: objects[0]", "a class must be a name or a number; found None"),
        (row("a.jpg", True), "2: objects[0]", "a class must be a name or a number; found True"),
        (row("a.jpg", -1), "2: objects[0]", "class -1: at most 10,000 classes without names are read"),
        (row("a.jpg", 10**9), "2: objects[0]", "class 1000000000: at most 10,000 classes without names are read"),
        (row("a.jpg", "dog") | {"objects": {"bbox": [[1, 2, 3]], "label": ["dog"]}}, "2: objects[0]", "four numbers x"),
        (row("a.jpg", "dog") | {"objects": {"bbox": [[9, 9, -3, 4]], "label": [0]}}, "2: objects[0]", "is inverted"),
        (row("a.jpg", "dog") | {"objects": {"bbox": [[1, 2, 1e999, 4]], "label": [0]}}, "2: objects[0]", "not finite"),
        (row("c.jpg", "dog"), "2", "image `c.jpg` has a line before"),
        ('{"file_name": "a.jpg", "file_name": "c.jpg", "objects": {}}', "", "the key `file_name` occurs twice"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: Any, place: str, message: str) -> None:
    sets.image(tmp_path / "a.jpg")
    metadata(tmp_path, row("c.jpg", "dog"), line, row("d.jpg", "dog"))
    where = f"{tmp_path / 'metadata.jsonl'}{place and f':{place}'}: "
    faults = [str(fault) for fault in check(tmp_path, Data()).faults if fault.kind == "fatal"]
    assert [fault for fault in faults if fault.startswith(where) and message in fault], faults


def test_a_number_beyond_the_named_classes_is_a_fault(tmp_path: Path) -> None:
    metadata(tmp_path, row("a.jpg", 2), row("b.jpg", 0))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="class 2 is not among the 2 classes, from 0: dog, cat"):
        read(tmp_path)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata(tmp_path, *(row(f"{number}.jpg", "dog") for number in range(4)))
    monkeypatch.setattr(huggingface, "MAX_METADATA_LINES", 2)
    assert "metadata.jsonl:3: the file continues here, but only 2 lines" in str(check(tmp_path, Data()).faults[0])
    monkeypatch.setattr(huggingface, "MAX_METADATA_BYTES", 10)
    with pytest.raises(DataError, match="are too many"):
        read(tmp_path)


def test_captions_and_dataset_info_are_not_taken_for_labels(tmp_path: Path) -> None:
    metadata(tmp_path, {"file_name": "a.jpg", "text": "a dog"})
    (tmp_path / "dataset_info.json").write_text(info(NAMES, "categories", nested=True))
    with pytest.raises(DataError, match="no data set is recognised"):
        read(tmp_path)


def test_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    metadata(tmp_path, row("train/a.jpg", "dog"))
    with (tmp_path / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": "train/\xff.jpg"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl: can't be read: 'utf-8' codec"):
        read(tmp_path)


def test_lists_classes_and_ignored_boxes_are_written(tmp_path: Path) -> None:
    images = {"a": [("dog", (2, 3, 10, 10))], "b": [("dog", (2, 3, 10, 10))], "c": []}
    voc = sets.voc(tmp_path / "d", images, {"train": ["a"], "val": ["b", "c"]})
    data = open_lists(voc, Data())
    assert convert(data, "huggingface", tmp_path / "out") == []
    assert sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*")) == [
        *("train/a.jpg", "train/metadata.jsonl", "validation/b.jpg", "validation/c.jpg", "validation/metadata.jsonl"),
    ]
    assert json.loads((tmp_path / "out/train/metadata.jsonl").read_text()) == {
        **{"file_name": "a.jpg", "width": 60, "height": 40},
        "objects": {"bbox": [[1, 2, 9, 8]], "categories": ["dog"]},
    }
    voc = sets.voc(tmp_path / "e", {"a": images["a"]}, extra="<difficult>1</difficult>")
    notes = convert(open_lists(voc, Data()), "huggingface", tmp_path / "out 2")
    assert notes[0] == "metadata.jsonl has no crowd or difficult boxes: 1 were left out"
