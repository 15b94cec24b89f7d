"""Selective Search through OpenCV, and the disk that keeps what it found."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import rcnn.data.selective_search as search_file
from rcnn.config import Data
from rcnn.data.given import Given
from rcnn.data.selective_search import cache_folder, search_files, selective_search
from rcnn.errors import ImageError, SettingsError

SQUARES = [(10, 12, 40, 44), (60, 8, 90, 30)]
COLOURS = [(220, 40, 30), (30, 60, 210)]


def picture() -> np.ndarray:
    """Two plain squares on a plain ground."""
    image = np.full((64, 100, 3), 235, dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(SQUARES, COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rcnn/selective-search"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for name, image in (("a.png", picture()), ("b.png", picture()[:, ::-1])):
        Image.fromarray(image).save(tmp_path / name)
    return [tmp_path / "a.png", tmp_path / "b.png"]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes of the searches that were made."""
    made: list[str] = []

    def counted(image: np.ndarray, mode: str) -> Given:
        made.append(mode)
        return selective_search(image, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(search_file, "selective_search", counted)
    return made


def given(outcome: Given | ImageError) -> Given:
    assert isinstance(outcome, Given)
    return outcome


def iou(box: np.ndarray, other: tuple[int, ...]) -> float:
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return float(shared / (sum(areas) - shared))


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_plain_squares_are_found_where_they_lie(mode: search_file.Mode) -> None:
    boxes, scores = selective_search(picture(), mode)
    for square in SQUARES:
        assert max(iou(box, square) for box in boxes) > 0.85
    assert max(iou(box, (0, 0, 100, 64)) for box in boxes) == 1
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (100, 64)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert scores[0] == 1
    assert (np.diff(scores) < 0).all()
    assert scores[-1] > 0


def test_every_call_gives_the_same_boxes_in_the_same_order() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    first, second = selective_search(noise), selective_search(noise)
    assert len(first.boxes) > 10
    assert np.array_equal(first.boxes, second.boxes)
    few = selective_search(noise, count=5)
    assert np.array_equal(few.boxes, first.boxes[:5])


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
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    assert selective_search(picture()).boxes.tolist() == [[1, 2, 31, 42]]
    assert seen[0][12, 10].tolist() == [30, 40, 220]


def test_what_was_found_is_kept_and_a_changed_image_is_another(
    paths: list[Path], searches: list[str], cache: Path
) -> None:
    first = [given(outcome) for outcome in search_files(paths, "fast", Data())]
    assert np.array_equal(first[0].boxes, selective_search(picture()).boxes)
    assert searches == ["fast"] * 2
    assert cache_folder() == cache
    assert len(list(cache.iterdir())) == 2
    again = [given(outcome) for outcome in search_files(paths[::-1], "fast", Data())][::-1]
    assert searches == ["fast"] * 2
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
    Image.fromarray(picture()[::-1]).save(paths[0])
    turned, _ = search_files(paths, "fast", Data())
    assert searches == ["fast"] * 3
    assert not np.array_equal(given(turned).boxes, first[0].boxes)
    list(search_files(paths, "quality", Data()))
    assert searches[3:] == ["quality"] * 2


def test_a_search_that_was_broken_off_goes_on(paths: list[Path], searches: list[str], cache: Path) -> None:
    list(search_files(paths[:1], "fast", Data()))
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])  # the power went
    list(search_files(paths[1:], "fast", Data()))
    assert len(searches) == 2
    list(search_files(paths, "fast", Data()))
    assert len(searches) == 3
    assert len(list(cache.iterdir())) == 2


def test_an_image_that_can_not_be_read_gives_its_error(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    outcomes = list(search_files([tmp_path / "empty.png", paths[0], tmp_path / "none.png"], "fast", Data()))
    assert isinstance(outcomes[0], ImageError)
    assert "empty.png" in str(outcomes[0])
    assert isinstance(outcomes[1], Given)
    assert isinstance(outcomes[2], ImageError)
    assert "none.png: can't be read: No such file" in str(outcomes[2])


@pytest.mark.parametrize("installed", [None, ModuleType("cv2")], ids=["missing", "without contributed modules"])
def test_without_opencv_the_extra_is_named(
    paths: list[Path], installed: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", installed)
    said = r"Selective Search needs OpenCV with its contributed modules: pip install 'rcnn\[proposals\]'"
    with pytest.raises(SettingsError, match=said):
        selective_search(picture())
    with pytest.raises(SettingsError, match=said):
        list(search_files(paths, "fast", Data()))
