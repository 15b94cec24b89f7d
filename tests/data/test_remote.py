"""Data sets that are remote are read like local ones, and open no files outside their folder."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.convert import convert
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from rcnn.data.formats.registry import WRITERS
from rcnn.errors import DataError, SettingsError
from rcnn.images import storage
from tests.data import sets
from tests.remote import SECRET, files_below, upload

ROW = "0 0.5 0.5 0.4 0.4\n"
LISTS = {"train": {"a b": ROW + "1 0.1 0.2 0.2 0.4\n", "c": ROW, "ü#": ""}, "val": {"d": ROW + "1 0.3 0.3 0.1 0.1\n"}}
FILES_OF_LISTS = {
    "coco": "annotations/train.json",
    "yolo": "data.yaml",
    "via": "train/via_region_data.json",
    "cvat": "train/annotations.xml",
    "csv": "train/_annotations.csv",
    "huggingface": "train/metadata.jsonl",
}
FOLDERS = {
    "coco": "images",
    "yolo": "images/train",
    "labelme": "train",
    "via": "train",
    "cvat": "train/images",
    "csv": "train",
    "huggingface": "train",
}
"""Folder of the training images of each format that names them by their paths."""
MADE = (*WRITERS, "via", "cvat")
"""The formats of which `make` writes a data set."""
Place = Callable[[Path], str]


def make(form: str, folder: Path) -> Path:
    """Write a data set of a format with a damaged image and a box that sticks out."""
    yolo = sets.yolo(folder / "yolo", LISTS)
    if form in ("via", "cvat"):
        {"via": sets.write_via, "cvat": sets.write_cvat}[form](open_lists(yolo, Data()), folder / form)
    elif form != "yolo":
        convert(open_lists(yolo, Data()), form, folder / form)
    root = folder / form
    damaged = next(file for file in sorted(root.rglob("c.jpg")))
    damaged.write_bytes(damaged.read_bytes()[:300])
    return root


def described(dataset: Dataset, root: object) -> list[object]:
    """Return everything that a data set holds, with its root replaced."""
    records = [
        (record.name, record.id, record.size, record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist())
        for record in dataset.records
    ]
    faults = [unquote(str(fault).replace(str(root), "ROOT")) for fault in dataset.faults]
    notes = [note.replace(str(root), "ROOT") for note in dataset.notes]
    return [dataset.format, dataset.split, dataset.names, dataset.category_ids, records, faults, notes]


@pytest.mark.parametrize("form", MADE)
def test_every_format_is_read_like_a_local_set(form: str, tmp_path: Path, place: Place) -> None:
    root = make(form, tmp_path)
    address = place(root)
    here, there = (open_splits(path, Data()) for path in (root, address))
    assert len(here[0]) == 2
    for local, remote in zip(here, there, strict=True):
        assert described(local, root) == described(remote, address)
        for one, other in zip(local.records, remote.records, strict=True):
            assert str(other.path).startswith(f"{address}/")
            assert one.path.read_bytes() == storage.read_bytes(other.path, 10**6)  # type: ignore[union-attr]
    reports = [check(path, Data()) for path in (root, address)]
    assert reports[0].counts == reports[1].counts == {"fatal": 0, "damaged": 1, "mendable": 0}
    assert reports[0].lists == reports[1].lists


def read_only(form: str, root: Path) -> Path:
    """Write a data set of a format that can't be written."""
    if form == "openimages":
        shares = {"train": {"a b": [("dog", (0.1, 0.2, 0.3, 0.4))]}, "val": {"d": [("dog", (0, 0.6, 0, 0.8))]}}
        return sets.open_images(root, shares, {"dog": "/m/1", "cat": "/m/2"})
    train = {"a b.jpg": [("dog", (10, 20, 30, 40))], "c.jpg": []}
    return sets.label_studio(root, {"train": train, "val": {"d.jpg": [("cat", (5, 6, 7, 8))]}})


@pytest.mark.parametrize("form", ["openimages", "label_studio"])
def test_formats_that_can_only_be_read_are_read_like_local_ones(form: str, tmp_path: Path, place: Place) -> None:
    root = read_only(form, tmp_path / "set")
    address = place(root)
    for path in ("", "/train.json" if form == "label_studio" else "/train-annotations-bbox.csv"):
        here, there = (open_dataset(f"{top}{path}", "all", Data()) for top in (root, address))
        assert here.format == form
        assert described(here, root) == described(there, address)


def test_no_names_of_classes_are_read_above_a_remote_set(tmp_path: Path, memory: Any) -> None:
    root = read_only("openimages", tmp_path / "set")
    (root / "class-descriptions-boxable.csv").rename(tmp_path / "class-descriptions-boxable.csv")
    for key, content in files_below(tmp_path).items():
        memory.pipe(f"/bucket/{key}", content)
    assert open_dataset(root, "all", Data()).names == ("dog",)
    assert open_dataset("memory://bucket/set", "all", Data()).names == ("/m/1",)


@pytest.mark.parametrize("form", FILES_OF_LISTS)
def test_a_file_that_is_a_list_is_found_at_its_address(form: str, tmp_path: Path, place: Place) -> None:
    root = make(form, tmp_path)
    address = place(root)
    here, there = (
        open_dataset(f"{path}/{FILES_OF_LISTS[form]}", "all", Data(), decode=False) for path in (root, address)
    )
    assert described(here, root) == described(there, address)


def named(form: str, root: Path, name: str) -> None:
    """Make the labels of the first training image name another file."""
    if form == "coco":
        file = root / "annotations/train.json"
        tree = json.loads(file.read_text())
        tree["images"][0]["file_name"] = name
        file.write_text(json.dumps(tree))
    elif form == "csv":
        file = root / "train/_annotations.csv"
        head, first, *rest = file.read_text().splitlines()
        file.write_text("\n".join([head, ",".join([name, *first.split(",")[1:]]), *rest]))
    elif form == "huggingface":
        file = root / "train/metadata.jsonl"
        first, *rest = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps(json.loads(first) | {"file_name": name}), *rest]))
    elif form == "labelme":
        file = root / "train/a b.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "imagePath": name}))
    elif form == "via":
        file = root / "train/via_region_data.json"
        tree = json.loads(file.read_text())
        next(iter(tree.values()))["filename"] = name
        file.write_text(json.dumps(tree))
    elif form == "cvat":
        file = root / "train/annotations.xml"
        file.write_text(re.sub('name=".*?"', lambda _: f'name="{name}"', file.read_text(), count=1))
    elif form == "yolo":
        (root / "train.txt").write_text(f"{name}\n./images/train/ü#.jpg\n")
        (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    else:
        file = min((root / "Annotations").glob("*.xml"))
        file.write_text(re.sub("<filename>.*?</filename>", lambda _: f"<filename>{name}</filename>", file.read_text()))


@pytest.mark.parametrize("form", MADE)
@pytest.mark.parametrize(
    "name",
    [
        f"s3://other/x.jpg?X-Amz-Signature={SECRET}",
        "memory://bucket/other/x.jpg",
        "s3://bucket/set/x.jpg",
        "https://example.org/x.jpg",
        "file:///etc/x.jpg",
        "../other/x.jpg",
        "../../other/x.jpg",
        "simplecache::memory://bucket/other/x.jpg",
    ],
)
def test_labels_open_nothing_outside_their_set(
    form: str, name: str, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(form, tmp_path)
    named(form, root, name)
    picture = sets.image(tmp_path / "x.jpg").read_bytes()
    for key, content in {**files_below(root), "../other/x.jpg": picture, "../x.jpg": picture}.items():
        memory.pipe(os.path.normpath(f"/bucket/set/{key}"), content)
    opened, read, whole = list[str](), storage._read, storage.scan

    def recorded(path: storage.RemotePath, count: int) -> bytes:
        opened.append(str(path))
        return read(path, count)

    def listed(folder: storage.Location) -> Any:
        opened.append(str(folder))
        return whole(folder)

    monkeypatch.setattr(storage, "_read", recorded)
    for module in (
        "rcnn.images.storage",
        "rcnn.data.formats.folders",
        "rcnn.data.formats.beside",
        "rcnn.data.formats.lists",
        "rcnn.data.formats.openimages",
        "rcnn.data.formats.unrecognised",
    ):
        monkeypatch.setattr(f"{module}.scan", listed)
    try:
        found = open_dataset("memory://bucket/set", "train", Data(on_fault="skip"))
    except DataError as error:
        shown = str(error)
    else:
        shown = "\n".join(map(str, found.faults))
        assert all(str(record.path).startswith("memory://bucket/set/") for record in found.records)
    assert SECRET not in shown
    assert not [path for path in opened if not path.startswith("memory://bucket/set")]
    if form in ("coco", "yolo"):  # the others use the last part of a path
        assert "` is an address that does not lie below the folder" in shown or "is missing" in shown


@pytest.mark.parametrize("entry", ["/a/../../other", "../../other", "/home/me/../../../other", "images/../../other"])
def test_a_yaml_names_no_folder_outside_its_own(entry: str, memory: Any) -> None:
    memory.pipe("/bucket/set/data.yaml", f"train: {entry}\nval: {entry}\nnames: [cat]\n".encode())
    memory.pipe("/bucket/other/x.jpg", b"")
    with pytest.raises(DataError) as error:
        open_dataset("memory://bucket/set/data.yaml", "train", Data())
    assert "memory://bucket/other" not in str(error.value)


@pytest.mark.parametrize("form", MADE)
def test_a_remote_image_is_asked_for_once_at_a_start(
    form: str, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(form, tmp_path)
    for key, content in files_below(root).items():
        memory.pipe(f"/bucket/set/{key}", content)
    asked, info = Counter[str](), storage._info
    monkeypatch.setattr(storage, "_info", lambda path: (asked.update([str(path)]), info(path))[1])
    open_splits("memory://bucket/set", Data())
    images = {path: count for path, count in asked.items() if path.endswith(".jpg")}
    assert {count for path, count in images.items() if not path.endswith("/c.jpg")} == {1}  # c.jpg is damaged
    if form == "csv":  # its images may be in several folders, which are looked for once per table
        assert max(count for path, count in asked.items() if "/JPEGImages" in path) <= 2


@pytest.mark.parametrize("form", FOLDERS)
def test_labels_may_name_addresses_below_their_set(form: str, tmp_path: Path, s3: Any) -> None:
    root = make(form, tmp_path)
    folder = FOLDERS[form]
    named(form, root, f"s3://bucket/set/{folder}/a b.jpg")
    upload(s3, root, "set/")
    found = open_dataset("s3://bucket/set", "train", Data(on_fault="skip"))
    assert f"s3://bucket/set/{folder}/a b.jpg" in [str(record.path) for record in found.records]


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_local_sets_name_no_addresses(form: str, tmp_path: Path) -> None:
    root = make(form, tmp_path)
    named(form, root, f"s3://bucket/x.jpg?X-Amz-Signature={SECRET}")
    with pytest.raises(DataError, match="is an address that does not lie below the folder") as error:
        open_dataset(root, "train", Data())
    assert SECRET not in str(error.value)


def test_sets_at_signed_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't have parameters") as error:
        open_dataset(f"https://host/data.json?X-Amz-Signature={SECRET}", "all", Data())
    assert SECRET not in str(error.value)


def test_a_missing_set_is_named(s3: Any) -> None:
    for address in ("s3://no-bucket/set", "s3://bucket/set"):
        with pytest.raises(DataError, match=f"^{address}: there is no such file or folder$"):
            open_dataset(address, "train", Data())
