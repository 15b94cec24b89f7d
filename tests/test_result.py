import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rcnn.draw import PALETTE, as_rgb, colour, draw_boxes, entries, font_for, shade, text_colour
from rcnn.errors import SettingsError
from rcnn.result import Result


def result(**changes) -> Result:
    fields = {
        "boxes": np.array([[10, 20, 60, 70.25], [0, 0, 100, 80], [90.123, 70, 100, 80]], np.float32),
        "scores": np.array([0.9, 0.75, 0.3], np.float32),
        "labels": np.array([1, 0, 1]),
        "names": ("cat", "dog"),
        "path": None,
        "size": (80, 100),
    }
    return Result(**fields | changes)


def empty(**changes) -> Result:
    nothing = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, int)}
    return result(**nothing | changes)


def test_length_counts_and_text() -> None:
    assert len(result()) == 3
    assert result().counts() == {"cat": 1, "dog": 2}
    assert repr(result(path="a/b.jpg")) == "Result(a/b.jpg, 100x80: 1 cat, 2 dog)"
    assert repr(empty()) == "Result(array, 100x80: nothing)"


def test_filter_keeps_the_best_matching_boxes() -> None:
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    kept = result(features=features).filter(score=0.3, classes=["dog"], top=1)
    assert kept.scores.tolist() == pytest.approx([0.9])
    assert kept.features is not None
    assert kept.features.tolist() == [[0, 1]]
    assert len(result().filter(score=0.3)) == 3  # the threshold is inclusive, in the precision of the scores
    assert len(result().filter(score=0.31)) == 2
    assert len(result().filter(classes=[])) == 0
    assert len(result().filter()) == 3


def test_filter_names_unknown_classes() -> None:
    with pytest.raises(ValueError, match=r"unknown classes horse; the detector has cat, dog"):
        result().filter(classes=["dog", "horse"])


def test_json_is_plain_and_complete() -> None:
    tree = json.loads(json.dumps(result(path="x.jpg", features=np.ones((3, 2), np.float32)).to_json()))
    assert (tree["path"], tree["height"], tree["width"]) == ("x.jpg", 80, 100)
    expected = {"name": "dog", "label": 1, "score": 0.9, "box": [10, 20, 60, 70.25], "features": [1, 1]}
    assert tree["detections"][0] == expected
    assert sum(tree["counts"].values()) == len(tree["detections"])
    assert empty().to_json()["detections"] == []
    assert "features" not in result().to_json()["detections"][0]


def test_coco_rows_use_the_category_ids_of_the_data_set() -> None:
    rows = json.loads(json.dumps(result(category_ids=(7, 18)).to_coco(42)))
    assert rows[0] == {"image_id": 42, "category_id": 18, "bbox": [10, 20, 50, 50.25], "score": 0.9}
    assert rows[2]["bbox"] == [90.12, 70, 9.88, 10]


def test_coco_rows_default_to_the_file_name_and_ids_from_1() -> None:
    assert {(row["image_id"], row["category_id"]) for row in result(path="a/b.jpg").to_coco()} == {
        ("b.jpg", 1),
        ("b.jpg", 2),
    }
    assert result().to_coco(0)[0]["image_id"] == 0
    with pytest.raises(ValueError, match="give its id"):
        result().to_coco()


def test_coco_rows_are_read_by_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    gt = COCO()
    gt.dataset = {"info": {}, "images": [{"id": 3}], "categories": [{"id": 1}, {"id": 2}], "annotations": []}
    gt.createIndex()
    assert len(gt.loadRes(result().to_coco(3)).anns) == 3


def test_yolo_lines_reproduce_the_boxes() -> None:
    lines = result().to_yolo().splitlines()
    assert lines[1] == "0 0.500000 0.500000 1.000000 1.000000"
    label, x, y, w, h = map(float, lines[0].split())
    assert label == 1
    corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (100, 80, 100, 80)
    np.testing.assert_allclose(corners, [10, 20, 60, 70.25], atol=1e-3)
    assert result().to_yolo(scores=True).splitlines()[0].split()[5] == "0.900000"
    assert empty().to_yolo() == ""
    flat = empty(boxes=np.array([[5, 5, 5, 50]], np.float32), scores=np.ones(1), labels=np.zeros(1, int))
    assert flat.to_yolo() == "0 0.050000 0.343750 0.000001 0.562500\n"  # a side of 0 would be a fault


def test_voc_pixels_count_from_1_and_include_the_last() -> None:
    root = ElementTree.fromstring(result(path="a/b & c.jpg").to_voc())
    assert root.findtext("filename") == "b & c.jpg"
    assert (root.findtext("size/width"), root.findtext("size/height")) == ("100", "80")
    boxes = [[node.text for node in box] for box in root.iter("bndbox")]
    assert boxes == [["11", "21", "60", "70.25"], ["1", "1", "100", "80"], ["91.12", "71", "100", "80"]]
    assert [node.text for node in root.iter("name")] == ["dog", "cat", "dog"]


def test_voc_boxes_have_no_side_of_0_or_1_pixels() -> None:
    slivers = np.array([[99.8, 79.9, 100, 80], [10.3, 0, 11.3, 1], [10.6, 20, 10.6, 22], [3, 3, 3, 3]], np.float32)
    thin = empty(boxes=slivers, scores=np.ones(4), labels=np.zeros(4, int))
    boxes = [[float(node.text or "") for node in box] for box in ElementTree.fromstring(thin.to_voc()).iter("bndbox")]
    assert boxes == [[100.8, 80.9, 100, 80], [11.3, 1, 11.31, 1.01], [11.6, 21, 10.61, 22], [4, 4, 3.01, 3.01]]


@pytest.mark.parametrize("name", ["größe", "Ёж", "κύτταρο", "łódź"])
def test_non_ascii_names_are_drawn_without_missing_glyphs(name: str) -> None:
    """A font draws the same empty box for every letter that it lacks."""
    font = font_for([name], 20)
    lacking = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != lacking for letter in name)
    assert font_for(["cat"], 20).getname()[0] != font.getname()[0]  # ASCII names keep the default font


def test_drawing_keeps_the_image_and_uses_class_colours() -> None:
    image = np.full((80, 100, 3), 255, np.uint8)
    picture = result().draw(image)
    assert picture.size == (100, 80)
    assert (image == 255).all()
    assert "#{:02X}{:02X}{:02X}".format(*picture.getpixel((10, 50))) == colour(1)  # type: ignore[misc]
    assert picture.getpixel((30, 45)) == (255, 255, 255)


def test_drawing_respects_the_score() -> None:
    image = Image.new("L", (100, 80), 255)
    assert len(result().draw(image, score=0.95).getcolors() or []) == 1
    assert len(result().draw(image, score=0.5).getcolors() or []) > 1
    assert len(empty().draw(image).getcolors() or []) == 1


def test_drawing_reads_the_image_file(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "a.png")
    read = result(path=str(tmp_path / "a.png")).draw()
    assert list(read.tobytes()) == list(result().draw(Image.new("RGB", (100, 80), "white")).tobytes())


def test_drawing_rejects_missing_images_and_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="give the image to draw on"):
        result().draw()
    with pytest.raises(ValueError, match="the image is 80x100 pixels, but the result is for 100x80"):
        result().draw(np.zeros((100, 80, 3), np.uint8))


def test_many_boxes_of_one_class_are_coloured_by_score() -> None:
    low = np.stack((np.arange(70), np.arange(70)), 1).astype(np.float32)
    boxes, labels = np.concatenate((low, low + 9), 1), np.zeros(70, int)
    many = result(boxes=boxes, scores=np.linspace(1, 0, 70), labels=labels, names=("object",))
    picture = many.draw(Image.new("RGB", (100, 80), "white"))
    assert "#{:02X}{:02X}{:02X}".format(*picture.getpixel((0, 0))) == shade(1)  # type: ignore[misc]


def test_crowded_pictures_have_a_legend() -> None:
    page = np.full((300, 300, 3), 255, np.uint8)
    boxes = np.tile(np.array([[60, 60, 260, 260]], np.float32), (40, 1))
    crowd = result(boxes=boxes, scores=np.ones(40), labels=np.arange(40) % 2, size=(300, 300))
    few = crowd.filter(top=2)

    assert "#808080" in {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.asarray(crowd.draw(page)).reshape(-1, 3)}
    assert "#808080" not in {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.asarray(few.draw(page)).reshape(-1, 3)}


def test_a_legend_lists_the_most_common_classes() -> None:
    names = [f"class {k}" for k in range(40)]
    labels = [*range(30), 29]
    legend = entries(names, labels)
    assert list(legend)[:2] == ["class 29", "class 0"]
    assert list(legend)[-1] == "18 more"
    assert legend["class 29"] == colour(29)
    assert entries(names, []) == {}


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (900, 700)])
def test_boxes_and_tags_at_any_position_fit_any_image(size: tuple[int, int]) -> None:
    height, width = size
    boxes = np.array([[0, 0, width, height], [width - 0.5, height - 0.5, width, height], [0, 0, 0, 0]])
    for dashed in (None, np.ones(3, bool)):
        tags = ["a long name of a class 0.99", "b", ""]
        assert draw_boxes(np.zeros((*size, 3), np.uint8), boxes, PALETTE[:3], tags, dashed).size == (width, height)


def test_images_with_any_number_of_channels_are_shown() -> None:
    for shape in ((4, 5), (4, 5, 1), (4, 5, 2), (4, 5, 3), (4, 5, 7)):
        assert as_rgb(np.zeros(shape, np.uint8)).size == (5, 4)
    assert as_rgb(np.full((1, 1, 1), 9, np.uint8)).getpixel((0, 0)) == (9, 9, 9)
    channels = np.arange(1, 6, dtype=np.uint8).reshape(1, 1, 5)
    assert as_rgb(channels[..., :2]).getpixel((0, 0)) == (1, 1, 1)
    assert as_rgb(channels).getpixel((0, 0)) == (1, 2, 3)


def test_colours_repeat_and_text_contrasts() -> None:
    assert colour(len(PALETTE)) == colour(0)
    assert (text_colour("#FDE725"), text_colour("#440154")) == ("black", "white")
    assert (shade(0), shade(0.25), shade(1), shade(2)) == ("#440154", "#3B528B", "#FDE725", "#FDE725")


@pytest.mark.parametrize("arguments", [{"score": float("nan")}, {"score": -0.1}, {"top": -1}, {"top": 1.5}])
def test_filters_out_of_range_are_rejected(arguments: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=r"give a (whole )?number"):
        result().filter(**arguments)  # type: ignore[arg-type]
