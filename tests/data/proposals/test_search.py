"""Searches by name over files, and the cache of their boxes on disk."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcnn.data.proposals.search as search_file
from rcnn.config import Data
from rcnn.config.files import cache_folder
from rcnn.data.proposals.external import ImageProposals
from rcnn.data.proposals.search import SEARCHES, edge_boxes, search_files, selective_search, structured_edges
from rcnn.errors import ImageError, SettingsError
from tests.data.proposals.edges import write_edge_model
from tests.data.proposals.test_selective_search import picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rcnn/proposals"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for name, image in (("a.png", picture()), ("b.png", picture()[:, ::-1])):
        Image.fromarray(image).save(tmp_path / name)
    return [tmp_path / "a.png", tmp_path / "b.png"]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the modes of all searches, which grows with each search."""
    made: list[str] = []

    def counted(image: np.ndarray, mode: str) -> ImageProposals:
        made.append(mode)
        return selective_search(image, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(search_file, "selective_search", counted)
    return made


def found(paths: list[Path], name: str = "selective-search", **settings: str) -> list[ImageProposals]:
    outcomes = list(search_files(paths, name, Data(**settings)))
    assert all(isinstance(outcome, ImageProposals) for outcome in outcomes)
    return outcomes  # type: ignore[return-value]


def test_boxes_are_cached_and_a_changed_image_is_searched_again(
    paths: list[Path], searches: list[str], cache: Path
) -> None:
    first = found(paths)
    assert np.array_equal(first[0].boxes, selective_search(picture()).boxes)
    assert searches == ["fast"] * 2
    assert cache_folder("proposals") == cache
    assert len(list(cache.iterdir())) == 2
    again = found(paths[::-1])[::-1]
    assert searches == ["fast"] * 2
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
    Image.fromarray(picture()[::-1]).save(paths[0])
    turned, _ = found(paths)
    assert searches == ["fast"] * 3
    assert not np.array_equal(turned.boxes, first[0].boxes)
    found(paths, "selective-search-quality")
    assert searches[3:] == ["quality"] * 2


def test_an_interrupted_search_continues(paths: list[Path], searches: list[str], cache: Path) -> None:
    found(paths[:1])
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])  # the power went
    found(paths[1:])
    assert len(searches) == 2
    found(paths)
    assert len(searches) == 3
    assert len(list(cache.iterdir())) == 2


def test_an_image_that_can_not_be_read_gives_its_error(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    files = [tmp_path / "empty.png", paths[0], tmp_path / "none.png"]
    empty, sound, missing = search_files(files, "selective-search", Data())
    assert (type(empty), type(sound), type(missing)) == (ImageError, ImageProposals, ImageError)
    assert "empty.png" in str(empty)
    assert "none.png: can't be read: No such file" in str(missing)


@pytest.mark.parametrize("name", SEARCHES)
def test_without_opencv_every_search_names_the_extra(
    name: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Data(edge_model=str(write_edge_model(tmp_path / "model.yml")))
    monkeypatch.setitem(sys.modules, "cv2", None)
    message = r"needs OpenCV with its contributed modules: pip install 'rcnn\[proposals\]'"
    with pytest.raises(SettingsError, match=message):
        list(search_files(paths, name, settings))


def test_edge_boxes_of_another_model_are_searched_again(paths: list[Path], tmp_path: Path, cache: Path) -> None:
    model = write_edge_model(tmp_path / "model.yml.gz")
    first, _ = found(paths, "edge-boxes", edge_model=str(model))
    detect, _ = structured_edges(model)
    assert len(first.boxes)
    assert np.array_equal(first.boxes, edge_boxes(picture(), detect).boxes)
    again, _ = found(paths, "edge-boxes", edge_model=str(model))
    assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(first.scores, again.scores)
    assert len(list(cache.iterdir())) == 2
    write_edge_model(model, threshold=0.9)
    found(paths, "edge-boxes", edge_model=str(model))
    assert len(list(cache.iterdir())) == 4


def test_an_image_too_large_for_a_search_gives_its_error(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcnn.data.proposals.search.MAX_EDGE_BOXES_SIZE", 100)
    model = write_edge_model(tmp_path / "model.yml")
    first, _ = search_files(paths, "edge-boxes", Data(edge_model=str(model)))
    assert isinstance(first, ImageError)
    assert "a.png: EdgeBoxes takes images of up to 100 pixels, width + height; got 100 x 64" in str(first)
