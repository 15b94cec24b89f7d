import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.convert import convert
from rcnn.data.formats import labelme
from rcnn.data.formats.find import find_layout, open_dataset, open_lists, open_splits
from rcnn.data.formats.registry import FORMATS
from rcnn.errors import DataError
from tests.data import sets

DOG = sets.shape("dog", [[5, 6], [20, 30]])
BOX = [5, 6, 20, 30]
Faults = list[tuple[str, str]]


def faults(path: Path) -> Faults:
    """Return the reason and kind of every fault."""
    return [(fault.reason, fault.kind) for fault in check(path, Data()).faults]


def fatal(path: Path) -> str:
    """Return the only fault, which is fatal, as text."""
    (fault,) = check(path, Data()).faults
    assert fault.kind == "fatal"
    return str(fault)


def beside(root: Path, labels: str, images: str, stems: str = "ab") -> Path:
    """Write images and json files in two folders, as labelme does with an output folder."""
    for stem in stems:
        sets.image(root / images / f"{stem}.jpg")
        sets.write_json(root / labels / f"{stem}.json", sets.labelme_tree(f"..\\{images}\\{stem}.jpg", [DOG]))
    return root


def test_json_files_lie_next_to_the_images(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG, sets.shape(" cat ", [[1, 2], [3, 4]])], "b": []})
    data = open_dataset(tmp_path, "all", Data())
    assert (data.format, data.names, data.faults, data.notes) == ("labelme", ("cat", "dog"), (), ())
    assert [(record.name, record.id, len(record.boxes)) for record in data.records] == [
        ("a.jpg", "a", 2),
        ("b.jpg", "b", 0),
    ]
    assert data.records[0].boxes.tolist() == [BOX, [1, 2, 3, 4]]
    assert data.records[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize("images", ["images", "pictures of today"])
@pytest.mark.parametrize("given", [".", "labels"])
def test_json_files_lie_in_a_folder_beside_the_images(tmp_path: Path, images: str, given: str) -> None:
    data = open_dataset(beside(tmp_path, "labels", images) / given, "all", Data())
    assert (data.root, data.faults, data.notes) == (tmp_path, (), ())
    assert [record.name for record in data.records] == [f"{images}/a.jpg", f"{images}/b.jpg"]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize(
    ("labels", "images"),
    [("{}", "{}"), ("{}/labels", "{}/images"), ("json/{}", "images/{}"), ("images/{}", "images/{}")],
)
def test_a_folder_per_split_is_a_list(tmp_path: Path, labels: str, images: str, val: str) -> None:
    for split, stem in (("train", "a"), (val, "b"), ("test", "c")):
        sets.image(tmp_path / images.format(split) / f"{stem}.jpg")
        sets.write_json(tmp_path / labels.format(split) / f"{stem}.json", sets.labelme_tree(f"{stem}.jpg", [DOG]))
    train, held = open_splits(tmp_path, Data())
    assert [record.name for record in train.records] == [f"{images.format('train')}/a.jpg"]
    assert [record.name for record in held.records] == [f"{images.format(val)}/b.jpg"]
    assert [record.id for record in open_dataset(tmp_path, "test", Data()).records] == ["c"]
    assert train.faults == held.faults == ()


def test_folders_that_hold_images_with_their_labels_are_one_set(tmp_path: Path) -> None:
    for number in "12":
        sets.labelme(tmp_path / f"day {number}", {f"a{number}": [DOG]})
    sets.image(tmp_path / "photos/other.jpg")
    assert [record.name for record in open_dataset(tmp_path, "all", Data()).records] == ["day 1/a1.jpg", "day 2/a2.jpg"]


def test_two_folders_of_labels_beside_the_images_are_refused(tmp_path: Path) -> None:
    beside(tmp_path, "old", "images")
    beside(tmp_path, "new", "images")
    with pytest.raises(DataError, match=r"several folders here hold json files of labelme: .*new, .*old; give one"):
        open_dataset(tmp_path, "all", Data())
    assert len(open_dataset(tmp_path / "new", "all", Data())) == 2


def test_a_json_file_alone_leads_to_its_folder(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG]})
    with pytest.raises(DataError, match=rf"the labels of one image, by labelme; give the folder, {tmp_path}$"):
        open_dataset(tmp_path / "a.json", "all", Data())


@settings(deadline=None, max_examples=30)
@given(st.permutations([0, 1]), st.permutations([0, 1]), st.booleans())
def test_corners_in_any_order_give_the_same_box(
    tmp_path_factory: pytest.TempPathFactory, x: list[int], y: list[int], four: bool
) -> None:
    left, right, top, bottom = (5, 20)[x[0]], (5, 20)[x[1]], (6, 30)[y[0]], (6, 30)[y[1]]
    points = [[left, top], [right, bottom]]
    if four:
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    root = sets.labelme(tmp_path_factory.mktemp("law"), {"a": [sets.shape("dog", points)]})
    data = open_dataset(root, "all", Data())
    assert (data.records[0].boxes.tolist(), data.notes) == ([BOX], ())


@pytest.mark.parametrize(
    ("kind", "points", "box", "noun"),
    [
        ("polygon", [[5, 9], [20, 6], [11, 30]], BOX, "1 polygon"),
        (None, [[5, 9], [20, 6], [11, 30]], BOX, "1 polygon"),
        ("circle", [[20, 20], [23, 24]], [15, 15, 25, 25], "1 circle"),
        ("mask", [[5, 6], [20, 30]], BOX, "1 mask"),
        ("rectangle", [[10, 6], [20, 16], [15, 30], [5, 20]], BOX, "1 rotated box"),
        ("rotation", [[10, 6], [20, 16], [15, 30], [5, 20]], BOX, "1 rotated box"),
        ("oriented_rectangle", [[10, 6], [20, 16], [15, 30], [5, 20]], BOX, "1 rotated box"),
        ("quadrilateral", [[10, 6], [20, 16], [15, 30], [5, 20]], BOX, "1 quadrilateral"),
    ],
)
def test_other_shapes_become_enclosing_boxes(tmp_path: Path, kind: str, points: Any, box: list[int], noun: str) -> None:
    sets.labelme(tmp_path, {"a": [sets.shape("dog", points, kind)]})
    data = open_dataset(tmp_path, "all", Data())
    assert data.records[0].boxes.tolist() == [box]
    assert data.notes == (f"read as the boxes that enclose them: {noun}",)


def test_shapes_without_a_box_are_left_out_and_counted(tmp_path: Path) -> None:
    others = [sets.shape("nose", [[5, 6]], "point")] * 2
    others += [sets.shape("edge", [[5, 6], [7, 8]], kind) for kind in ("line", "linestrip", "points")]
    sets.labelme(tmp_path, {"a": [DOG, *others]})
    data = open_dataset(tmp_path, "all", Data())
    assert data.names == ("dog",)
    assert data.notes == ("left out, since no box encloses them: 2 points, 1 line, 1 linestrip, 1 point set",)


def test_difficult_shapes_are_ignored_and_other_keys_are_not_read(tmp_path: Path) -> None:
    more = {"description": "", "score": 0.4, "attributes": {"images": "1"}, "kie_linking": []}
    shapes = [sets.shape("dog", [[n, 6], [20, 30]], difficult=flag, **more) for n, flag in enumerate((True, False, 1))]
    sets.labelme(tmp_path, {"a": [*shapes, DOG]}, flags={"categories": True, "annotations": False}, description="x")
    data = open_dataset(tmp_path, "all", Data())
    assert data.faults == ()
    assert data.records[0].ignore.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (sets.shape("dog", [[5, 6], [20, 30]], "polygon"), "a shape `polygon` has at least three points; found 2"),
        (sets.shape("dog", [[5, 6]], "rectangle"), "a shape `rectangle` has two or four points; found 1"),
        (sets.shape("dog", [[5, 6]], "circle"), "a shape `circle` has two points; found 1"),
        (sets.shape("dog", [], "oriented_rectangle"), "a shape `oriented_rectangle` has four points; found 0"),
        (sets.shape("dog", [[5, 6], [20, float("nan")]]), "`points` must be a list of [x, y], finite numbers"),
        (sets.shape("dog", [[5, 6], [20, 10**400]]), "`points` must be a list of [x, y], finite numbers"),
        (sets.shape("dog", [[5, 6], [20, True]]), "`points` must be a list of [x, y], finite numbers"),
        (sets.shape("dog", [[5, 6], [20, "30"]]), "`points` must be a list of [x, y], finite numbers"),
        (sets.shape("dog", [5, 6, 20, 30]), "`points` must be a list of [x, y], finite numbers"),
        (sets.shape("", BOX), "`label` must be the name of a class; found ''"),
        ({**DOG, "label": 3}, "`label` must be the name of a class; found 3"),
        ({**DOG, "shape_type": "cube"}, "unknown shape_type `cube`; expected rectangle, polygon, "),
        ({**DOG, "difficult": "yes"}, "`difficult` must be true or false; found 'yes'"),
        ([1, 2], "an object is expected here; found [1, 2]"),
        (sets.shape("dog", [[0.1, 0.2], [0.5, 0.9]]), "has normalised coordinates? Pixels are expected"),
    ],
)
def test_a_faulty_shape_is_named(tmp_path: Path, shape: Any, reason: str) -> None:
    sets.labelme(tmp_path, {"a": [DOG, shape], "b": [DOG]})
    report = check(tmp_path, Data())
    first = report.faults[0]
    assert (first.where, first.kind) == (f"{tmp_path / 'a.json'}: shapes[1]", "fatal")
    assert reason in first.reason


@pytest.mark.parametrize(
    "path", ["a.jpg", "..\\images\\a.jpg", "../images/a.jpg", "C:\\Users\\ann\\a.jpg", "/home/ann/a.jpg"]
)
@pytest.mark.parametrize("images", [".", "images"])
def test_paths_of_other_machines_and_folders_are_found(tmp_path: Path, path: str, images: str) -> None:
    labels = tmp_path / ("." if images == "." else "labels")
    sets.image(tmp_path / images / "a.jpg")
    sets.image(tmp_path / images / "b.jpg")
    sets.write_json(labels / "a.json", sets.labelme_tree(path, [DOG]))
    sets.write_json(labels / "b.json", sets.labelme_tree(path.replace("a.jpg", "b.jpg"), []))
    data = open_dataset(tmp_path, "all", Data())
    assert [record.path.name for record in data.records] == ["a.jpg", "b.jpg"]
    assert data.faults == ()


def test_a_renamed_image_is_found_by_its_path_or_by_the_name_of_the_json(tmp_path: Path) -> None:
    sets.image(tmp_path / "a.jpg")
    sets.image(tmp_path / "c.png")
    sets.write_json(tmp_path / "a.json", sets.labelme_tree("gone.jpg", [DOG]))
    sets.write_json(tmp_path / "b.json", sets.labelme_tree("c.png", [DOG]))
    data = open_dataset(tmp_path, "all", Data())
    assert ([record.name for record in data.records], data.faults) == (["a.jpg", "c.png"], ())


@pytest.mark.parametrize("path", [None, "", 3])
def test_a_json_without_a_path_is_that_of_the_image_with_its_name(tmp_path: Path, path: Any) -> None:
    sets.image(tmp_path / "a.jpg")
    sets.write_json(tmp_path / "a.json", sets.labelme_tree(path, [DOG]))
    assert len(open_dataset(tmp_path, "all", Data())) == 1


def test_a_path_that_names_another_image_is_a_fault(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    sets.write_json(tmp_path / "a.json", sets.labelme_tree("b.jpg", [DOG]))
    one, two = (str(fault) for fault in check(tmp_path, Data()).faults)
    assert f"{tmp_path / 'a.json'}: `imagePath` is `b.jpg`, but there is also a.jpg, which has the name of this" in one
    assert f"{tmp_path / 'b.json'}: this image has labels in a.json too; keep one of the two" in two


def test_two_images_with_the_name_of_a_json_are_a_fault_unless_it_names_one(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    sets.image(tmp_path / "a.png")
    assert faults(tmp_path) == []
    sets.write_json(tmp_path / "a.json", sets.labelme_tree("gone.jpg", [DOG]))
    assert "two images with this name in" in fatal(tmp_path)


def test_a_size_that_contradicts_the_image_is_a_fault(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    for width, height, reason in (
        (61, 40, "the annotation says 61x40 pixels, the image has 60x40"),
        ("60", 40, "imageWidth and imageHeight must be whole numbers; found '60', 40"),
        (60, True, "imageWidth and imageHeight must be whole numbers"),
        (0, 40, "imageWidth and imageHeight must be whole numbers"),
    ):
        tree = sets.labelme_tree("a.jpg", [DOG], imageWidth=width, imageHeight=height)
        sets.write_json(tmp_path / "a.json", tree)
        assert fatal(tmp_path).startswith(f"{tmp_path / 'a.json'}: {reason}")
    sets.write_json(tmp_path / "a.json", sets.labelme_tree("a.jpg", [DOG], imageWidth=None, imageHeight=None))
    assert faults(tmp_path) == []
    sets.write_json(tmp_path / "a.json", sets.labelme_tree("a.jpg", [DOG], imageWidth=40, imageHeight=60))
    assert [kind for _, kind in faults(tmp_path)] == ["mendable"]


def test_an_image_that_is_only_inside_its_json_is_a_fault_with_a_way_out(tmp_path: Path) -> None:
    tmp_path = tmp_path / "d"
    tree = sets.labelme_tree("a.jpg", [DOG], imageData="iVBORw0KGgo" * 2000)
    sets.write_json(tmp_path / "a.json", tree)
    assert "its image is only inside this file, as `imageData`, which is not read; write it as a file" in fatal(
        tmp_path
    )
    sets.image(tmp_path / "a.jpg")
    assert faults(tmp_path) == []
    sets.write_json(tmp_path / "b.json", sets.labelme_tree("x.jpg", [DOG]))
    assert f"there is no image `b` or `x.jpg` in {tmp_path}" in fatal(tmp_path)


def test_an_image_without_a_json_is_left_out_and_named(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    sets.image(tmp_path / "c.jpg")
    data = open_dataset(tmp_path, "all", Data())
    (fault,) = data.faults
    assert (fault.where, fault.kind) == (str(tmp_path / "c.jpg"), "mendable")
    assert fault.reason.startswith("there is no json of this image; left out")
    assert len(data) == 2


def test_other_json_files_are_counted_unless_they_have_the_name_of_an_image(tmp_path: Path) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    sets.write_json(tmp_path / "config.json", {"labels": []})
    sets.write_json(tmp_path / "zero.json", [])
    (note,) = open_dataset(tmp_path, "all", Data()).notes
    assert note.startswith("2 json files have no `shapes` and no image of their name, and are not read, such as config")
    sets.write_json(tmp_path / "b.json", {"labels": []})
    assert fatal(tmp_path).endswith("b.json: there is no list `shapes`; is this a file of labelme?")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"shapes":', '"shapes"', "a.json:1:"),
        (
            '"label": "dog"',
            '"label": "cat", "label": "dog"',
            "the key `label` occurs twice, as 'cat' and as 'dog'; keep one",
        ),
        ("dog", "d\udcffg", "a.json:1: this is not UTF-8 text"),
        ("[5, 6]", "[" * 100_000, "malformed json"),
    ],
)
def test_a_json_that_cannot_be_parsed_is_a_fault(tmp_path: Path, old: str, new: str, reason: str) -> None:
    sets.labelme(tmp_path, {"a": [DOG], "b": [DOG]})
    file = tmp_path / "a.json"
    file.write_bytes(file.read_text().replace(old, new, 1).encode(errors="surrogateescape"))
    assert reason in fatal(tmp_path)


def test_a_json_that_is_too_large_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.labelme(tmp_path, {"a": [DOG] * 9, "b": [DOG]})
    monkeypatch.setattr(labelme, "MAX_LABELME_BYTES", len((tmp_path / "b.json").read_bytes()))
    assert "are too many" in fatal(tmp_path)


def test_neither_coco_nor_csv_takes_a_folder_of_labelme(tmp_path: Path) -> None:
    """COCO's keys may be class names or flags, and a table is often made of the labels."""
    shapes = [sets.shape(name, [[5, 6], [20, 30]]) for name in ("images", "annotations", "categories")]
    sets.labelme(tmp_path, {"a": shapes, "b": [DOG]}, flags={"images": True})
    sets.csv(tmp_path / "labels.csv", ["a.jpg,60,40,dog,5,6,20,30"])
    data = open_dataset(tmp_path, "all", Data())
    assert (data.format, data.names) == ("labelme", ("annotations", "categories", "dog", "images"))
    assert any("labels.csv: not read, since there is labelme's *.json" in note for note in data.notes)


def test_few_files_of_a_large_folder_are_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.labelme(tmp_path, {"a": [DOG]})
    text = (tmp_path / "a.json").read_text()
    for number in range(200):
        (tmp_path / f"{number}.json").write_text(text)
    inspected: list[object] = []
    for module in FORMATS.values():
        if hasattr(module, "read_ends"):
            monkeypatch.setattr(module, "read_ends", lambda path, count: inspected.append(path) or text.encode())
    assert find_layout(tmp_path).format == "labelme"
    assert len(inspected) <= 60


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 58), st.floats(2, 38), st.floats(0.01, 1), st.booleans()), max_size=4))
def test_what_is_written_is_read_as_the_same_boxes(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    root = tmp_path_factory.mktemp("law")
    boxes = {
        (x, y): (x + share * (60 - x), y + share * (40 - y), hard) for x, y, share, hard in [(0, 0, 0.5, False), *rows]
    }
    shapes = [sets.shape("dog", [[*low], [*high]], difficult=hard) for low, (*high, hard) in boxes.items()]
    (one,) = open_lists(sets.labelme(root / "d", {"a": shapes}), Data())
    assert convert(one, "labelme", root / "out") == []
    two = open_dataset(root / "out", "all", Data())
    assert (two.faults, two.notes) == ((), ())
    assert two.records[0].boxes.tolist() == one.records[0].boxes.tolist()
    assert two.records[0].ignore.tolist() == one.records[0].ignore.tolist()


def test_lists_are_written_as_folders_and_keys_as_labelme_has_them(tmp_path: Path) -> None:
    box = [("dog", (5, 6, 15, 24))]
    source = sets.coco(tmp_path / "c", {"train": {"a.jpg": box}, "val": {"b.jpg": []}}, {"dog": 1, "cat": 2})
    (remark,) = convert(open_lists(source, Data()), "labelme", tmp_path / "out")
    assert remark == "labelme has no list of classes, so those without a box are lost: cat"
    tree = json.loads((tmp_path / "out/train/a.json").read_text())
    assert {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} == {*tree}
    assert (tree["imagePath"], tree["imageData"], tree["imageWidth"], tree["imageHeight"]) == ("a.jpg", None, 60, 40)
    (shape,) = tree["shapes"]
    assert (shape["label"], shape["shape_type"], shape["points"]) == ("dog", "rectangle", [[5, 6], [20, 30]])
    train, val = open_splits(tmp_path / "out", Data())
    assert [record.name for record in (*train.records, *val.records)] == ["train/a.jpg", "val/b.jpg"]
