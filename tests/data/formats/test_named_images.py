"""Images are found by the names that files of labels contain."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.formats.draft import Draft, Layout, Reading
from rcnn.data.formats.named_images import NamedImages, usual_places
from tests.data import sets


def found(root: Path, *names: str) -> Draft:
    draft = Draft(names[0], 1, None)
    NamedImages(Layout("csv", root, {}), usual_places(root, root)).find(draft, "labels:1", *names)
    return draft


@pytest.mark.parametrize(
    "name", ["a.jpg", "cam/a.jpg", "images/cam/a.jpg", "C:\\set\\images\\cam\\a.jpg", "/home/ann/cam/a.jpg", "b/a.jpg"]
)
def test_an_image_is_found_by_its_path_its_end_or_its_name(tmp_path: Path, name: str) -> None:
    sets.image(tmp_path / ("images/a.jpg" if name in ("a.jpg", "b/a.jpg") else "images/cam/a.jpg"))
    draft = found(tmp_path, name)
    assert draft.path is not None
    assert (draft.name, draft.faults) == (draft.path.relative_to(str(tmp_path)).as_posix(), [])


def test_the_first_name_that_exists_is_taken(tmp_path: Path) -> None:
    sets.image(tmp_path / "b.jpg")
    sets.image(tmp_path / "c.jpg")
    assert found(tmp_path, "a.jpg", "b.jpg", "c.jpg").name == "b.jpg"


def test_two_paths_with_one_file_name_are_not_the_same_image(tmp_path: Path) -> None:
    sets.image(tmp_path / "images/1.jpg")
    images = NamedImages(Layout("csv", tmp_path, {}), usual_places(tmp_path, tmp_path))
    first, second = Draft("one/1.jpg", 1, None), Draft("two/1.jpg", 2, None)
    images.find(first, "labels:1", "one/1.jpg")
    images.find(second, "labels:2", "two/1.jpg")
    assert (first.path, second.path) == (tmp_path / "images/1.jpg", None)
    assert "image `two/1.jpg` is missing" in second.faults[0][1]


@given(st.lists(st.tuples(*[st.floats(-9, 9)] * 2), min_size=1))
def test_the_enclosing_box_is_the_smallest_that_contains_all_points(points: list[tuple[float, float]]) -> None:
    reading = Reading(lambda numbers: (numbers, numbers[:, 0] == numbers[:, 2]))
    left, top, right, bottom = reading.enclose("polygon", [number for point in points for number in point])
    assert all(left <= x <= right and top <= y <= bottom for x, y in points)
    assert {left, right} <= {x for x, _ in points}
    assert {top, bottom} <= {y for _, y in points}
    assert reading.all_notes() == ("read as the boxes that enclose them: 1 polygon",)
