"""EdgeBoxes through OpenCV: on edges that are drawn by hand, from gradients, and from a model file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.config import Data
from rcnn.data.proposals.search import Edges, edge_boxes, model_file, structured_edges
from rcnn.errors import ImageError, SettingsError
from tests.data.proposals.edges import FOREST, write_edge_model
from tests.data.proposals.test_selective_search import assert_ranked, assert_repeatable, iou

OBJECTS = [(30, 24, 90, 84), (110, 40, 180, 100)]
SIZE = (140, 220)


def picture() -> np.ndarray:
    """Return an image of two plain rectangles on a plain background."""
    image = np.full((*SIZE, 3), 235, dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(OBJECTS, [(220, 40, 30), (30, 60, 210)], strict=True):
        image[y1:y2, x1:x2] = colour
    return image


def drawn(image: np.ndarray, objects: list[tuple[int, int, int, int]] = OBJECTS) -> Edges:
    """Return the outlines of the objects, one pixel wide; a vertical line has a horizontal normal."""
    strength, direction = np.zeros((2, *image.shape[:2]), dtype=np.float32)
    for x1, y1, x2, y2 in objects:
        for y in (y1, y2 - 1):
            strength[y, x1:x2], direction[y, x1:x2] = 1, np.pi / 2
        for x in (x1, x2 - 1):
            strength[y1:y2, x], direction[y1:y2, x] = 1, 0
    return Edges(strength, direction)


def gradients(image: np.ndarray) -> Edges:
    """Return edges where brightness changes, from differences of neighbours, without a forest."""
    brightness = image.astype(np.float32).mean(axis=2) / 255
    dy, dx = np.gradient(brightness)
    return Edges(np.hypot(dx, dy).astype(np.float32), np.mod(np.arctan2(dy, dx), np.pi).astype(np.float32))


@pytest.fixture
def forest(tmp_path: Path) -> Callable[[np.ndarray], Edges]:
    return structured_edges(write_edge_model(tmp_path / "model.yml.gz"))[0]


@pytest.mark.parametrize("which", ["drawn", "gradients", "forest"])
def test_objects_are_found_where_they_lie_and_come_first(which: str, forest: Callable[[np.ndarray], Edges]) -> None:
    boxes, scores = edge_boxes(picture(), {"drawn": drawn, "gradients": gradients, "forest": forest}[which])
    assert len(boxes) > 20
    for box, expected in zip(sorted(boxes[:2].tolist()), OBJECTS, strict=True):
        assert iou(np.array(box), expected) > 0.6
    assert_ranked(boxes, scores, SIZE)


def noise() -> np.ndarray:
    """Return an image with edges everywhere."""
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def test_boxes_reach_all_edges_of_the_image_and_no_further() -> None:
    """OpenCV's own rectangles are shifted by a pixel and lack their last one: they would begin at 1."""
    boxes = edge_boxes(noise(), gradients).boxes
    assert boxes[:, :2].min(axis=0).tolist() == [0, 0]
    assert boxes[:, 2:].max(axis=0).tolist() == [120, 90]


def test_every_call_gives_the_same_boxes_best_first() -> None:
    assert_repeatable(lambda **count: edge_boxes(noise(), gradients, **count))


def test_without_edges_and_in_tiny_images_there_are_no_boxes(forest: Callable[[np.ndarray], Edges]) -> None:
    for size in ((64, 64), (31, 200), (1, 1), (32, 32)):
        boxes, scores = edge_boxes(np.full((*size, 3), 99, dtype=np.uint8), forest)
        assert (boxes.shape, scores.shape) == ((0, 4), (0,))


def test_an_image_beyond_opencvs_table_is_refused() -> None:
    with pytest.raises(ImageError, match=r"up to 19,998 pixels, width \+ height; got 19990 x 9"):
        edge_boxes(np.zeros((9, 19_990, 3), dtype=np.uint8), drawn)


def test_the_model_sees_edges_where_brightness_changes(forest: Callable[[np.ndarray], Edges]) -> None:
    strength, direction = forest(picture())
    assert strength.shape == direction.shape == SIZE
    assert (direction >= 0).all()
    assert (direction <= np.pi).all()
    outline = np.zeros(SIZE, dtype=bool)
    for x1, y1, x2, y2 in OBJECTS:
        outline[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4] = True
        outline[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = False
        assert strength[y1 - 4 : y1 + 4, x1:x2].max() > 0.3
    assert strength[outline].sum() > 0.99 * strength.sum() > 0


@pytest.mark.parametrize("wrong", [None, "nowhere.yml.gz", "."])
def test_without_the_model_file_its_address_is_named(
    wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = r"https://github\.com/opencv/opencv_extra/.*\.yml\.gz"
    with pytest.raises(SettingsError, match=rf"needs OpenCV's model file: data\.edge_model=PATH.* from {address}"):
        model_file(Data(edge_model=wrong))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(range(256)),
        b'{"a": 1}',
        b"%YAML:1.0\n---\na: 1\n",
        FOREST.replace("numberOfTrees: 1", "numberOfTrees: 0").encode(),
        FOREST.replace("   stride: 2\n", "").encode(),
        FOREST.partition("edgeBins")[0].encode(),
    ],
    ids=["empty", "bytes", "json", "another yaml", "no trees", "no stride", "cut off"],
)
def test_a_file_that_is_not_a_model_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    """OpenCV itself would divide by the number of trees."""
    text = content.decode("latin-1").replace("{feature}", "53").replace("{threshold}", "0.5")
    (tmp_path / "model.yml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"data\.edge_model=.*model\.yml: not OpenCV's model of edges \(.+\)"):
        structured_edges(tmp_path / "model.yml")
