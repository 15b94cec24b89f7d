"""The best anchors compared with the complete grid, positives counted by hand, and fits to known sizes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from rcnn.config import RPN, Anchors, override, parse_override, validate
from rcnn.data.dataset import Dataset, Record
from rcnn.diagnose.anchors.fit import (
    Frame,
    Grid,
    best_iou,
    fit,
    frames_of,
    network_grids,
    objects_of,
    recall,
    setting_words,
)
from rcnn.diagnose.anchors.picture import plot_anchors
from rcnn.diagnose.anchors.study import Coverage, Study, count_positives, groups, study
from rcnn.errors import DataError
from rcnn.model.anchors import cell_anchors, inside, pyramid_anchors
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.presets import build, settings_of

STRIDES = (8, 16)


def frame(boxes: Sequence[Sequence[float]], size: tuple[int, int] = (90, 120), ignore: Sequence[int] = ()) -> Frame:
    """An image padded to multiples of 32, with its two levels."""
    height, width = (-(-side // 32) * 32 for side in size)
    grid = Grid((height, width), tuple((height // stride, width // stride) for stride in STRIDES))
    ignored = torch.zeros(len(boxes), dtype=torch.bool)
    ignored[list(ignore)] = True
    return Frame(grid, size, torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), ignored)


def random_boxes(count: int, size: tuple[int, int], seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (count, 2)) * size[::-1]
    return np.concatenate((low, np.minimum(low + rng.uniform(2, 80, (count, 2)), size[::-1])), axis=1).tolist()


RULES = {
    "plain": {},
    "torchvision": {"round": "half", "order": "ratio", "offset": 0.0, "stride": "image//grid"},
    "inside": {"border": 0.0},
    "nearly inside": {"border": 5.0, "offset": 0.0},
    "w/h": {"ratio": "w/h", "ratios": [0.3, 1.0]},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_best_anchor_is_that_of_the_whole_grid(rule: dict) -> None:
    anchors = Anchors.model_validate({"sizes": ((10, 24), (40, 90)), **rule})
    frames = [frame(random_boxes(40, size, i), size) for i, size in enumerate([(90, 120), (64, 64), (33, 200)])]
    best = best_iou(objects_of(frames), anchors, STRIDES)
    expected = []
    for image in frames:
        cells = [cell_anchors(anchors, level, torch.float64) for level in range(2)]
        every = torch.cat(pyramid_anchors(anchors, image.grid.cells, STRIDES, image.grid.padded, cells))
        if anchors.border is not None:
            every = every[inside(every, torch.tensor([image.size]), anchors.border)[0]]
        ious = box_iou(image.boxes, every)
        expected.append(ious.amax(dim=1) if len(every) else ious.new_zeros(len(image.boxes)))
    torch.testing.assert_close(best, torch.cat(expected), rtol=0, atol=1e-12)
    assert float(best.min()) > 0 or anchors.border is not None


def test_an_object_on_an_anchor_has_iou_one_and_one_beside_every_anchor_none() -> None:
    anchors = Anchors(sizes=((8,), (16,)), ratios=(1.0,))
    on, tiny = [8.0, 16.0, 16.0, 24.0], [0.0, 0.0, 1.0, 1.0]
    iou = best_iou(objects_of([frame([on, tiny])]), anchors, STRIDES)
    assert iou.tolist() == pytest.approx([1.0, 1 / 64])
    far = anchors.model_copy(update={"border": 0.0, "sizes": ((300.0,), (300.0,))})  # none fits into the image
    assert best_iou(objects_of([frame([on])]), far, STRIDES).tolist() == [0.0]


def test_positives_are_those_of_a_hand_count() -> None:
    anchors = Anchors(sizes=((16,), (64,)), ratios=(1.0,))
    # Anchors of 16 px have middles at 4, 12, 20, ... The box of 24 x 16 around (20, 20) has IoU 256 / 384 with the one
    # there, 192 / 448 with those 8 px left and right, 128 / 512 with those above and below.
    wide = [8.0, 12.0, 32.0, 28.0]
    exact = [52.0, 44.0, 68.0, 60.0]  # middle (60, 52): on an anchor
    ignored = [80.0, 44.0, 96.0, 60.0]
    frames = [frame([]), frame([wide, ignored, exact], ignore=[1])]
    objects = objects_of(frames)
    assert (objects.image.tolist(), objects.row.tolist()) == ([1, 1], [0, 2])
    rpn = RegionProposalNetwork(1, STRIDES, anchors, RPN())
    assert count_positives(frames, objects, rpn).tolist() == [1, 1]
    half = RegionProposalNetwork(1, STRIDES, anchors, RPN(positive_iou=0.5))
    assert count_positives(frames, objects, half).tolist() == [1, 1]
    # An anchor one cell beside the exact box has 128 / 384 with it: still too little.
    lower = RegionProposalNetwork(1, STRIDES, anchors, RPN(positive_iou=192 / 448 - 1e-3))
    assert count_positives(frames, objects, lower).tolist() == [3, 1]


def test_no_anchor_that_may_not_be_trained_counts_as_positive() -> None:
    anchors = Anchors(sizes=((16,), (64,)), ratios=(1.0,), border=0.0)
    rpn = RegionProposalNetwork(1, STRIDES, anchors, RPN(positive_iou=0.2))
    frames = [frame([[0.0, 0.0, 8.0, 8.0]], size=(32, 32))]
    # Only anchors with middles at 12, 20 lie inside; that of (12, 12) is [4, 20] and shares 16 of 304.
    objects = objects_of(frames)
    assert best_iou(objects, anchors, STRIDES).tolist() == pytest.approx([16 / 304])
    assert count_positives(frames, objects, rpn).tolist() == [1]


def test_a_fit_finds_the_shapes_that_the_objects_have() -> None:
    rng = np.random.default_rng(3)
    boxes = []
    for side, stride in ((20, 8), (50, 16)):
        middles = (rng.integers(3, 6, (60, 2)) + 0.5) * stride  # on anchors' middles
        half = np.array([side, side * 2]) / np.sqrt(2) / 2  # twice as high as wide
        boxes += np.concatenate((middles - half, middles + half), axis=1).tolist()
    objects = objects_of([frame(boxes, size=(128, 128))])
    before = Anchors(sizes=((32,), (64,)), ratios=(0.5,))
    after = fit(objects, before, STRIDES, 1.0)
    assert after.sizes[0][0] == pytest.approx(20, rel=0.06)
    assert after.sizes[1][0] == pytest.approx(50, rel=0.06)
    assert after.ratios[0] == pytest.approx(2, rel=0.1)
    assert float(best_iou(objects, after, STRIDES).mean()) > float(best_iou(objects, before, STRIDES).mean()) + 0.3
    flipped = fit(objects, before.model_copy(update={"ratio": "w/h"}), STRIDES, 1.0)
    assert flipped.ratios[0] == pytest.approx(0.5, rel=0.1)


def test_a_fit_keeps_levels_in_order_of_one_number_of_sizes_and_never_loses() -> None:
    objects = objects_of([frame(random_boxes(80, (90, 120), seed=5))])
    before = Anchors(sizes=((16,), (48,)))

    def shortfall(rule: Anchors) -> float:
        return float((0.7 - best_iou(objects, rule, STRIDES)).clamp(min=0).mean())

    more = fit(objects, before, STRIDES, sizes=2, ratios=2)
    assert [len(row) for row in more.sizes] == [2, 2]
    assert len(more.ratios) == 2
    flat = [size for row in more.sizes for size in row]
    assert flat == sorted(flat)
    same = fit(objects, before, STRIDES)
    assert shortfall(more) < shortfall(same) < shortfall(before)


@given(st.integers(0, 2**16), st.integers(1, 40), st.sampled_from([1.0, 4.0]))
@settings(deadline=None, max_examples=5)
def test_a_fit_never_ends_below_the_start(seed: int, count: int, spread: float) -> None:
    """In recall at IoU 0.5, also where objects are of all sizes."""
    boxes = random_boxes(count, (90, 120), seed=seed)
    small = [[x, y, x + (x2 - x) / spread, y + (y2 - y) / spread] for x, y, x2, y2 in boxes]
    objects = objects_of([frame([*boxes, *small])])
    before = Anchors(sizes=((16,), (48,)))
    assert recall(objects, fit(objects, before, STRIDES), STRIDES) >= recall(objects, before, STRIDES)


def test_rare_sizes_are_not_sacrificed() -> None:
    small = [[x, y, x + 20, y + 20] for x in range(0, 100, 10) for y in range(0, 70, 10)]
    large = [[10.0, 5.0, 85.0, 80.0]]
    objects = objects_of([frame([*small, *large])])
    after = fit(objects, Anchors(sizes=((30,), (60,)), ratios=(1.0,)), STRIDES)
    assert float(best_iou(objects, after, STRIDES)[-1]) > 0.7


def test_settings_to_paste_are_read_back() -> None:
    rule = Anchors(sizes=((24.1, 30), (38.9, 256)), ratios=(0.55, 1.4))
    trees = [parse_override(word) for word in setting_words(rule)]
    assert trees == [{"anchors": {"sizes": [[24.1, 30], [38.9, 256]]}}, {"anchors": {"ratios": [0.55, 1.4]}}]
    levels = {"model": {"levels": [3, 4]}, "anchors": {"sizes": [[8], [16]]}, "roi": {"levels": [3, 4]}}
    assert override(validate(levels), list(setting_words(Anchors(sizes=((9,), (20,)))))).anchors.sizes == ((9,), (20,))


def test_groups_part_the_objects_and_their_figures_add_up() -> None:
    frames = [frame(random_boxes(50, (90, 120), seed=1))]
    objects = objects_of(frames)
    rule = Anchors(sizes=((16,), (32,)))
    positives = count_positives(frames, objects, RegionProposalNetwork(1, STRIDES, rule, RPN()))
    coverage = Coverage(rule, best_iou(objects, rule, STRIDES), positives)
    result = Study(frames, objects, {"now": coverage}, (0.3, 0.7))
    for masks in groups(objects).values():
        assert (torch.stack(list(masks.values())).sum(dim=0) == 1).all()
    every = result.figures("now")
    assert every["unreached"] == sum(iou < 0.3 for iou in coverage.iou.tolist())
    assert every["recall50"] == pytest.approx(np.mean(coverage.iou.numpy() >= 0.5))
    parts = [result.figures("now", mask) for mask in groups(objects)["size"].values()]
    assert sum(part["unreached"] for part in parts) == every["unreached"]
    assert sum(part["positives"] * part["boxes"] for part in parts) == pytest.approx(float(coverage.positives.sum()))


def dataset(size: tuple[int, int], boxes: list[list[float]]) -> Dataset:
    """One image."""
    labels, ignore = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool)
    record = Record(Path("a.png"), "a.png", "a", size, np.array(boxes, float).reshape(-1, 4), labels, ignore)
    return Dataset(Path("here"), "coco", "train", ("thing",), (1,), (record,))


SMALL = ("preprocess.short=96", "preprocess.long=160")


def test_grids_and_boxes_are_those_of_the_network() -> None:
    settings = settings_of("tiny-fpn", SMALL)
    model = build(settings, 2)
    grid = network_grids(model.backbone, 3)
    (image,) = frames_of(dataset((200, 250), [[50.0, 100.0, 150.0, 200.0]]).records, settings, grid)
    assert image.size == (96, 120)
    assert image.grid.padded == (96, 128)
    with torch.no_grad():
        maps = model.backbone(torch.zeros(1, 3, 96, 128)).values()
    assert image.grid.cells == tuple((level.shape[2], level.shape[3]) for level in maps)
    assert image.boxes.tolist() == [[24.0, 48.0, 72.0, 96.0]]


def test_a_study_lists_the_objects_that_no_anchor_reaches(tmp_path: Path) -> None:
    model = build(settings_of("tiny-fpn", SMALL), 1)
    square_and_thin = dataset((96, 128), [[30.0, 30, 62, 62], [10.0, 10, 11, 90]])
    result = study(square_and_thin, model)
    assert result.unreached() == [1]
    thin = result.describe(1, square_and_thin)
    assert (thin["image"], thin["class"], thin["width"], thin["height"]) == ("a.png", "thing", 1, 80)
    assert result.figures("fitted")["iou"] > result.figures("now")["iou"]
    assert sum(result.positive_counts("now").values()) == 2
    plot_anchors(result.objects, result.coverages, (0.3, 0.7), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_no_objects_are_an_error() -> None:
    model = build(settings_of("tiny-fpn", SMALL), 1)
    with pytest.raises(DataError, match="no object"):
        study(dataset((96, 128), []), model)
