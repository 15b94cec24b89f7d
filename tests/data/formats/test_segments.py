from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as oracle

from rcnn.data.formats.segments import MAX_MASK_SIDE, MIN_IOU, Segment, check_polygons, contradiction, segment_of
from rcnn.metrics.overlap import pair_iou

masks = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))
coordinates = st.floats(0, 600) | st.integers(0, 600)
polygons = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8), min_size=1, max_size=2)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = oracle.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def plain(mask: np.ndarray) -> dict[str, Any]:
    """Return the runs of a mask as a list; the first one counts zeros."""
    pixels = np.concatenate(([0], mask.ravel(order="F"), [2]))
    runs = np.diff(np.flatnonzero(np.diff(pixels)), prepend=0)
    return {"size": list(mask.shape), "counts": runs.tolist()}


def checked(segmentation: Any) -> Segment:
    check_polygons(segmentation)
    return segment_of(segmentation)


@given(masks, st.sampled_from((compressed, plain)))
def test_the_box_of_a_mask_covers_its_pixels(mask: np.ndarray, form: Any) -> None:
    if not mask.any():
        with pytest.raises(ValueError, match="no pixel of the mask is set"):
            segment_of(form(mask))
        return
    rows, columns = np.nonzero(mask)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert segment_of(form(mask)) == Segment("mask", tuple(map(float, box)), mask.shape)
    left, top, width, height = oracle.toBbox(oracle.encode(np.asfortranarray(mask))).tolist()
    assert box == (left, top, left + width, top + height)


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=30))
def test_runs_of_any_length_are_decompressed(runs: list[int]) -> None:
    size = [MAX_MASK_SIDE, MAX_MASK_SIDE]
    text = oracle.frPyObjects({"counts": runs, "size": size}, *size)["counts"].decode()
    try:
        expected = segment_of({"counts": runs, "size": size})
    except ValueError:
        with pytest.raises(ValueError, match="no pixel"):
            segment_of({"counts": text, "size": size})
    else:
        assert segment_of({"counts": text, "size": size}) == expected


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ("text", "neither a list of polygons nor a mask"),
        (7, "neither a list of polygons nor a mask"),
        ([1, 2, 3, 4, 5, 6], "each polygon must be a list of finite numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "each polygon must be a list"),
        ([[]], "each polygon must be a list"),
        ([[1, 2, 3, 4, 5]], "each polygon must be a list"),
        ([["1", "2", "3", "4"]], "each polygon must be a list"),
        ([[1, 2, "3", 4]], "each polygon must be a list"),
        ([[1, 2, True, 4]], "each polygon must be a list"),
        ([[1, 2, None, 4]], "each polygon must be a list"),
        ([{"a": 1}], "each polygon must be a list"),
        ([[1, 2, float("nan"), 4, 5, 6]], "each polygon must be a list"),
        ([[1, 2, float("inf"), 4, 5, 6]], "each polygon must be a list"),
        ([[1, 2, 10**400, 4, 5, 6]], "each polygon must be a list"),
        ({}, "the size of the mask must be two integers"),
        ({"size": [4.0, 4], "counts": [4, 4]}, "the size of the mask must be two integers"),
        ({"size": [True, 4], "counts": [4, 4]}, "the size of the mask must be two integers"),
        ({"size": [0, 4], "counts": [4, 4]}, "the size of the mask, 4x0, is not between"),
        ({"size": [4, 10**9], "counts": [4, 4]}, "is not between"),
        ({"size": [4, 4]}, "the counts of the mask must be a list of integers"),
        ({"size": [4, 4], "counts": [4, 4.5]}, "the counts of the mask must be a list of integers"),
        ({"size": [4, 4], "counts": [4, -1]}, "the runs of the mask do not fit its size of 4x4"),
        ({"size": [4, 4], "counts": [10, 7]}, "the runs of the mask do not fit its size of 4x4"),
        ({"size": [4, 4], "counts": [0, 10**30]}, "a count of the mask is too large"),
        ({"size": [4, 4], "counts": [2**62, 2**62, 2**62]}, "the runs of the mask do not fit"),
        ({"size": [4, 4], "counts": []}, "no pixel of the mask is set"),
        ({"size": [4, 4], "counts": [16]}, "no pixel of the mask is set"),
        ({"size": [4, 4], "counts": ""}, "the compressed counts of the mask are damaged"),
        ({"size": [4, 4], "counts": "P"}, "the compressed counts of the mask are damaged"),
        ({"size": [4, 4], "counts": "44 "}, "the compressed counts of the mask are damaged"),
        ({"size": [4, 4], "counts": "4ü"}, "the compressed counts of the mask are damaged"),
        ({"size": [4, 4], "counts": "oooooooooooo0"}, "a count of the mask is too large"),
        ({"size": [4, 4], "counts": "ooooooooooo?ooooooooooo?"}, "the runs of the mask do not fit"),
    ],
)
def test_a_malformed_segmentation_is_refused_with_the_reason(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        checked(segmentation)


def test_several_polygons_have_one_box() -> None:
    assert segment_of([[5, 6, 20, 6.5, 9, 30], [50, 2, 60.5, 3]]) == Segment("polygon", (5, 2, 60.5, 30))


@example([[(0, 0), (0, 0), (1, 1)]], (0, 0, 0, 4))
@given(polygons, st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_a_box_contradicts_polygons_by_its_iou(points: Any, box: Any) -> None:
    parts = [[number for point in part for number in point] for part in points]
    segment = segment_of(parts)
    x, y, width, height = box
    corners = np.array([x, y, x + width, y + height])
    iou = float(pair_iou(corners, np.array(segment.box)))
    x1, y1, x2, y2 = segment.box
    says_nothing = (x2 - x1) * (y2 - y1) <= 0 or np.abs(corners - segment.box).max() <= 2
    if abs(iou - MIN_IOU) > 1e-9:
        assert contradiction(box, parts) == (None if says_nothing or iou > MIN_IOU else segment)
    assert contradiction((x1, y1, x2 - x1, y2 - y1), parts) is None


@given(masks.filter(np.any), st.integers(2, 9))
def test_a_box_of_another_size_contradicts_every_polygon_and_mask(mask: np.ndarray, scale: int) -> None:
    """Of polygons with many points, only some are compared at first."""
    x1, y1, x2, y2 = (10 * number for number in segment_of(plain(mask)).box)
    turns = np.linspace(0, 2 * np.pi, 100)
    ellipse = np.stack((x1 + (x2 - x1) * (1 + np.cos(turns)) / 2, y1 + (y2 - y1) * (1 + np.sin(turns)) / 2), axis=1)
    large = plain(np.kron(mask, np.ones((10, 10), np.uint8)))
    for segmentation in ([ellipse.ravel().tolist()], large):
        assert contradiction((x1, y1, x2 - x1, y2 - y1), segmentation) is None
        assert contradiction((scale * x1, scale * y1, scale * (x2 - x1), scale * (y2 - y1)), segmentation)
        assert contradiction((x1 / scale, y1 / scale, (x2 - x1) / scale, (y2 - y1) / scale), segmentation)
