from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Settings
from rcnn.data.dataset import Record
from rcnn.metrics.types import Prediction
from rcnn.plots.contact_sheet import Tile, compare, contact_sheet


def tile(height: int, width: int, boxes: int = 2, **changes) -> Tile:
    corners = np.array([[0, 0, width / 2, height / 2], [width / 4, 0, width, height]])[:boxes]
    grey = np.full((height, width, 3), 128, np.uint8)
    return Tile(grey, corners, np.arange(boxes), "folder/name.jpg")._replace(**changes)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_images_of_any_shape_make_a_grid(tmp_path: Path, count: int) -> None:
    tiles = [tile(50, 90), tile(90, 30, boxes=0), tile(7, 7), tile(300, 400), tile(1, 1)][:count]
    contact_sheet(tiles, ("a", "b"), tmp_path / "m.jpg", columns=3, side=100)
    with Image.open(tmp_path / "m.jpg") as picture:
        columns = min(count, 3)
        assert picture.width == columns * 100 + (columns + 1) * 8
    assert [path.name for path in tmp_path.iterdir()] == ["m.jpg"]


def test_images_keep_their_proportions_and_their_order(tmp_path: Path) -> None:
    red, blue = (np.zeros((40, 80, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 255, 255
    contact_sheet([tile(40, 80, 0, image=red), tile(40, 80, 0, image=blue)], (), tmp_path / "m.png", side=100)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.height == 8 + 20 + 50 + 8
        assert picture.getpixel((58, 60)) == (255, 0, 0)
        assert picture.getpixel((166, 60)) == (0, 0, 255)


def test_truth_stands_beside_prediction(tmp_path: Path) -> None:
    boxes, labels = np.array([[0.0, 0, 40, 60], [20, 0, 80, 60]]), np.array([0, 1])
    Image.new("RGB", (80, 60), "grey").save(tmp_path / "i.png")
    record = Record(tmp_path / "i.png", "i.png", "i", (60, 80), boxes, labels, np.array([True, False]))
    found = Prediction(boxes, np.array([0.9, 0.5]), labels)
    for score, name in ((0.4, "both"), (0.7, "one")):
        compare([record] * 3, [found] * 3, score, Settings(), ("a", "b"), tmp_path / f"{name}.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "one.png") as one:
        assert both.size == (4 * 368 + 8, 2 * (270 + 20 + 8) + 8)
        left, right = ((8, 8, 368, 298), (376, 8, 744, 298))
        assert both.crop(left).tobytes() == one.crop(left).tobytes()
        assert both.crop(right).tobytes() != one.crop(right).tobytes()  # a lower-scored box is left out


def test_no_images_make_an_empty_picture(tmp_path: Path) -> None:
    contact_sheet([], (), tmp_path / "m.png")
    assert (tmp_path / "m.png").exists()


def test_a_long_title_is_shortened(tmp_path: Path) -> None:
    contact_sheet([tile(30, 30, title="x" * 300)], ("a", "b"), tmp_path / "m.png", side=60)
