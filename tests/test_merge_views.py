"""Views of a picture and pooling of their detections: an object that fits into a view is found exactly once."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from rcnn.config import Settings, override
from rcnn.errors import SettingsError
from rcnn.images.batch import Preprocessor, Size
from rcnn.images.views import View, Viewer, window_starts
from rcnn.merge_views import Pooler, kept_rows, pool
from rcnn.model.suppress import NMS, Suppression
from rcnn.result import Result

Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(n, 4) boxes, (n,) scores, (n,) labels."""


def viewer(*changes: str, scale: float | None = None) -> Viewer:
    chosen = override(Settings(), ["preprocess.short=64", "preprocess.long=96", *changes])
    return Viewer(Preprocessor(chosen.preprocess), chosen, scale)


def result(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, size: Size = (60, 100)) -> Result:
    return Result(boxes.astype(np.float32).reshape(-1, 4), scores, labels, ("a", "b", "c"), None, size)


def detected(objects: np.ndarray, view: View) -> Result:
    """Return what a perfect network detects of objects of class 0: the part of each that is in the window."""
    low, high = np.array([view.left, view.top] * 2), np.array([view.width, view.height] * 2)
    boxes = (objects - low).clip(0, high)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0]
    return result(boxes, np.full(len(boxes), 0.9, np.float32), np.zeros(len(boxes), np.int64), view.size)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_object_no_larger_than_the_overlap_is_found_exactly_once(data: st.DataObject) -> None:
    size = data.draw(st.integers(65, 400)), data.draw(st.integers(1, 400))
    tiled = viewer("predict.tile=64", f"predict.overlap={data.draw(st.sampled_from([0.2, 0.5]))}")
    overlap = round(64 * tiled.overlap)
    sides = [data.draw(st.floats(1, min(overlap, side))) for side in size]
    top, left = (data.draw(st.floats(0, length - side)) for length, side in zip(size, sides, strict=True))
    box = np.array([[left, top, left + sides[1], top + sides[0]]])
    views = tiled.views(size)
    merged, _ = pool([detected(box, view) for view in views], views, size, NMS(0.5))
    np.testing.assert_allclose(merged.boxes, box, atol=1e-3)
    assert merged.size == size


@given(length=st.integers(1, 10_000), side=st.integers(64, 3000), share=st.floats(0, 1))
def test_windows_begin_and_end_with_the_picture_and_overlap_enough(length: int, side: int, share: float) -> None:
    overlap = int(side * 7 / 8 * share)
    begin = window_starts(length, side, overlap)
    assert begin[0] == 0
    assert begin[-1] + side == length or (length <= side and begin == [0])
    assert all(0 < b - a <= side - overlap for a, b in pairwise(begin))
    assert len(begin) <= 2 + length / (side - overlap)  # linear


def test_a_cut_box_is_dropped_if_an_uncut_one_of_its_class_covers_more_than_half_of_it() -> None:
    uncut, other, cut = [0, 0, 40, 20], [60, 0, 80, 20], [20, 0, 50, 20]  # two thirds of the last one are covered
    boxes = np.array([uncut, other, cut, [61, 0, 80, 20]], np.float32)
    scores, is_cut = np.array([0.3, 0.8, 0.9, 0.7], np.float32), np.array([False, False, True, False])

    def rows(*labels: int) -> list[int]:
        return kept_rows(boxes, scores, np.array(labels), is_cut, NMS(0.5))[0].tolist()

    assert rows(0, 0, 0, 0) == [1, 0]
    assert rows(1, 0, 0, 0) == [2, 1, 0]  # of different classes
    boxes[2] = [20, 0, 60, 20]  # exactly half
    assert rows(0, 0, 0, 0) == [2, 1, 0]


def test_an_object_larger_than_every_window_stays_in_parts_with_a_remark() -> None:
    viewer_64 = viewer("predict.tile=64")
    views, box = viewer_64.views((64, 128)), np.array([[10.0, 0, 120, 64]])
    chosen = override(Settings(), ["preprocess.short=64", "preprocess.long=96", "predict.tile=64"])
    pooler = Pooler(viewer_64, chosen, Suppression.of(chosen))
    parts = [detected(box, view) for view in views]
    assert len(pooler.detections(parts, views, (64, 128), 0.95)) == len(views) == 3
    assert not pooler.remarks
    pooler.detections(parts, views, (64, 128), 0.5)
    assert "overlap of the windows, 13 pixels" in pooler.remarks["cut"]


def test_edges_of_the_picture_do_not_cut() -> None:
    view = View(0, 50, 60, 50, (60, 50))  # the right end of a picture
    boxes = np.array([[51, 0, 70, 20], [60, 40, 100, 60], [53, 0, 100, 60]], np.float32)
    assert view.is_cut(boxes, (60, 100)).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("size", "scale", "changes", "windows"),
    [
        ((60, 100), 1.0, (), 1),  # off
        ((600, 1000), 1.0, (), 1),
        ((64, 64), None, ("predict.tile=64",), 1),
        ((64, 65), None, ("predict.tile=64",), 2),
        ((120, 120), 1.0, ("predict.tile=auto",), 1),  # half the scale is within the limit
        ((130, 130), 1.0, ("predict.tile=auto",), 4),  # as large as preprocess.long
        ((130, 130), 0.5, ("predict.tile=auto",), 1),
        ((70, 130), 1.0, ("predict.tile=auto",), 1),
    ],
)
def test_which_pictures_are_cut(size: Size, scale: float | None, changes: Sequence[str], windows: int) -> None:
    chosen = viewer(*changes, scale=scale)
    views = chosen.views(size)
    assert len(views) == windows
    if windows == 1:
        assert tuple(views) == (View(0, 0, *size, chosen.preprocessor.resized(size)),)
    else:
        assert {view.resized for view in views} == {(96, 96) if scale else (64, 64)}


def test_after_a_training_on_windows_every_picture_is_processed_at_the_scale_of_its_file() -> None:
    tiled = viewer("predict.tile=auto", "train.tile=64", "preprocess.long=64", scale=1.0)
    assert tiled.side == 64
    assert [(view.size, view.resized) for view in tiled.views((70, 130))] == [((64, 64), (64, 64))] * 6
    assert tuple(tiled.views((30, 40))) == (View(0, 0, 30, 40, (30, 40)),)


def test_windows_at_the_edge_of_the_picture_have_the_scale_of_the_others() -> None:
    assert {view.resized for view in viewer("predict.tile=128").views((40, 400))} == {(20, 64)}
    small, large = viewer("predict.tile=128").views((40, 130), (1.0, 1.5))[::2]
    assert (small.resized, large.resized) == ((20, 64), (30, 96))


def test_views_are_made_on_request_in_the_order_of_their_numbers() -> None:
    views = viewer("predict.tile=64").views((150, 200), (1.0, 1.5))
    every = list(views)
    assert len(every) == len(views)
    assert len(set(every)) == len(every)
    assert [views[number] for number in range(len(views))] == every
    assert list(views[3:-2:2]) == every[3:-2:2]
    assert views[-1] == every[-1]
    assert views.sizes == {view.resized for view in every}
    with pytest.raises(IndexError):
        views[len(every)]
    assert len(viewer("predict.tile=64").views((4_000_000, 4_000_000))) > 10**9  # would not fit into the memory


def test_auto_needs_the_scale_of_the_training() -> None:
    with pytest.raises(SettingsError, match=r"predict\.tile=auto needs the scale of the training"):
        viewer("predict.tile=auto")


def test_remarks_on_the_size_of_a_picture() -> None:
    assert viewer().remark((6000, 6000)) is None
    assert viewer(scale=1.0).remark((100, 100)) is None
    remark = str(viewer(scale=1.0).remark((600, 600)))
    assert "600x600 pixels are resized by 0.11, those of the training by 1" in remark
    assert "predict.tile=auto" in remark
    assert "64x20 pixels fit into a window" in str(viewer("predict.tile=64").remark((20, 64)))


def random_boxes(count: int, seed: int) -> Boxes:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate((low, low + random.uniform(5, 40, (count, 2))), axis=1).astype(np.float32)
    return boxes, random.random(count).astype(np.float32), random.integers(0, 3, count)


def pooled(parts: Sequence[Boxes], nms: float = 0.5, max_output: int | None = None) -> Result:
    views = (View(0, 0, 60, 100, (60, 100)),) * len(parts)
    return pool([result(*part) for part in parts], views, (60, 100), NMS(nms), max_output)[0]


def test_scales_are_pooled_by_suppression_within_classes() -> None:
    scales = [random_boxes(40, 0), random_boxes(0, 1), random_boxes(50, 2)]
    boxes, scores, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*scales, strict=True))
    survivors = batched_nms(boxes.double(), scores.double(), labels, 0.4)
    assert 30 < len(survivors) < 90
    for max_output in (20, 100):
        assert pooled(scales, 0.4, max_output).boxes.tolist() == boxes[survivors[:max_output]].tolist()


def test_the_boxes_of_a_single_scale_stay_as_they_are() -> None:
    boxes = random_boxes(7, 0)
    assert pooled([boxes], 0.0, 1).boxes.tolist() == boxes[0].tolist()


def test_scales_without_boxes_are_pooled_to_none() -> None:
    assert len(pooled([random_boxes(0, 0)] * 2)) == 0


def test_with_equal_scores_the_earlier_scale_comes_first() -> None:
    box, scores = np.array([[0, 0, 10, 10]], dtype=np.float32), np.array([0.5], dtype=np.float32)
    assert pooled([(box, scores, np.array([1])), (box + 0.1, scores, np.array([1]))]).boxes.tolist() == box.tolist()
