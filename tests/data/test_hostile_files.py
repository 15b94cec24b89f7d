"""Annotations that could hang a reader or fill the memory, names that can't be written, and paths that aren't files."""

import contextlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data import image_checks
from rcnn.data.check import DataReport, check
from rcnn.data.formats.find import find_layout, open_dataset
from rcnn.errors import DataError
from tests.data import sets
from tests.limits import MB, in_child

GOOD = [("dog", (5, 5, 20, 20))]
IDS = {"dog": 18, "cat": 17}
ROW = "0 0.5 0.5 0.1 0.1\n"


def reasons(report: DataReport) -> str:
    return "\n".join(f"{fault} [{fault.kind}]" for fault in report.faults)


def checked(path: Path, *texts: str, max_lines: int = 200) -> Callable[[], None]:
    """Return a check of a data set whose faults, at most `max_lines`, must contain these texts."""

    def do() -> None:
        try:
            message = reasons(check(path, Data()))
        except DataError as error:
            message = str(error)
        for text in texts:
            assert text in message, message[:2000]
        assert message.count("\n") < max_lines

    return do


def sparse(path: Path, head: str = "", size: int = 5 * 10**9) -> Path:
    path.write_text(head)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("number", ["999999999", "1e300", "10000"])
def test_a_huge_class_without_a_name_is_a_fault(tmp_path: Path, number: str) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": f"{number} .5 .5 .3 .3\n", "b": ROW}})
    (root / "data.yaml").unlink()
    message = f"a.txt:1: class {number} is not among the classes 0 0; at most 10,000 classes without names are read"
    in_child(checked(root, message), data=500 * MB)


def test_only_the_first_1000_faults_of_an_image_are_listed(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": ROW * 300_000}})
    message = "a.txt:2: box (0.5, 0.5, 0.1, 0.1) occurs twice"
    many = "a.txt:1001: and 298,999 more faults of this image that are mendable"
    in_child(checked(root, message, many, max_lines=1100), data=1000 * MB)


def test_unknown_classes_in_300000_rows_do_not_list_the_classes_each_time(tmp_path: Path) -> None:
    names = ", ".join(f"class-{number}" for number in range(5000))
    root = sets.yolo(tmp_path / "d", {"train": {"a": "6000 .5 .5 .1 .1\n" * 300_000}}, f"[{names}]")
    message = "class 6000 is not among the classes 0 to 4999"
    in_child(
        checked(root, message, "and 299,000 more faults of this image that are fatal", max_lines=1100), data=1000 * MB
    )


def test_a_label_file_of_4000000_rows_is_refused_by_their_number(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": "1\n" * 4_000_000, "b": ROW}})
    message = "a.txt:300001: the labels continue here, but only 300,000 lines per image are read [fatal]"
    in_child(checked(root, message), seconds=5, data=500 * MB, resident=200 * MB)


def test_images_are_not_called_faulty_when_there_are_no_file_handles_left(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {str(number): ROW for number in range(50)}})
    Image.init()  # a format that can't be imported now would not be recognised

    def do() -> None:
        decode = image_checks.verify_image
        held: list[object] = []

        def without_handles(*arguments: Any, **options: Any) -> object:
            with contextlib.suppress(OSError):
                while True:
                    held.append(open(os.devnull))  # noqa: SIM115
            return decode(*arguments, **options)

        image_checks.verify_image = without_handles
        resource.setrlimit(resource.RLIMIT_NOFILE, (64 + len(os.listdir("/dev/fd")),) * 2)
        with pytest.raises(OSError, match=r"Too many open files; `ulimit -n` sets the limit.*\.jpg"):
            check(root, Data())
        held.clear()

    in_child(do)


def test_thousands_of_categories_and_faulty_annotations_are_read_in_seconds(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": GOOD}}, IDS)
    tree = sets.coco_tree({"a.jpg": GOOD}, IDS)
    tree["categories"] += [{"id": number, "name": f"class {number}"} for number in range(100, 50_000)]
    tree["annotations"] = [{**tree["annotations"][0], "image_id": 9} for _ in range(20_000)]
    sets.write_json(root / "annotations/train.json", tree)
    in_child(checked(root, "train.json: and 19,000 more faults", max_lines=1100), seconds=10)


def test_two_megabytes_of_newlines_in_an_xml_are_read(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<object>", "\n" * 2_000_000 + "<object>"))
    assert len(open_dataset(root, "all", Data()).records[0].boxes) == 1


def test_an_xml_of_nested_elements_is_refused(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    (root / "Annotations/a.xml").write_text("<a>" * 1_000_000)
    in_child(checked(root, "a.xml:1: malformed xml: its elements are nested more than 100 deep"), resident=50 * MB)


def three_sets(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Write sound data sets in VOC, COCO and YOLO format."""
    voc = sets.voc(tmp_path / "voc", {"a": GOOD, "b": GOOD})
    coco = sets.coco(tmp_path / "coco", {"train": {"a.jpg": GOOD}}, IDS)
    return voc, coco, sets.yolo(tmp_path / "yolo", {"train": {"a": ROW, "b": ROW}})


def test_sparse_files_are_refused_by_their_size(tmp_path: Path) -> None:
    voc, coco, yolo = three_sets(tmp_path)
    for root, file, head, name, limit in (
        (voc, "Annotations/a.xml", "<annotation>", "a.xml:1: ", "16"),
        (coco, "annotations/train.json", '{"images": [', "train.json: ", "1,500"),
        (yolo, "labels/train/a.txt", ROW, "a.txt: ", "8"),
        (yolo, "list.txt", "images/train/b.jpg\n", "", "256"),
        (yolo, "data.yaml", "train: list.txt\n", "data.yaml:1: ", "4"),
    ):
        sparse(root / file, head)
        if file == "list.txt":
            (yolo / "data.yaml").write_text("train: list.txt\nnames: [a, b]\n")
        reason = f"{name}5,000 MB are too many: such a file has at most {limit} MB"
        in_child(checked(root, reason), resident=50 * MB)


def tool_sets(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Write sound data sets of labelme, VIA and CVAT."""
    shape = sets.shape("dog", [[5, 5], [20, 20]])
    sets.labelme(tmp_path / "labelme", {"a": [shape], "b": [shape]})
    region = sets.via_region("dog", x=5, y=5, width=15, height=15)
    sets.write_json(tmp_path / "via/via.json", sets.via_tree({"a.jpg": [region]}))
    sets.cvat(tmp_path / "cvat/annotations.xml", sets.cvat_image("a.jpg", sets.cvat_box("dog", [5, 5, 20, 20])))
    for name in ("via", "cvat"):
        sets.image(tmp_path / name / "a.jpg")
    return tmp_path / "labelme", tmp_path / "via", tmp_path / "cvat"


def test_sparse_files_of_annotation_tools_are_refused_by_their_size(tmp_path: Path) -> None:
    labelme, via, cvat = tool_sets(tmp_path)
    for root, name, place, limit in (
        (labelme, "a.json", "a.json: ", "256"),
        (via, "via.json", "via.json: ", "500"),
        (cvat, "annotations.xml", "annotations.xml:1: ", "1,000"),
    ):
        sparse(root / name, (root / name).read_text())
        reason = f"{place}5,000 MB are too many: such a file has at most {limit} MB"
        in_child(checked(root, reason), resident=50 * MB)


def test_pipes_of_annotation_tools_are_no_regular_files(tmp_path: Path) -> None:
    labelme, via, cvat = tool_sets(tmp_path)
    for root, name in ((labelme, "a.json"), (via, "via.json"), (via, "via.csv"), (cvat, "annotations.xml")):
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
        in_child(checked(root, "this is not a regular file, but a pipe, socket or device"), seconds=5)
        (root / name).unlink()


def test_many_faults_and_names_in_files_of_annotation_tools_are_listed_in_seconds(tmp_path: Path) -> None:
    labelme, via, cvat = tool_sets(tmp_path)
    shapes = [sets.shape(f"dog {number}", [[number, 5]], "polygon") for number in range(50_000)]
    sets.write_json(labelme / "a.json", sets.labelme_tree("a.jpg", shapes))
    in_child(checked(labelme, "and 49,000 more faults of this image", max_lines=1100), seconds=20)
    regions = [sets.via_region({f"class {number}": "dog"}, x=5, y=5, width=15, height=15) for number in range(50_000)]
    sets.write_json(via / "via.json", sets.via_tree({"a.jpg": regions}))
    in_child(checked(via, "several attributes that could be the class: `class 0` (1 region), "), seconds=20)
    boxes = "".join(sets.cvat_box("", [5, 5, 20, 20]) for _ in range(50_000))
    sets.cvat(cvat / "annotations.xml", sets.cvat_image("a.jpg", boxes + sets.cvat_box("dog", [5, 5, 20, 20])))
    in_child(checked(cvat, "and 49,000 more faults of this image", max_lines=1100), seconds=20)


def test_pipes_are_no_regular_files(tmp_path: Path) -> None:
    voc, coco, yolo = three_sets(tmp_path)
    sets.image(voc / "JPEGImages/z.jpg")
    for root, file, name in (
        (voc, "Annotations/z.xml", "z.xml:1: "),
        (voc, "JPEGImages/z.jpg", "z.jpg: "),
        (coco, "annotations/z.json", ""),
        (yolo, "labels/train/a.txt", "a.txt: "),
        (yolo, "data.yaml", "data.yaml:1: "),
    ):
        (root / file).unlink(missing_ok=True)
        os.mkfifo(root / file)
        in_child(checked(root, f"{name}this is not a regular file, but a pipe, socket or device"), seconds=5)
        if file == "Annotations/z.xml":
            (root / file).unlink()
            (root / file).write_text(sets.xml(GOOD))


def test_devices_links_in_circles_and_empty_folders_are_no_data_sets(tmp_path: Path) -> None:
    (tmp_path / "self.json").symlink_to("self.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder/x.json").mkdir(parents=True)
    for path in (Path("/dev/null"), tmp_path / "self.json", tmp_path / "pipe.json", tmp_path / "folder"):
        with pytest.raises(DataError, match=str(path)):
            find_layout(path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/x.json").symlink_to("x.json")
    with pytest.raises(DataError, match=r"linked.*can't be read: .*Too many levels"):
        find_layout(tmp_path / "linked")


def test_a_folder_with_the_name_of_an_annotation_is_skipped(tmp_path: Path) -> None:
    coco = sets.coco(tmp_path / "coco", {"train": {"a.jpg": GOOD}}, IDS)
    (coco / "annotations/x.json").mkdir()
    assert check(coco, Data()).faults == ()


def test_names_that_cannot_be_written_are_faults(tmp_path: Path) -> None:
    voc = sets.voc(tmp_path / "voc", {"a": GOOD, "b": GOOD, "c": GOOD})
    for old, new in (("a", b"caf\xe9"), ("b", b"li\nne")):
        for folder, suffix in (("JPEGImages", b".jpg"), ("Annotations", b".xml")):
            where = os.fsencode(voc / folder)
            os.rename(where + b"/" + os.fsencode(old) + suffix, where + b"/" + new + suffix)
    report = check(voc, Data())
    assert report.counts["fatal"] == 2
    assert "caf\udce9.jpg`, is not UTF-8; rename it" in reasons(report)
    assert "li\\nne.jpg`, has a line end or another control character in it; rename it" in reasons(report)
    assert len(open_dataset(voc, "all", Data(on_fault="skip"))) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("\ud800", "is not UTF-8"), ("a\nb", "has a line end"), ("a\x1b[31m", "control character"), ("a" * 256, "longer")],
)
@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_class_names_that_cannot_be_written_are_faults(tmp_path: Path, form: str, name: str, reason: str) -> None:
    if form == "coco":
        tree = sets.coco_tree({"a.jpg": GOOD}, {"dog": 1})
        tree["categories"][0]["name"] = name
        sets.image(tmp_path / "d/images/a.jpg")
        (tmp_path / "d/train.json").write_text(json.dumps(tree))
    else:
        sets.yolo(tmp_path / "d", {"train": {"a": ROW}}, f"[{json.dumps(name)}]")
    report = check(tmp_path / "d", Data())
    assert report.counts["fatal"] == 1
    assert reason in reasons(report)


def test_a_path_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    sets.voc(folder, {"a": GOOD})
    with pytest.raises(DataError, match="this path is not UTF-8; rename it"):
        find_layout(folder)


@pytest.mark.parametrize("name", ["../other/x.jpg", "{root}/other/x.jpg"])
@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_images_outside_are_counted_and_can_be_refused(tmp_path: Path, form: str, name: str) -> None:
    outside = sets.image(tmp_path / "other/x.jpg")
    name = name.format(root=tmp_path)
    if form == "coco":
        tree = sets.coco_tree({"a.jpg": GOOD, name: GOOD}, IDS)
        sets.image(tmp_path / "d/a.jpg")
        sets.write_json(tmp_path / "d/train.json", tree)
    else:
        sets.yolo(tmp_path / "d", {"train": {"a": ROW}})
        (tmp_path / "d/list.txt").write_text(f"images/train/a.jpg\n{name}\n")
        (tmp_path / "d/data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    report = check(tmp_path / "d", Data())
    assert report.faults == ()
    (note,) = (note for note in report.notes if "outside" in note)
    assert note == f"1 images lie outside {tmp_path / 'd'}, such as {outside}; data.outside=refuse makes that a fault"
    outside.write_bytes(b"not to be opened")
    report = check(tmp_path / "d", Data(outside="refuse"))
    reason = "the image lies outside the data set, which data.outside=refuse forbids [fatal]"
    assert reasons(report) == f"{outside}: {reason}"


def test_an_entire_disk_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.images.sources.MAX_OTHER_FILES", 1000)
    sets.yolo(tmp_path, {"train": {"a": ROW}})
    for folder in range(30):
        (tmp_path / f"images/{folder}").mkdir()
        for number in range(50):
            (tmp_path / f"images/{folder}/{number}").touch()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"there are . images among the first 1,\d+ files and folders; give"):
        open_dataset(tmp_path, "all", Data())


@pytest.mark.parametrize(
    ("tag", "before", "added", "kind"),
    [
        ("bndbox", "</object>", "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>", "fatal"),
        ("name", "</object>", "<name>dog</name>", "mendable"),
        ("xmin", "</bndbox>", "<xmin>6</xmin>", "fatal"),
        ("size", "<object>", "<size><width>60</width><height>40</height></size>", "mendable"),
        ("width", "</size>", "<width>61</width>", "fatal"),
        ("part", "</object>", "<part><name>head</name></part><part><name>foot</name></part>", None),
    ],
)
def test_a_repeated_tag_of_an_xml_is_a_fault(
    tmp_path: Path, tag: str, before: str, added: str, kind: str | None
) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace(before, added + before))
    faults = check(root, Data()).faults
    assert [fault.kind for fault in faults] == ([kind] if kind else [])
    assert all(fault.where.startswith(f"{file}:") for fault in faults)
    assert all(f"<{tag}> occurs twice, first on line " in fault.reason for fault in faults)


def test_a_repeated_key_of_a_json_is_a_fault(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": GOOD, "b.jpg": GOOD}}, IDS)
    file = root / "annotations/train.json"
    text = file.read_text()
    for key, value, extra, reason in (
        ("image_id", 1, 1, "as 1 and as 1 [mendable]"),
        ("category_id", 18, 17, "as 17 and as 18; keep one of the two [fatal]"),
    ):
        file.write_text(text.replace(f'"{key}": {value},', f'"{key}": {extra}, "{key}": {value},', 1))
        assert f"the key `{key}` of the object with id 1 occurs twice, {reason}" in reasons(check(root, Data()))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"iscrowd": 0', '"iscrowd": "0"', "iscrowd and ignore must be 0 or 1; found '0' and None"),
        ('"image_id": 1,', '"image_id": true,', "image_id True is not the id of an image in this file"),
        ('{"id": 1, "image_id"', '{"id": true, "image_id"', "id must be a number; found True"),
        ('{"id": 1, "file_name"', '{"id": true, "file_name"', "an image needs an id and a file_name"),
    ],
)
def test_true_is_no_number_and_text_is_no_flag(tmp_path: Path, old: str, new: str, reason: str) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": GOOD, "b.jpg": GOOD}}, IDS)
    file = root / "annotations/train.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    assert f"{reason} [fatal]" in reasons(check(root, Data()))
