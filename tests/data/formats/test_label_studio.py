import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.errors import DataError
from tests.data import sets

SIZE = {"original_width": sets.WIDTH, "original_height": sets.HEIGHT}
BOX = {"x": 25, "y": 10, "width": 25, "height": 80}
PIXELS = [15, 4, 30, 36]


def region(kind: str = "rectangle", label: str | list[str] = "dog", **value: Any) -> dict[str, Any]:
    labels = [label] if isinstance(label, str) else label
    value = value or BOX
    named = {"id": "r1", "type": f"{kind}labels", "from_name": "label", "to_name": "image", "image_rotation": 0}
    return {**named, **SIZE, "value": {**value, f"{kind}labels": labels}}


def annotation(*regions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 1, "completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": [*regions], **more}


def task(image: str, *annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 7, "annotations": [*annotations], "predictions": [], "data": {"image": image}, **more}


def export(
    root: Path, *tasks: dict[str, Any], images: tuple[str, ...] = ("a.jpg",), name: str = "project-1.json"
) -> Path:
    for image in images:
        sets.image(root / image)
    sets.write_json(root / name, list(tasks))
    return root


def read(root: Path) -> Dataset:
    return open_dataset(root, "all", Data(), decode=False)


@pytest.mark.parametrize("given", [".", "project-1.json"])
def test_boxes_are_percents_of_the_image(tmp_path: Path, given: str) -> None:
    other = region(label="cat", x=0, y=0, width=100, height=100, rotation=0)
    export(tmp_path, task("a.jpg", annotation(region(), other)))
    data = read(tmp_path / given)
    assert (data.format, data.names, data.faults, data.notes) == ("label_studio", ("cat", "dog"), (), ())
    (record,) = data.records
    assert (record.name, record.id) == ("a.jpg", "a")
    assert record.boxes.tolist() == [PIXELS, [0, 0, 60, 40]]
    assert record.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("/data/upload/1/0a1b2c3d-a_b.jpg", "a_b.jpg"),
        ("/data/upload/1/0a1b2c3d-a_b.jpg", "0a1b2c3d-a_b.jpg"),
        ("/data/upload/1/0a1b2c3d-a_b.jpg", "images/upload/1/0a1b2c3d-a_b.jpg"),
        ("/data/upload/1/0a1b2c3d-a%20b%C3%BC.jpg", "images/a b\u00fc.jpg"),
        ("/data/local-files/?d=folder/a.jpg", "folder/a.jpg"),
        ("/data/local-files/?d=folder%2Fa%20b.jpg", "images/folder/a b.jpg"),
        ("http://localhost:8080/data/local-files/?d=srv/photos/a.jpg", "a.jpg"),
        ("https://server/photos/a.jpg?sig=secret&d=b.jpg", "images/a.jpg"),
        ("s3://bucket/photos/a.jpg", "a.jpg"),
        ("C:\\photos\\a.jpg", "images/a.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),
        ("deadbeef-a.jpg", "deadbeef-a.jpg"),
    ],
)
def test_images_are_found_by_what_is_left_of_their_names(tmp_path: Path, text: str, file: str) -> None:
    export(tmp_path, task(text, annotation(region())), images=(file,))
    data = read(tmp_path)
    assert data.faults == ()
    assert data.records[0].name == file


@pytest.mark.parametrize("data", [{"img": "a.jpg"}, {"image": "a.jpg", "thumb": "b.jpg"}, {"x": 1, "y": "a.jpg"}])
def test_the_image_may_be_under_any_key(tmp_path: Path, data: dict[str, Any]) -> None:
    export(tmp_path, task("", annotation(region())) | {"data": data})
    assert read(tmp_path).records[0].name == "a.jpg"


@pytest.mark.parametrize("data", [{"text": "a dog"}, {"one": "a.jpg", "two": "b.jpg"}, {}, {"images": ["a.jpg"]}])
def test_a_task_without_one_image_is_a_fault(tmp_path: Path, data: dict[str, Any]) -> None:
    export(tmp_path, task("", annotation(region())) | {"data": data}, task("a.jpg", annotation(region())))
    (fault,) = check(tmp_path, Data()).faults
    assert fault.where == f"{tmp_path / 'project-1.json'}: tasks[0] (id 7)"
    assert "one image is expected in the data of a task, under any key; found" in fault.reason


@pytest.mark.parametrize(
    ("shape", "expected", "note"),
    [
        (region("polygon", points=[[25, 10], [50, 20], [30, 90]]), PIXELS, "1 polygon"),
        (region("ellipse", x=50, y=50, radiusX=25, radiusY=40), [15, 4, 45, 36], "1 ellipse"),
        (region("ellipse", x=50, y=50, radiusX=10, radiusY=30, rotation=90), [18, 14, 42, 26], "1 ellipse"),
        (region(x=50, y=25, width=20, height=50, rotation=90), [10, 10, 30, 22], "1 rotated rectangle"),
        (region(x=50, y=25, width=20, height=50, rotation=-180), [18, -10, 30, 10], "1 rotated rectangle"),
    ],
)
def test_other_shapes_become_the_boxes_that_enclose_them(
    tmp_path: Path, shape: dict[str, Any], expected: list[float], note: str
) -> None:
    export(tmp_path, task("a.jpg", annotation(shape)))
    data = read(tmp_path)
    np.testing.assert_allclose(data.records[0].boxes, [np.maximum(expected, 0)], atol=1e-9)
    assert data.notes == (f"read as the boxes that enclose them: {note}",)


@settings(max_examples=100)
@given(st.floats(0, 360), st.floats(0, 100), st.floats(0, 100), st.floats(1, 50), st.floats(1, 50))
def test_a_rotated_rectangle_lies_in_its_box_and_touches_all_sides(
    tmp_path_factory: pytest.TempPathFactory, angle: float, x: float, y: float, width: float, height: float
) -> None:
    """Rotated about its top left corner, clockwise as it is seen."""
    root = tmp_path_factory.mktemp("law")
    shape = region(x=x, y=y, width=width, height=height, rotation=angle)
    size = {"original_width": 600, "original_height": 400}
    sets.image(root / "a.jpg", (600, 400))
    sets.write_json(root / "x.json", [task("a.jpg", annotation({**shape, **size}, {**region(), **size}))])
    turn = complex(math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    w, h = 6 * width, 4 * height
    points = [complex(6 * x, 4 * y) + complex(right, down) * turn for right in (0, w) for down in (0, h)]
    box = [min(p.real for p in points), min(p.imag for p in points)]
    box += [max(p.real for p in points), max(p.imag for p in points)]
    inside = [max(box[0], 0), max(box[1], 0), min(box[2], 600), min(box[3], 400)]
    area, area_inside = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, inside))
    if inside[0] < inside[2] and inside[1] < inside[3] and area_inside > 0.51 * area:  # others are refused
        np.testing.assert_allclose(read(root).records[0].boxes[0], inside, atol=1e-6)


def test_what_no_box_encloses_is_counted_and_what_is_no_region_ignored(tmp_path: Path) -> None:
    mask = region("brush") | {"value": {"format": "rle", "rle": [1, 2], "brushlabels": ["dog"]}}
    choice = {"type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image"}
    relation = {"type": "relation", "from_id": "r1", "to_id": "r2", "direction": "right"}
    text = {"type": "textarea", "value": {"text": ["some"], **BOX}}
    points = [region("keypoint", x=1, y=2, width=0.3)] * 2
    export(tmp_path, task("a.jpg", annotation(region(), mask, choice, relation, text, *points)))
    data = read(tmp_path)
    assert len(data.records[0].boxes) == 1
    assert data.notes == ("left out, since no box encloses them: 1 brush mask, 2 keypoints",)


def test_a_label_may_be_a_region_of_its_own(tmp_path: Path) -> None:
    shape = {**SIZE, "id": "r1", "type": "rectangle", "value": BOX}
    label = {**SIZE, "id": "r1", "type": "labels", "value": {**BOX, "labels": ["dog"]}}
    export(tmp_path, task("a.jpg", annotation(shape, label)))
    data = read(tmp_path)
    assert (data.names, data.records[0].boxes.tolist()) == (("dog",), [PIXELS])


def test_tasks_are_read_that_are_labelled(tmp_path: Path) -> None:
    tasks = [
        task("a.jpg", annotation(region())),
        task("b.jpg", annotation()),
        task("c.jpg"),
        task("d.jpg", annotation(region(), was_cancelled=True)),
        task("e.jpg", annotation(region(label="cat"), was_cancelled=True), annotation(region())),
    ]
    export(tmp_path, *tasks, images=tuple(f"{name}.jpg" for name in "abcde"))
    data = read(tmp_path)
    assert {record.id: len(record.boxes) for record in data.records} == {"a": 1, "b": 0, "e": 1}
    assert (data.names, data.faults) == (("dog",), ())
    unlisted, *others = sorted(data.notes, key=lambda note: "not in any list" not in note)
    assert unlisted.startswith("2 images in ")
    assert set(others) == {
        "2 tasks without an annotation left out",
        "2 tasks with skipped annotations, which are not read",
    }


def test_of_several_annotations_the_truth_or_the_last_one_is_read(tmp_path: Path) -> None:
    first, second, third = (annotation(region(label=name)) for name in ("one", "two", "three"))
    old, new = ({"updated_at": f"2026-0{month}-01T00:00:00Z"} for month in (1, 2))
    tasks = [
        task("a.jpg", first, second),
        task("b.jpg", second | new, first | old),
        task("c.jpg", {**third, "ground_truth": True}, second),
    ]
    export(tmp_path, *tasks, images=("a.jpg", "b.jpg", "c.jpg"))
    data = read(tmp_path)
    assert [data.names[record.labels[0]] for record in data.records] == ["two", "two", "three"]
    assert data.notes == ("3 tasks with several annotations, of which the ground truth or the last one is read",)


def test_predictions_are_no_labels(tmp_path: Path) -> None:
    export(tmp_path, task("a.jpg", predictions=[{"result": [region()]}]))
    with pytest.raises(DataError, match="none of its tasks has an annotation; predictions are not read as labels"):
        read(tmp_path)


def test_json_min_has_the_regions_of_an_annotation_in_one_list(tmp_path: Path) -> None:
    flat = {**BOX, **SIZE, "rotation": 0, "rectanglelabels": ["dog"]}
    polygon = {"points": [[0, 0], [50, 50]], "polygonlabels": ["cat"], **SIZE}
    about = {"annotator": 1, "annotation_id": 1, "created_at": "2026-01-01"}
    tasks = [
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "label": [{**flat, "x": 0}], **about},
        {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "label": [flat], "shape": [polygon], **about},
        {"image": "b.jpg", "id": 2, "quality": ["good"], **about},
    ]
    export(tmp_path, *tasks, images=("images/a.jpg", "images/b.jpg"))
    data = read(tmp_path)
    assert (data.format, data.names) == ("label_studio", ("cat", "dog"))
    assert [record.boxes.tolist() for record in data.records] == [[PIXELS, [0, 0, 30, 20]], []]
    assert any("1 task with several annotations" in note for note in data.notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (region(label=[]), "a region needs one label, and this one has none"),
        (region(label=["dog", "black"]), "a region needs one label, and this one has dog, black"),
        (region(x="1", y=2, width=3, height=4), "x, y, width, height must be numbers; found"),
        (region(x=900, y=400, width=30, height=40), "the numbers must be percents of the width and height"),
        (region(x=50, y=20, width=-30, height=40), "is inverted"),
        (region(x=float("nan"), y=20, width=30, height=40), "is not finite"),
        (region(**BOX, rotation="left"), "`rotation` must be a number of degrees"),
        (region(**BOX, rotation=10**400), "`rotation` must be a number of degrees"),
        (region(**BOX, rotation=9) | {"original_width": None}, "needs `original_width` and `original_height`"),
        (region("polygon", points=[]), "a polygon needs points of two numbers each"),
        (region("polygon", points=[[1, 2, 3]]), "a polygon needs points of two numbers each"),
        (region() | {"image_rotation": 90}, "the image was rotated in Label Studio"),
        (region() | {"original_width": 50}, "the image is 50x40 pixels here, and 60x40 in a region before"),
    ],
)
def test_a_faulty_region_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    export(tmp_path, task("a.jpg", annotation(region(), changed | {"id": "r2"})), task("b.jpg", annotation(region())))
    sets.image(tmp_path / "b.jpg")
    (fault,) = [fault for fault in check(tmp_path, Data()).faults if fault.kind == "fatal"]
    assert fault.where == f"{tmp_path / 'project-1.json'}: tasks[0] (id 7) result[1]"
    assert message in fault.reason


@pytest.mark.parametrize(
    ("changed", "place", "message"),
    [
        ("text", "tasks[0]", "a task is expected here, found 'text'"),
        (task("a.jpg") | {"annotations": {}}, "tasks[0] (id 7)", "a list of annotations is expected, found {}"),
        (task("a.jpg", {"result": "x"}), "tasks[0] (id 7)", "needs a list of regions as `result`, found 'x'"),
        (task("a.jpg", annotation()) | {"data": "a.jpg"}, "tasks[0] (id 7)", "the task has no `data`"),
        (task("gone.jpg", annotation()), "tasks[0] (id 7)", "image `gone.jpg` is missing; looked in"),
        (task("b.jpg", annotation()), "tasks[1] (id 7)", "the image `b.jpg` is that of another task"),
    ],
)
def test_a_faulty_task_is_named(tmp_path: Path, changed: Any, place: str, message: str) -> None:
    others = task("b.jpg", annotation(region())), task("c.jpg", annotation(region()))
    export(tmp_path, changed, *others, images=("a.jpg", "b.jpg", "c.jpg"))
    (fault,) = [fault for fault in check(tmp_path, Data()).faults if fault.kind == "fatal"]
    assert fault.where == f"{tmp_path / 'project-1.json'}: {place}"
    assert message in fault.reason


def test_an_export_of_another_size_of_the_image_is_a_fault(tmp_path: Path) -> None:
    export(tmp_path, task("a.jpg", annotation(region())), images=())
    sets.image(tmp_path / "a.jpg", (120, 90))
    with pytest.raises(DataError, match="the annotation says 60x40 pixels, the image has 120x90"):
        read(tmp_path)


def test_lists_by_name_and_the_same_classes(tmp_path: Path) -> None:
    export(tmp_path, task("a.jpg", annotation(region(), region(label="cat"))), name="train.json")
    export(tmp_path, task("b.jpg", annotation(region())), images=("b.jpg",), name="val.json")
    train, val = open_splits(tmp_path, Data())
    assert (train.names, val.names) == (("cat", "dog"),) * 2
    assert val.records[0].labels.tolist() == [1]


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_damaged_export_is_named_with_its_line(tmp_path: Path, cut: float) -> None:
    export(tmp_path, *(task("a.jpg", annotation(region())) for _ in range(9)))
    file = tmp_path / "project-1.json"
    file.write_text(file.read_text()[: int(cut * file.stat().st_size)])
    with pytest.raises(DataError, match=r"project-1\.json:1:\d+: malformed json"):
        read(tmp_path)


def test_an_export_is_not_taken_for_coco_or_the_other_way_round(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "coco", {"train": {"a.jpg": [("dog", (2, 3, 9, 10))]}}, {"dog": 1})
    assert read(root).format == "coco"
    export(tmp_path / "studio", task("a.jpg", annotation(region())))
    assert read(tmp_path / "studio/project-1.json").format == "label_studio"
    (tmp_path / "studio/project-1.json").write_text("\ufeff \n" + json.dumps([task("a.jpg", annotation(region()))]))
    assert read(tmp_path / "studio").format == "label_studio"
