import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats import via
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.errors import DataError
from tests.data import sets

RECT = {"name": "rect", "x": 5, "y": 6, "width": 15, "height": 24}
DOG = sets.via_region("dog", **RECT)
BOX = [5, 6, 20, 30]
HEADER = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"


def write(folder: Path, tree: Any, *images: str, name: str = "via_region_data.json") -> Path:
    """Write an export with its images."""
    for image in images or ("a.jpg", "b.jpg"):
        sets.image(folder / image)
    sets.write_json(folder / name, tree)
    return folder


def row(name: str, shape: object = RECT, attributes: object = None, size: int = 123) -> str:
    """Return a line of VIA's csv."""
    text = io.StringIO(newline="")
    cells = [
        name,
        size,
        "{}",
        1,
        0,
        json.dumps(shape),
        json.dumps({"class": "dog"} if attributes is None else attributes),
    ]
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def fatal(path: Path) -> str:
    """Return the only fault, which is fatal, as text."""
    (fault,) = check(path, Data()).faults
    assert fault.kind == "fatal"
    return str(fault)


def numbered(tree: dict[str, Any]) -> dict[str, Any]:
    """Return annotations as VIA 1 has them: regions by number, and more keys."""
    first = {"fileref": "", "base64_img_data": ""}
    return {
        key: {**first, **entry, "regions": {str(number): region for number, region in enumerate(entry["regions"])}}
        for key, entry in tree.items()
    }


@pytest.mark.parametrize("form", ["annotations", "project", "VIA 1", "csv", "csv of VIA 1"])
def test_every_export_gives_the_same_boxes(tmp_path: Path, form: str) -> None:
    cat = sets.via_region("cat", **{**RECT, "x": 7.5})
    images = {"a.jpg": [DOG, cat], "b.jpg": []}
    if form.startswith("csv"):
        rows = [row("a.jpg"), row("a.jpg", cat["shape_attributes"], {"class": "cat"}), row("b.jpg", {}, {})]
        write(tmp_path, {}, "a.jpg", "b.jpg", name="unused")
        sets.csv(tmp_path / "via_region_data.csv", rows, ("#" if form.endswith("1") else "") + HEADER)
    elif form == "project":
        write(tmp_path, sets.via_project(images), name="via_project_4Mar2021.json")
    else:
        tree = sets.via_tree(images)
        write(tmp_path, numbered(tree) if form == "VIA 1" else tree)
    data = open_dataset(tmp_path, "all", Data())
    assert (data.format, data.names, data.faults, data.notes) == ("via", ("cat", "dog"), (), ())
    assert [(record.name, record.id) for record in data.records] == [("a.jpg", "a"), ("b.jpg", "b")]
    assert data.records[0].boxes.tolist() == [BOX, [7.5, 6, 22.5, 30]]
    assert data.records[0].labels.tolist() == [1, 0]
    assert len(data.records[1].boxes) == 0
    (file,) = tmp_path.glob("via_*")
    assert open_dataset(file, "all", Data()).names == ("cat", "dog")


@pytest.mark.parametrize("val", ["val", "valid"])
def test_a_folder_per_split_is_a_list(tmp_path: Path, val: str) -> None:
    write(tmp_path / "train", sets.via_tree({"a.jpg": [DOG]}), "a.jpg")
    write(tmp_path / val, sets.via_tree({"b.jpg": [DOG]}), "b.jpg")
    train, held = open_splits(tmp_path, Data())
    assert [record.name for record in (*train.records, *held.records)] == ["train/a.jpg", f"{val}/b.jpg"]


def test_files_named_after_splits_are_lists(tmp_path: Path) -> None:
    write(tmp_path / "images", {}, "a.jpg", "b.jpg", name="unused")
    for name, image in (("train", "a.jpg"), ("val", "b.jpg")):
        sets.write_json(tmp_path / f"annotations/via_{name}.json", sets.via_tree({image: [DOG]}))
    for path in (tmp_path, tmp_path / "annotations"):
        train, val = open_splits(path, Data())
        assert [record.name for record in (*train.records, *val.records)] == ["images/a.jpg", "images/b.jpg"]


def test_two_files_that_could_be_one_list_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", sets.via_tree({"a.jpg": [DOG]}))
    write(tmp_path / "d", sets.via_project({"a.jpg": [DOG]}), name="via_project.json")
    with pytest.raises(
        DataError, match=r"several exports of VIA could be the list `all`: via_project\.json, via_region"
    ):
        open_dataset(tmp_path / "d", "all", Data())
    for name in ("a", "b"):
        write(tmp_path / "s/train", sets.via_tree({"a.jpg": [DOG]}), name=f"{name}.json")
    with pytest.raises(DataError, match=r"several exports of VIA could be the list `train`: train/a\.json, train/b"):
        open_dataset(tmp_path / "s", "all", Data())


def test_a_table_beside_a_json_is_not_read_unless_it_is_given(tmp_path: Path) -> None:
    write(tmp_path, sets.via_tree({"a.jpg": [DOG]}), "a.jpg")
    table = sets.csv(tmp_path / "via_region_data.csv", [row("a.jpg", attributes={"class": "cat"})], HEADER)
    data = open_dataset(tmp_path, "all", Data())
    assert (data.names, data.notes) == (
        ("dog",),
        (f"{table}: not read, since there is a json of VIA; give the table itself to read it",),
    )
    assert open_dataset(table, "all", Data()).names == ("cat",)


def test_a_project_names_the_folder_of_its_images(tmp_path: Path) -> None:
    tree = sets.via_project({"a.jpg": [DOG]})
    tree["_via_settings"]["core"]["default_filepath"] = "C:\\photos\\day 1\\"
    sets.image(tmp_path / "day 1/a.jpg")
    sets.image(tmp_path / "day 2/a.jpg")
    sets.write_json(tmp_path / "project.json", tree)
    assert [record.name for record in open_dataset(tmp_path, "all", Data()).records] == ["day 1/a.jpg"]


@pytest.mark.parametrize(
    ("shape", "box", "noun"),
    [
        ({"name": "circle", "cx": 20, "cy": 20, "r": 5.5}, [14.5, 14.5, 25.5, 25.5], "1 circle"),
        ({"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5}, [10, 15, 30, 25], "1 ellipse"),
        (
            {"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5, "theta": math.pi / 2},
            [15, 10, 25, 30],
            "1 ellipse",
        ),
        ({"name": "polygon", "all_points_x": [5, 20, 11], "all_points_y": [9, 6, 30]}, BOX, "1 polygon"),
        (
            {"name": "polyline", "all_points_x": [5, 20, 11, 5], "all_points_y": [9, 6, 30, 9]},
            BOX,
            "1 closed polyline",
        ),
    ],
)
def test_other_shapes_become_enclosing_boxes(tmp_path: Path, shape: Any, box: list[float], noun: str) -> None:
    tree = sets.via_tree({"a.jpg": [sets.via_region("dog", **shape)]})
    data = open_dataset(write(tmp_path, tree, "a.jpg"), "all", Data())
    assert data.records[0].boxes[0].tolist() == pytest.approx(box, abs=1e-9)
    assert data.notes == (f"read as the boxes that enclose them: {noun}",)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 7), st.floats(1, 9), st.floats(1, 9), st.floats(0, 6.3))
def test_the_box_of_an_ellipse_touches_it_on_four_sides(theta: float, rx: float, ry: float, start: float) -> None:
    from rcnn.data.formats.shapes import ellipse

    angles = [start + 2 * math.pi * step / 20_000 for step in range(20_000)]
    x = [rx * math.cos(angle) * math.cos(theta) - ry * math.sin(angle) * math.sin(theta) for angle in angles]
    y = [rx * math.cos(angle) * math.sin(theta) + ry * math.sin(angle) * math.cos(theta) for angle in angles]
    assert ellipse(0, 0, rx, ry, theta) == pytest.approx([min(x), min(y), max(x), max(y)], abs=1e-5)


def test_points_and_open_lines_are_left_out_and_their_attributes_do_not_count(tmp_path: Path) -> None:
    line = {"name": "polyline", "all_points_x": [5, 20, 11], "all_points_y": [9, 6, 30]}
    regions = [
        DOG,
        sets.via_region({"joint": "knee"}, name="point", cx=3, cy=4),
        sets.via_region({"edge": "x"}, **line),
    ]
    data = open_dataset(write(tmp_path, sets.via_tree({"a.jpg": regions}), "a.jpg"), "all", Data())
    assert data.names == ("dog",)
    assert data.notes == ("left out, since no box encloses them: 1 point, 1 open polyline",)


@pytest.mark.parametrize("name", ["class", "Typ der Zelle", "images"])
def test_the_only_attribute_with_values_is_the_class(tmp_path: Path, name: str) -> None:
    attributes = [{name: " dog ", "note": ""}, {name: {"cat": True, "dog": False}, "flags": {}}, {name: {"cat": True}}]
    regions = [sets.via_region(each, **{**RECT, "x": number}) for number, each in enumerate(attributes)]
    data = open_dataset(write(tmp_path, sets.via_tree({"a.jpg": regions})), "all", Data())
    assert (data.names, data.records[0].labels.tolist()) == (("cat", "dog"), [1, 0, 0])


def test_several_attributes_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    regions = [sets.via_region({"kind": "dog", "size": "big"}, **{**RECT, "x": number}) for number in range(3)]
    regions.append(sets.via_region({"kind": "cat"}, **RECT | {"x": 9}))
    write(tmp_path, sets.via_tree({"a.jpg": regions}))
    several = (
        r"several attributes that could be the class: `kind` \(4 regions\), `size` \(3 regions\); choose one, for ex"
    )
    with pytest.raises(DataError, match=rf"via_region_data\.json: .*{several}ample with data\.class_attribute=kind$"):
        open_dataset(tmp_path, "all", Data())
    assert open_dataset(tmp_path, "all", Data(class_attribute="kind")).names == ("cat", "dog")
    (fault,) = check(tmp_path, Data(class_attribute="size")).faults
    assert str(fault).endswith("regions[3]: the region has no `size`, which is its class")
    with pytest.raises(DataError, match=r"no region has the attribute data\.class_attribute=colour; found `kind` \(4"):
        open_dataset(tmp_path, "all", Data(class_attribute="colour"))


def test_regions_without_any_attribute_are_of_one_class(tmp_path: Path) -> None:
    """As in the best known data set of VIA 1, of balloons."""
    for split, image in (("train", "a.jpg"), ("val", "b.jpg")):
        write(tmp_path / split, numbered(sets.via_tree({image: [sets.via_region({}, **RECT)]})), image)
    train, val = open_splits(tmp_path, Data())
    assert (train.names, val.names) == (("object",), ("object",))
    assert train.notes == ("no region has an attribute, so all are of one class, `object`",)
    report = open_dataset(tmp_path, "val", Data(on_fault="skip"), names=["object"])
    assert report.faults == ()
    with pytest.raises(DataError, match="the region has no attribute, which is its class"):
        open_dataset(tmp_path, "train", Data(), names=["dog"])


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (sets.via_region({}, **RECT), "the region has no `class`, which is its class"),
        (sets.via_region({"class": " "}, **RECT), "the region has no `class`, which is its class"),
        (sets.via_region({"class": {"cat": False}}, **RECT), "the region has no `class`, which is its class"),
        (
            sets.via_region({"class": {"cat": True, "dog": True}}, **RECT),
            "several values of `class` are checked: cat, dog",
        ),
        (sets.via_region({"class": 3}, **RECT), "`class` must be a text or the state of check boxes; found 3"),
        (
            sets.via_region("dog", x=5, y=6, width=15),
            "a shape `rect` needs the finite numbers x, y, width, height; found 5, 6, 15, None",
        ),
        (sets.via_region("dog", **{**RECT, "x": float("nan")}), "a shape `rect` needs the finite numbers"),
        (sets.via_region("dog", **{**RECT, "x": "5"}), "a shape `rect` needs the finite numbers"),
        (sets.via_region("dog", **{**RECT, "width": -3}), "is inverted"),
        (sets.via_region("dog", name="circle", cx=20, cy=20, r=-1), "a shape `circle` has a negative radius: -1"),
        (
            sets.via_region("dog", name="ellipse", cx=20, cy=20, rx=1, ry=-2),
            "a shape `ellipse` has a negative radius: -2",
        ),
        (
            sets.via_region("dog", name="polygon", all_points_x=[5, 20], all_points_y=[9, 6]),
            "a shape `polygon` has at least three points; found 2",
        ),
        (
            sets.via_region("dog", name="polygon", all_points_x=[5, 20, 11], all_points_y=[9, 6]),
            "a shape `polygon` needs lists of as many finite numbers, all_points_x and all_points_y",
        ),
        (
            sets.via_region("dog", name="cube"),
            "unknown shape 'cube'; expected rect, circle, ellipse, polygon, polyline or",
        ),
        ({"shape_attributes": RECT}, "a region needs the objects shape_attributes and region_attributes"),
        ("dog", "a region needs the objects shape_attributes and region_attributes"),
    ],
)
def test_a_faulty_region_is_named(tmp_path: Path, region: Any, reason: str) -> None:
    write(tmp_path, sets.via_tree({"a.jpg": [DOG, region], "b.jpg": [DOG]}))
    message = fatal(tmp_path)
    assert message.startswith(f"{tmp_path / 'via_region_data.json'}: a.jpg123 regions[1]: ")
    assert reason in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.jpg,123,{},1,0", "expected 7 columns as in the header, found 5: a.jpg, 123"),
        (row("a.jpg").replace('""rect""', "rect"), "region_shape_attributes is not JSON (Expecting value"),
        (row(""), "the filename is empty"),
        (row("c.jpg"), "image `c.jpg` is missing; looked in"),
        (row("a.jpg", {}), "unknown shape None"),
        (row("a.jpg", attributes={}), "the region has no `class`"),
        (row("a.jpg", {**RECT, "x": 6}, size=99), "image `a.jpg` has another entry, "),
        (row("a.jpg", {"name": "x" * 140_000}), "malformed csv: field larger than field limit"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, line: str, reason: str) -> None:
    write(tmp_path, {}, name="unused")
    sets.csv(tmp_path / "x.csv", [row("a.jpg"), line], HEADER)
    first = next(str(fault) for fault in check(tmp_path, Data()).faults if fault.kind == "fatal")
    assert first.startswith(f"{tmp_path / 'x.csv'}:3: ")
    assert reason in first


def test_a_table_is_read_up_to_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {}, name="unused")
    sets.csv(tmp_path / "x.csv", [row("a.jpg", {**RECT, "x": number}) for number in range(9)], HEADER)
    monkeypatch.setattr(via, "MAX_TABLE_ROWS", 5)
    assert fatal(tmp_path).endswith("x.csv:7: the table continues here, but only 5 lines are read")
    monkeypatch.setattr(via, "MAX_CSV_BYTES", 100)
    assert "are too many" in fatal(tmp_path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"filename": "", "regions": []}, "c: an entry with the `filename` of an image is expected here"),
        ([], "c: an entry with the `filename` of an image is expected here"),
        ({"filename": "a.jpg", "regions": []}, "image `a.jpg` has another entry, "),
        ({"filename": "b.jpg", "regions": 3}, "c: `regions` must be a list or an object; found 3"),
        ({"filename": "https://host/c.jpg?token=secret", "regions": []}, "is an address that does not lie below"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path: Path, entry: Any, reason: str) -> None:
    write(tmp_path, {**sets.via_tree({"a.jpg": [DOG]}), "c": entry})
    message = fatal(tmp_path)
    assert reason in message
    assert "secret" not in message


def test_the_same_key_twice_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, sets.via_tree({"a.jpg": [DOG], "b.jpg": [DOG]}))
    file = tmp_path / "via_region_data.json"
    file.write_text(file.read_text().replace('"b.jpg123"', '"a.jpg123"'))
    (reason,) = [str(fault) for fault in check(tmp_path, Data()).faults]
    assert reason.startswith(f"{file}: the key `a.jpg123` occurs twice, as {{'filename': 'a.jpg'")
    assert reason.endswith("; keep one of the two")


def test_an_export_without_its_images_is_refused(tmp_path: Path) -> None:
    sets.write_json(tmp_path / "d/x.json", sets.via_tree({"a.jpg": [DOG]}))
    with pytest.raises(DataError, match=r"x\.json: none of its images exists\. image `a\.jpg` is missing; looked in"):
        open_dataset(tmp_path / "d", "all", Data())


@pytest.mark.parametrize("name", ["p.json", "p.csv"])
def test_via_3_is_refused_by_name(tmp_path: Path, name: str) -> None:
    project = {"pid": "__VIA_PROJECT_ID__", "rev": "1", "pname": "p", "creator": "VGG Image Annotator"}
    tree = {"project": project, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}
    lines = [
        "# Exported using VGG Image Annotator",
        "# CSV_HEADER = metadata_id,file_list,spatial_coordinates,metadata",
    ]
    sets.image(tmp_path / "a.jpg")
    (tmp_path / name).write_text(json.dumps(tree) if name == "p.json" else "\n".join(lines))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            DataError, match=r"p\..*: this is a file of VIA 3, which is not read\. Export the project as"
        ):
            open_dataset(path, "all", Data())


def test_a_coco_json_is_not_taken_for_via_or_labelme(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": {"a.jpg": [("dog", (5, 6, 15, 24))]}}, {"dog": 1})
    for path in (root, root / "annotations/train.json"):
        assert open_dataset(path, "all", Data()).format == "coco"
