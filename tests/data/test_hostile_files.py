"""Annotations that would hang a reader or fill the memory, names that can't be written, things that are no files."""

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
from rcnn.data import pixels
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


def checked(path: Path, *wanted: str, most: int = 200) -> Callable[[], None]:
    """Checks a data set, in whose few faults these texts are wanted."""

    def do() -> None:
        try:
            said = reasons(check(path, Data()))
        except DataError as error:
            said = str(error)
        for text in wanted:
            assert text in said, said[:2000]
        assert said.count("\n") < most

    return do


def sparse(path: Path, head: str = "", size: int = 5 * 10**9) -> Path:
    path.write_text(head)
    os.truncate(path, size)
    return path


def unnamed(tmp_path: Path, rows: str) -> Path:
    """A YOLO set that names no classes."""
    sets.yolo(tmp_path, {"train": {"a": rows, "b": ROW}})
    (tmp_path / "data.yaml").unlink()
    return tmp_path


@pytest.mark.parametrize("number", ["999999999", "1e300", "10000"])
def test_a_huge_class_without_a_name_is_a_fault(tmp_path: Path, number: str) -> None:
    root = unnamed(tmp_path / "d", f"{number} .5 .5 .3 .3\n")
    said = f"a.txt:1: class {number} is not among the classes 0 0; of classes without names, at most 10,000 are read"
    in_child(checked(root, said), data=500 * MB)


def test_of_300000_faults_of_an_image_the_first_1000_are_told(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": ROW * 300_000}})
    said = "a.txt:2: box (0.5, 0.5, 0.1, 0.1) is there twice"
    many = "a.txt:1001: and 298,999 more faults of this image that are mendable"
    in_child(checked(root, said, many, most=1100), data=1000 * MB)


def test_unknown_classes_in_300000_rows_do_not_list_the_classes_each_time(tmp_path: Path) -> None:
    names = ", ".join(f"class-{number}" for number in range(5000))
    root = sets.yolo(tmp_path / "d", {"train": {"a": "6000 .5 .5 .1 .1\n" * 300_000}}, f"[{names}]")
    said = "class 6000 is not among the classes 0 to 4999"
    in_child(checked(root, said, "and 299,000 more faults of this image that are fatal", most=1100), data=1000 * MB)


def test_a_label_file_of_4000000_rows_is_refused_by_their_number(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {"a": "1\n" * 4_000_000, "b": ROW}})
    said = "a.txt:300001: the labels go on here; of an image, 300,000 lines are read [fatal]"
    in_child(checked(root, said), seconds=5, data=500 * MB, resident=200 * MB)


def test_images_are_not_called_faulty_when_there_are_no_file_handles_left(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "d", {"train": {str(number): ROW for number in range(50)}})

    Image.init()  # a format that can't be imported now would not be recognised

    def do() -> None:
        decode = pixels.verify_image
        held: list[object] = []

        def without_handles(*arguments: Any, **options: Any) -> object:
            with contextlib.suppress(OSError):
                while True:
                    held.append(open(os.devnull))  # noqa: SIM115
            return decode(*arguments, **options)

        pixels.verify_image = without_handles
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
    in_child(checked(root, "train.json: and 19,000 more faults", most=1100), seconds=10)


def test_two_megabytes_of_newlines_in_an_xml_are_read(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<object>", "\n" * 2_000_000 + "<object>"))
    assert len(open_dataset(root, "all", Data()).records[0].boxes) == 1


def test_an_xml_of_nested_elements_is_refused(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    (root / "Annotations/a.xml").write_text("<a>" * 1_000_000)
    in_child(checked(root, "a.xml:1: malformed xml: its elements are nested more than 100 deep"), resident=50 * MB)


def test_sparse_files_are_refused_by_their_size(tmp_path: Path) -> None:
    voc = sets.voc(tmp_path / "voc", {"a": GOOD, "b": GOOD})
    sparse(voc / "Annotations/a.xml", "<annotation>")
    in_child(checked(voc, "a.xml:1: 5,000 MB are too many: such a file has at most 16 MB"), resident=50 * MB)
    coco = sets.coco(tmp_path / "coco", {"train": {"a.jpg": GOOD}}, IDS)
    sparse(coco / "annotations/train.json", '{"images": [')
    in_child(checked(coco, "train.json: 5,000 MB are too many: such a file has at most 1,500 MB"), resident=50 * MB)
    yolo = sets.yolo(tmp_path / "yolo", {"train": {"a": ROW, "b": ROW}})
    sparse(yolo / "labels/train/a.txt", ROW)
    in_child(checked(yolo, "a.txt: 5,000 MB are too many: such a file has at most 8 MB"), resident=50 * MB)
    sparse(yolo / "list.txt", "images/train/b.jpg\n")
    (yolo / "data.yaml").write_text("train: list.txt\nnames: [a, b]\n")
    in_child(checked(yolo, "5,000 MB are too many: such a file has at most 256 MB"), resident=50 * MB)
    sparse(yolo / "data.yaml", "train: list.txt\n")
    in_child(checked(yolo, "data.yaml:1: 5,000 MB are too many: such a file has at most 4 MB"), resident=50 * MB)


def test_pipes_are_no_regular_files(tmp_path: Path) -> None:
    wanted = "this is not a regular file, but a pipe, socket or device"
    voc = sets.voc(tmp_path / "voc", {"a": GOOD, "b": GOOD})
    sets.image(voc / "JPEGImages/z.jpg")
    os.mkfifo(voc / "Annotations/z.xml")
    in_child(checked(voc, f"z.xml:1: {wanted}"), seconds=5)
    (voc / "JPEGImages/z.jpg").unlink()
    os.mkfifo(voc / "JPEGImages/z.jpg")
    (voc / "Annotations/z.xml").unlink()
    (voc / "Annotations/z.xml").write_text(sets.xml(GOOD))
    in_child(checked(voc, f"z.jpg: {wanted}"), seconds=5)
    coco = sets.coco(tmp_path / "coco", {"train": {"a.jpg": GOOD}}, IDS)
    os.mkfifo(coco / "annotations/z.json")
    in_child(checked(coco, wanted), seconds=5)
    yolo = sets.yolo(tmp_path / "yolo", {"train": {"a": ROW, "b": ROW}})
    (yolo / "labels/train/a.txt").unlink()
    os.mkfifo(yolo / "labels/train/a.txt")
    in_child(checked(yolo, f"a.txt: {wanted}"), seconds=5)
    (yolo / "data.yaml").unlink()
    os.mkfifo(yolo / "data.yaml")
    in_child(checked(yolo, f"data.yaml:1: {wanted}"), seconds=5)


def test_what_is_no_file_is_no_data(tmp_path: Path) -> None:
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


def test_a_folder_with_the_name_of_an_annotation_is_passed_over(tmp_path: Path) -> None:
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
    assert report.fatal == 2
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
    assert report.fatal == 1
    assert reason in reasons(report)


def test_a_path_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    sets.voc(folder, {"a": GOOD})
    with pytest.raises(DataError, match="this path is not UTF-8; rename it"):
        find_layout(folder)


@pytest.mark.parametrize("name", ["../other/x.jpg", "{root}/other/x.jpg"])
@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_images_outside_are_counted_and_can_be_refused(tmp_path: Path, form: str, name: str) -> None:
    sets.image(tmp_path / "other/x.jpg")
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
    assert note == f"1 images lie outside {tmp_path / 'd'}, such as {tmp_path / 'other/x.jpg'}; " + (
        "data.outside=refuse makes that a fault"
    )
    (tmp_path / "other/x.jpg").write_bytes(b"not to be opened")
    report = check(tmp_path / "d", Data(outside="refuse"))
    assert reasons(report) == (
        f"{tmp_path / 'other/x.jpg'}: the image lies outside the data set, which data.outside=refuse forbids [fatal]"
    )


def test_a_whole_disk_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.images.sources.MAX_OTHER_FILES", 1000)
    sets.yolo(tmp_path, {"train": {"a": ROW}})
    for folder in range(30):
        (tmp_path / f"images/{folder}").mkdir()
        for number in range(50):
            (tmp_path / f"images/{folder}/{number}").touch()
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"there are . images among the first 1,\d+ files and folders; give"):
        open_dataset(tmp_path, "all", Data())


REPEATED = {
    "bndbox": (
        "</object>",
        "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>",
        "fatal",
    ),
    "name": ("</object>", "<name>dog</name></object>", "mendable"),
    "xmin": ("</bndbox>", "<xmin>6</xmin></bndbox>", "fatal"),
    "size": ("<object>", "<size><width>60</width><height>40</height></size><object>", "mendable"),
    "width": ("</size>", "<width>61</width></size>", "fatal"),
    "part": ("</object>", "<part><name>head</name></part><part><name>foot</name></part></object>", None),
}


@pytest.mark.parametrize(("tag", "case"), REPEATED.items(), ids=REPEATED)
def test_a_tag_that_is_there_twice_is_a_fault(tmp_path: Path, tag: str, case: tuple[str, str, str | None]) -> None:
    old, new, kind = case
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new))
    report = check(root, Data())
    assert [fault.kind for fault in report.faults] == ([kind] if kind else [])
    assert not kind or f"a.xml:{report.faults[0].where.rpartition(':')[2]}: <{tag}> is there twice, first on line " in (
        reasons(report)
    )


def test_a_key_of_a_json_that_is_there_twice_is_a_fault(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": GOOD, "b.jpg": GOOD}}, IDS)
    file = root / "annotations/train.json"
    text = file.read_text()
    file.write_text(text.replace('"image_id": 1,', '"image_id": 1, "image_id": 1,'))
    assert "the key `image_id` of the object with id 1 is there twice, as 1 and as 1 [mendable]" in (
        reasons(check(root, Data()))
    )
    file.write_text(text.replace('"category_id": 18,', '"category_id": 17, "category_id": 18,', 1))
    assert (
        "the key `category_id` of the object with id 1 is there twice, as 17 and as 18; keep one of the two [fatal]"
        in (reasons(check(root, Data())))
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"iscrowd": 0', '"iscrowd": "0"', "iscrowd and ignore must be 0 or 1; found '0' and None"),
        ('"image_id": 1,', '"image_id": true,', "image_id True is no image of this file"),
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
