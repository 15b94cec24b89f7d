"""Selective Search through OpenCV."""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import pytest

from rcnn.data.proposals.external import ImageProposals
from rcnn.data.proposals.search import Mode, selective_search
from rcnn.errors import SettingsError

SQUARES = [(10, 12, 40, 44), (60, 8, 90, 30)]
COLOURS = [(220, 40, 30), (30, 60, 210)]


def picture() -> np.ndarray:
    """Return an image of two plain squares on a plain background."""
    image = np.full((64, 100, 3), 235, dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(SQUARES, COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return image


def iou(box: np.ndarray, other: tuple[int, ...]) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return float(shared / (sum(areas) - shared))


def assert_ranked(boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> None:
    """Boxes lie in an image of this (height, width), and their scores fall from 1 and stay positive."""
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size[::-1]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert scores[0] == 1
    assert (np.diff(scores) < 0).all()
    assert scores[-1] > 0


def assert_repeatable(search: Callable[..., ImageProposals]) -> None:
    """A search gives the same boxes twice, and with `count` the first ones of them."""
    first, second, few = search(), search(), search(count=5)
    assert len(first.boxes) > 10
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(few.boxes, first.boxes[:5])


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_plain_squares_are_found_where_they_lie(mode: Mode) -> None:
    boxes, scores = selective_search(picture(), mode)
    for square in SQUARES:
        assert max(iou(box, square) for box in boxes) > 0.85
    assert max(iou(box, (0, 0, 100, 64)) for box in boxes) == 1
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert_ranked(boxes, scores, (64, 100))


def test_every_call_gives_the_same_boxes_in_the_same_order() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    assert_repeatable(partial(selective_search, noise))


def test_colours_come_red_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV takes blue first."""
    seen: list[np.ndarray] = []

    class Search:
        def setBaseImage(self, image: np.ndarray) -> None:
            seen.append(image)

        def switchToSelectiveSearchFast(self) -> None: ...

        def process(self) -> np.ndarray:
            return np.array([[1, 2, 30, 40]])

    cv2 = ModuleType("cv2")
    cv2.ximgproc = ModuleType("ximgproc")  # type: ignore[attr-defined]
    cv2.ximgproc.segmentation = ModuleType("segmentation")  # type: ignore[attr-defined]
    cv2.ximgproc.segmentation.createSelectiveSearchSegmentation = Search  # type: ignore[attr-defined]
    cv2.getNumThreads, cv2.setNumThreads = lambda: 1, lambda _: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    assert selective_search(picture()).boxes.tolist() == [[1, 2, 31, 42]]
    assert seen[0][12, 10].tolist() == [30, 40, 220]


@pytest.mark.parametrize("installed", [None, ModuleType("cv2")], ids=["missing", "without contributed modules"])
def test_without_opencv_the_extra_is_named(installed: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", installed)
    message = r"Selective Search needs OpenCV with its contributed modules: pip install 'rcnn\[proposals\]'"
    with pytest.raises(SettingsError, match=message):
        selective_search(picture())
