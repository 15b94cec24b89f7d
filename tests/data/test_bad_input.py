"""Every kind of bad input is reported with its reason, place and kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.find import open_dataset
from rcnn.errors import DataError
from tests.data import sets

GOOD = [("dog", (5, 5, 20, 20))]
IDS = {"dog": 18, "cat": 17}
SKIP = Data(on_fault="skip")


def read(path: Path, names: tuple[str, ...] | None = None) -> Dataset:
    return open_dataset(path, "all", SKIP, names)


def only(faults: tuple[Fault, ...]) -> Fault:
    (fault,) = faults
    return fault


def with_fault(
    root: Path, where: str, *reasons: str, kind: str = "fatal", names: tuple[str, ...] | None = None
) -> Dataset:
    """Return a data set after checking that its only fault has this place, kind and reasons."""
    data = read(root, names)
    fault = only(data.faults)
    assert (fault.where, fault.kind) == (f"{root}/{where}", kind)
    assert all(reason in fault.reason for reason in reasons), fault.reason
    return data


def voc_box(tmp_path: Path, *corners: float | str) -> tuple[Dataset, str]:
    """Return a set of a sound image `b` and an image `a` with a sound box and this one, and the place of this one."""
    root = sets.voc(tmp_path / "d", {"a": [*GOOD, ("dog", corners)], "b": GOOD})
    return read(root), f"{root}/Annotations/a.xml:9"


def coco_box(tmp_path: Path, *box: float) -> tuple[Dataset, str]:
    """Return the same for COCO's x, y, width, height."""
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": [*GOOD, ("dog", box)], "b.jpg": GOOD}}, IDS)
    return read(root), f"{root}/annotations/train.json: annotations[1] (id 2)"


def yolo_row(tmp_path: Path, row: str) -> tuple[Dataset, str]:
    """Return the same for a row of YOLO."""
    root = sets.yolo(tmp_path / "d", {"train": {"a": f"0 0.5 0.5 0.1 0.1\n\n{row}\n", "b": "1 0.5 0.5 0.1 0.1\n"}})
    return read(root), f"{root}/labels/train/a.txt:3"


Case = Callable[..., tuple[Dataset, str]]
CASES = [
    # zero area
    (voc_box, (9, 9, 9, 9), "mendable", "no size"),
    (voc_box, (9, 9, 30, 9), "mendable", "no size"),
    (coco_box, (9, 9, 0, 5), "mendable", "no size"),
    (yolo_row, ("0 0.5 0.5 0 0.1",), "mendable", "no size"),
    # inverted
    (voc_box, (30, 9, 20, 19), "fatal", "inverted"),
    (voc_box, (10, 9, 9, 19), "fatal", "inverted"),
    (voc_box, (30, 20, 25, 15), "fatal", "inverted; it looks like xywh"),
    (coco_box, (9, 9, -3, 5), "fatal", "inverted"),
    (yolo_row, ("0 0.5 0.5 -0.2 0.1",), "fatal", "inverted"),
    # partly outside
    (voc_box, (50, 9, 63, 19), "mendable", "sticks out of the 60x40 image by 3 pixels; clipped"),
    (voc_box, (-2, 9, 30, 19), "mendable", "by 3 pixels; clipped"),
    (coco_box, (50, 9, 15, 5), "mendable", "by 5 pixels; clipped"),
    (yolo_row, ("0 0.95 0.5 0.2 0.1",), "mendable", "by 3 pixels; clipped"),
    (coco_box, (50, 9, 20, 5), "mendable", "by 10 pixels; clipped"),
    (coco_box, (59, 9, 2.9, 5), "mendable", "by 1.9 pixels; clipped"),
    # mostly outside
    (voc_box, (51, 9, 71, 19), "fatal", "most of its area outside the 60x40 image, by up to 11 pixels; are the boxes"),
    (coco_box, (-13, 9, 25, 5), "fatal", "by up to 13 pixels; are the boxes from another size of this image?"),
    (coco_box, (48, 28, 20, 20), "fatal", "most of its area outside"),
    (coco_box, (-40, -40, 150, 150), "fatal", "most of its area outside"),
    (yolo_row, ("0 1.05 0.5 0.2 0.1",), "fatal", "label the part that is in the image"),
    # fully outside
    (voc_box, (100, 9, 120, 19), "mendable", "outside the 60x40 image; dropped"),
    (coco_box, (-30, 9, 10, 5), "mendable", "outside the 60x40 image; dropped"),
    (yolo_row, ("0 1.5 0.5 0.1 0.1",), "mendable", "outside the 60x40 image; dropped"),
    # duplicates
    (voc_box, (5, 5, 20, 20), "mendable", "occurs twice"),
    (coco_box, (5, 5, 20, 20), "mendable", "occurs twice"),
    (yolo_row, ("0 0.5 0.5 0.1 0.1",), "mendable", "occurs twice"),
    # the wrong unit
    (voc_box, (0.1, 0.2, 0.7, 0.9), "fatal", "normalised coordinates?"),
    (coco_box, (0.1, 0.2, 0.6, 0.7), "fatal", "normalised coordinates?"),
    (yolo_row, ("0 30 20 10 10",), "fatal", "in pixels?"),
    # not finite
    (voc_box, ("nan", 9, 20, 19), "fatal", "not finite"),
    (voc_box, (3, 9, "inf", 19), "fatal", "not finite"),
    (coco_box, (float("nan"), 9, 20, 19), "fatal", "not finite"),
    (coco_box, (3, 9, float("inf"), 19), "fatal", "not finite"),
    (coco_box, (3, 9, 10**400, 19), "fatal", "not finite"),
    (yolo_row, ("0 nan 0.5 0.2 0.1",), "fatal", "not finite"),
    (yolo_row, ("0 0.5 0.5 inf 0.1",), "fatal", "not finite"),
    # classes
    (yolo_row, ("-1 0.5 0.5 0.2 0.1",), "fatal", "class -1 is not among the classes 0 cat, 1 dog"),
    (yolo_row, ("2 0.5 0.5 0.2 0.1",), "fatal", "class 2 is not among the classes 0 cat, 1 dog"),
    (yolo_row, ("cat 0.5 0.5 0.2 0.1",), "fatal", "class cat is not among the classes 0 cat, 1 dog"),
    # more or fewer numbers than a box has
    (yolo_row, ("0 0.5 0.5 0.2",), "fatal", "expected 5 columns, class x y width height; found 4"),
    (yolo_row, ("0 0.5 0.5 0.2 0.1 0.9",), "fatal", "expected 5 columns"),
    (yolo_row, ("0 .1 .1 .2 .1 .2 .2",), "fatal", "polygons are not read"),
    (yolo_row, ("0 0.5 0.5 0.2 wide",), "fatal", "must be numbers"),
    (voc_box, ("", 9, 20, 19), "fatal", "must hold the numbers"),
    (coco_box, (1, 2, 3), "fatal", "bbox must be four numbers"),
]


def assert_inside(data: Dataset) -> None:
    assert (data.records[0].boxes >= 0).all()
    assert (data.records[0].boxes <= (60, 40, 60, 40)).all()


@pytest.mark.parametrize(("case", "numbers", "kind", "reason"), CASES)
def test_a_faulty_box_is_reported_with_file_and_line(
    tmp_path: Path, case: Case, numbers: tuple, kind: str, reason: str
) -> None:
    data, where = case(tmp_path, *numbers)
    fault = only(data.faults)
    assert (fault.where, fault.kind) == (where, kind)
    assert reason in fault.reason
    assert str(fault) == f"{where}: {fault.reason}"
    assert fault.image is not None
    assert Path(fault.image).name == "a.jpg"
    assert len(data) == (2 if kind == "mendable" else 1)
    if kind == "mendable":
        assert len(data.records[0].boxes) == (2 if "clipped" in reason else 1)
        assert_inside(data)


def test_a_fault_that_stops_is_named_with_file_and_line(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (30, 9, 20, 19))]})
    with pytest.raises(DataError, match=r"a\.xml:5: box \(30, 9, 20, 19\) is inverted"):
        open_dataset(root, "all", Data())


@pytest.mark.parametrize("corners", [(1, 1, 60.9, 40.5), (0.5, 0.5, 20, 20)])
def test_less_than_a_pixel_over_the_edge_is_clipped_quietly(tmp_path: Path, corners: tuple) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", corners)]})
    data = open_dataset(root, "all", Data(voc_origin=1))
    assert data.faults == ()
    assert_inside(data)


def test_an_ignored_box_may_have_most_of_its_area_outside(tmp_path: Path) -> None:
    """Nothing is trained on it."""
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": [("dog", (-13, 9, 25, 5)), *GOOD]}}, IDS)
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    data = with_fault(root, "annotations/train.json: annotations[0] (id 1)", "by 13 pixels; clipped", kind="mendable")
    assert data.records[0].boxes[0].tolist() == [0, 9, 12, 14]


def test_class_0_is_a_class(tmp_path: Path) -> None:
    data = read(sets.yolo(tmp_path / "d", {"train": {"a": "0 0.5 0.5 0.1 0.1\n"}}))
    assert data.records[0].labels.tolist() == [0]
    assert data.faults == ()


def test_an_unknown_class_is_reported_with_a_similar_name(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": [("dgo", (5, 5, 20, 20))]})
    reason = "`dgo` is not among the classes dog, cat; did you mean `dog`?"
    with_fault(root, "Annotations/b.xml:4", reason, names=("dog", "cat"))


def test_gaps_between_category_ids_are_closed(tmp_path: Path) -> None:
    data = read(sets.coco(tmp_path / "d", {"train": {"a.jpg": GOOD}}, {"dog": 90, "cat": 1}))
    assert (data.names, data.category_ids) == (("cat", "dog"), (1, 90))
    assert data.notes == ("category ids become labels 0 to 1 in this order: 1 cat, 90 dog",)
    assert data.records[0].labels.tolist() == [1]


@pytest.mark.parametrize("key", ["id", "file_name"])
def test_two_images_with_the_same_id_or_name_are_both_left_out(tmp_path: Path, key: str) -> None:
    images = {"a.jpg": GOOD, "b.jpg": GOOD, "c.jpg": GOOD}
    root = sets.coco(tmp_path / "d", {"train": images}, IDS)
    tree = sets.coco_tree(images, IDS)
    tree["images"][1][key] = tree["images"][0][key]
    if key == "id":
        tree["annotations"][1]["image_id"] = 1
    file = sets.write_json(root / "annotations/train.json", tree)
    data = read(root)
    fault = only(tuple(fault for fault in data.faults if fault.kind == "fatal"))
    assert fault.where == f"{file}: images[1] (id {tree['images'][1]['id']})"
    reason = {"id": "the id 1: `images/a.jpg` and `images/b.jpg`", "file_name": "the name `images/a.jpg`: ids 1 and 2"}
    assert f"two images with {reason[key]}" in fault.reason
    assert [record.name for record in data.records] == ["images/c.jpg"]


def test_two_images_with_the_same_stem_are_a_fault(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "voc", {"a": GOOD, "b": GOOD})
    sets.image(root / "JPEGImages/a.png")
    with_fault(root, "Annotations/a.xml", "two images with this name")
    root = sets.yolo(tmp_path / "yolo", {"train": {"a": "0 .5 .5 .1 .1", "b": "0 .5 .5 .1 .1"}})
    sets.image(root / "images/train/a.png")
    data = read(root)
    assert {fault.kind for fault in data.faults} == {"fatal"}
    assert [record.id for record in data.records] == ["b"]


def test_an_image_that_is_listed_twice_is_a_fault(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD}, {"train": ["a", "b", "a"]})
    with_fault(root, "ImageSets/Main/train.txt:3", "listed twice")


def test_missing_images_are_reported_together_with_similar_names(tmp_path: Path) -> None:
    images = {"scan_1": GOOD, "scan_2": GOOD, "other": GOOD}
    root = sets.voc(tmp_path / "voc", images, {"train": list(images)})
    (root / "JPEGImages/scan_1.jpg").rename(root / "JPEGImages/scan-1.jpg")
    (root / "JPEGImages/scan_2.jpg").unlink()
    faults = read(root).faults
    assert [fault.where for fault in faults] == [f"{root}/ImageSets/Main/train.txt:{line}" for line in (1, 2)]
    assert {fault.kind for fault in faults} == {"fatal"}
    assert "no image `scan_1`" in faults[0].reason
    assert "scan-1.jpg" in faults[0].reason


def test_a_missing_image_of_a_json_is_reported_with_the_folders_searched(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"scan_1.jpg": GOOD, "b.jpg": GOOD}}, IDS)
    (root / "images/scan_1.jpg").rename(root / "images/scan_l.jpg")
    reasons = "`scan_1.jpg` is missing; looked in", str(root / "images"), "similar names there: scan_l.jpg"
    with_fault(root, "annotations/train.json: images[0] (id 1)", *reasons)


def test_a_missing_image_of_labels_or_of_a_list_is_a_fault(tmp_path: Path) -> None:
    rows = "0 0.5 0.5 0.1 0.1\n"
    root = sets.yolo(tmp_path / "d", {"train": {"scan_1": rows, "b": rows}})
    (root / "images/train/scan_1.jpg").unlink()
    with_fault(root, "labels/train/scan_1.txt:1")
    (root / "list.txt").write_text("images/train/b.jpg\nimages/train/gone.jpg\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    faults = {fault.where: fault.reason for fault in read(root).faults}
    assert "`images/train/gone.jpg` is missing" in faults[f"{root}/list.txt:2"]


def test_a_missing_annotation_is_a_fault(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"scan_1": GOOD, "b": GOOD}, {"train": ["scan_1", "b"]})
    (root / "Annotations/scan_1.xml").rename(root / "Annotations/scan_l.xml")
    reason = "there is no Annotations/scan_1.xml; similar names there: scan_l.xml"
    with_fault(root, "ImageSets/Main/train.txt:1", reason)


def test_names_that_differ_in_case_are_found_and_reported(tmp_path: Path) -> None:
    rows = "0 0.5 0.5 0.1 0.1\n"
    voc = sets.voc(tmp_path / "voc", {"a": GOOD}, {"train": ["A"]})
    coco = sets.coco(tmp_path / "coco", {"train": {"a.jpg": GOOD}}, IDS)
    (coco / "images/a.jpg").rename(coco / "images/A.JPG")
    yolo = sets.yolo(tmp_path / "yolo", {"train": {"a": rows}})
    (yolo / "labels/train/a.txt").rename(yolo / "labels/train/A.txt")
    for root in (voc, coco, yolo):
        data = read(root)
        assert len(data.records[0].boxes) == 1
        assert only(data.faults).kind == "mendable"
        assert "differ in case" in data.faults[0].reason


@pytest.mark.parametrize(("content", "reason"), [(b"", "the file is empty"), (b"text", "not an image")])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    (root / "JPEGImages/a.jpg").write_bytes(content)
    data = with_fault(root, "JPEGImages/a.jpg", reason, kind="damaged")
    assert [record.id for record in data.records] == ["b"]
    with pytest.raises(DataError, match=r"JPEGImages/a\.jpg"):
        open_dataset(root, "all", Data(on_fault="stop"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "npy"])
def test_a_file_that_is_cut_off_is_named_with_the_other_faults_of_its_image(tmp_path: Path, suffix: str) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (9, 9, 5, 5))], "b": GOOD})
    (root / "JPEGImages/a.jpg").unlink()
    file = root / f"JPEGImages/a.{suffix}"
    if suffix == "npy":
        np.save(file, np.zeros((40, 60, 3), np.uint8))
    else:
        sets.image(file)
    file.write_bytes(file.read_bytes()[:-200])
    data = read(root)
    if suffix in ("jpg", "png"):  # the others tell no size
        assert data.faults[1].where == f"{root}/Annotations/a.xml:5"
    assert (data.faults[0].where, data.faults[0].kind) == (str(file), "damaged")
    assert [record.id for record in data.records] == ["b"]
    with pytest.raises(DataError, match=rf"JPEGImages/a\.{suffix}"):
        open_dataset(root, "all", Data(on_fault="stop"))


def test_bytes_after_the_end_of_an_image_are_no_fault(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD})
    with (root / "JPEGImages/a.jpg").open("ab") as file:
        file.write(bytes(5000))
    assert read(root).faults == ()


def test_an_image_over_the_limit_is_named(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    sets.image(root / "JPEGImages/a.jpg", (200, 200))
    faults = open_dataset(root, "all", Data(on_fault="skip", max_pixels=10_000)).faults
    assert only(faults).where == f"{root}/JPEGImages/a.jpg"
    assert "200x200 is more than 10000 pixels" in faults[0].reason


@pytest.mark.parametrize(
    ("declared", "kind", "reason"),
    [((40, 60), "mendable", "after EXIF rotation"), ((120, 80), "fatal", "says 120x80 pixels, the image has 60x40")],
)
def test_a_declared_size_must_be_the_real_one(
    tmp_path: Path, declared: tuple[int, int], kind: str, reason: str
) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    (root / "Annotations/a.xml").write_text(sets.xml(GOOD, size=declared))
    data = with_fault(root, "Annotations/a.xml:2", reason, kind=kind)
    assert len(data) == (2 if kind == "mendable" else 1)


@pytest.mark.parametrize("size", [(0, 0), None])
def test_no_declared_size_declares_nothing(tmp_path: Path, size: tuple[int, int] | None) -> None:
    assert read(sets.voc(tmp_path / "d", {"a": GOOD}, size=size)).faults == ()


@pytest.mark.parametrize("size", [(1, 1), (15, 100), (1, 10_000)])
def test_tiny_images_are_reported_and_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    root = sets.voc(tmp_path / "d", {"a": [], "b": GOOD})
    sets.image(root / "JPEGImages/a.jpg", size)
    (root / "Annotations/a.xml").write_text(sets.xml([], size=size))
    data = with_fault(root, "JPEGImages/a.jpg", f"only {size[0]}x{size[1]} pixels", kind="mendable")
    assert data.records[0].size == size[::-1]


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "RGBA", "LA", "I;16"])
def test_images_of_every_mode_are_no_fault(tmp_path: Path, mode: str) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD})
    (root / "JPEGImages/a.jpg").unlink()
    Image.new(mode, (60, 40)).save(root / f"JPEGImages/a.{'tif' if mode == 'CMYK' else 'png'}")
    assert read(root).faults == ()


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("<annotation>\n<object>\n</annotation>", 3, "malformed xml: mismatched tag"),
        ("", 1, "malformed xml: no element found"),
        (
            '<!DOCTYPE a [<!ENTITY b "dog">]>\n<annotation><object/></annotation>',
            1,
            "malformed xml: it declares entities",
        ),
        ("<annotation><object><name>dog</name>\n</object></annotation>", 1, "no <bndbox>"),
        ("<annotation>\n<object><name> </name><bndbox><xmin>2</xmin></bndbox></object></annotation>", 2, "no name"),
        ("<annotation>\n<size><width>wide</width></size></annotation>", 2, "must be numbers"),
    ],
)
def test_malformed_xml_is_reported_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD, "b": GOOD})
    (root / "Annotations/a.xml").write_text(text)
    data = read(root)
    assert {fault.where for fault in data.faults} == {f"{root}/Annotations/a.xml:{line}"}
    assert any(reason in fault.reason for fault in data.faults)
    assert [record.id for record in data.records] == ["b"]


def test_an_image_without_xml_is_left_out_and_reported(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": GOOD})
    sets.image(root / "JPEGImages/b.jpg")
    assert len(with_fault(root, "JPEGImages/b.jpg", kind="mendable")) == 1


def test_there_is_no_limit_to_the_number_of_boxes(tmp_path: Path) -> None:
    objects = [("dog", (column + 1, row + 1, column + 3, row + 3)) for row in range(30) for column in range(40)]
    assert len(read(sets.voc(tmp_path / "d", {"a": objects})).records[0].boxes) == 1200


def test_background_images_stay(tmp_path: Path) -> None:
    data = read(sets.coco(tmp_path / "d", {"train": {"a.jpg": [], "b.jpg": GOOD}}, IDS))
    assert (len(data), data.faults) == (2, ())
    assert data.records[0].boxes.shape == (0, 4)
