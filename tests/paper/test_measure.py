"""The RPN's variants in test, on a small network."""

from typing import Any

import pytest
import torch

from rcnn.config import Anchors
from rcnn.data.loading.loader import Item
from rcnn.detector import Detector
from rcnn.model import boxes as box_ops
from rcnn.model.anchors import cell_anchors
from rcnn.model.structures import Proposals
from rcnn.paper.anchors import three_scales
from rcnn.paper.mean_proposals import names_of, shapes_of, sums_of
from rcnn.paper.measure import RPNProposals
from rcnn.paper.proposals import RANDOM, without_boxes, without_scores
from rcnn.presets import build, settings_of
from tests.model import tiny


@pytest.fixture(scope="module")
def rpn() -> Detector:
    changes = ["preprocess.short=64", "preprocess.long=96", "model.channels=8", "rpn.min_size=0", "roi.head=none"]
    torch.manual_seed(0)
    settings = settings_of("tiny-fpn", changes)
    model = build(settings, 2)
    with torch.no_grad():  # larger outputs, so that boxes differ from their anchors
        model.rpn.head.reg.weight.mul_(30)
        model.rpn.head.cls.weight.mul_(30)
    return Detector(model, settings, ("disc", "square"), device="cpu")


def batch() -> Item:
    images, targets = tiny.batch(2, seed=0)
    return Item(images, targets, torch.tensor([11, 12]), torch.tensor([0, 1]))


def propose(detector: Detector, rpn: dict[str, Any], change: Any = None, item: Item | None = None) -> Any:
    return RPNProposals(detector.with_settings({"rpn": rpn}), change)(item or batch())


def anchors(detector: Detector) -> Any:
    return torch.cat(detector.runner.execute(batch().batch, fields=()).rpn.anchors)


def test_without_its_boxes_the_rpn_proposes_clipped_anchors_in_the_order_of_its_scores(rpn: Detector) -> None:
    proposals = propose(rpn, {"post_test": 30}, without_boxes)
    clipped = box_ops.clip(anchors(rpn)[proposals.anchor], batch().batch.sizes)
    assert proposals.valid.all()
    assert torch.allclose(proposals.boxes, clipped, atol=1e-4)
    assert (proposals.scores.diff(dim=1) <= 0).all()
    refined = propose(rpn, {"post_test": 30})
    assert not torch.allclose(refined.boxes, box_ops.clip(anchors(rpn)[refined.anchor], batch().batch.sizes))


def test_without_scores_the_proposals_are_a_draw_from_all_anchors_that_an_image_keeps(rpn: Detector) -> None:
    everything = anchors(rpn).shape[0]
    proposals = propose(rpn, {**RANDOM, "post_test": everything}, without_scores)
    assert sorted(proposals.anchor[0].tolist()) == list(range(everything))
    few = propose(rpn, {**RANDOM, "post_test": 40}, without_scores)
    assert torch.equal(few.anchor, proposals.anchor[:, :40])
    assert not torch.equal(few.anchor[0], few.anchor[1])
    turned = batch()
    turned = Item(*(type(part)(*(t.flip(0) for t in part)) for part in turned[:2]), turned.seeds.flip(0), turned.index)
    assert torch.equal(propose(rpn, {**RANDOM, "post_test": 40}, without_scores, turned).anchor, few.anchor.flip(0))
    # A uniform draw hits each level by its number of anchors: four fifths and more are of the finest.
    assert (propose(rpn, {**RANDOM, "post_test": 200}, without_scores).level == 0).double().mean() > 0.6


def test_with_nms_1_all_boxes_of_every_level_stay(rpn: Detector) -> None:
    plain = propose(rpn, {"pre_test": 100, "post_test": 6000})
    every = propose(rpn, {"pre_test": 100, "post_test": 6000, "nms": 1.0})
    out = rpn.runner.execute(batch().batch, fields=()).rpn
    expected = sum(min(100, level.shape[1]) for level in out.logits)
    assert every.valid.sum(dim=1).tolist() == [expected, expected]
    assert plain.valid.sum() < every.valid.sum()
    assert every.boxes.shape == (2, 6000, 4)


def test_three_scales_of_each_level() -> None:
    assert three_scales(((128, 256, 512),)) == ((128, 256, 512),)
    assert three_scales(((32, 64, 128, 256),)) == ((32, 64, 128),)
    (fine, coarse) = three_scales(((32,), (64,)))
    assert fine == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))
    assert coarse == pytest.approx(tuple(2 * size for size in fine))


@pytest.mark.parametrize("order", ["size", "ratio"])
@pytest.mark.parametrize("ratio", ["h/w", "w/h"])
def test_shapes_are_those_of_the_anchors_in_the_order_of_the_head(order: str, ratio: str) -> None:
    anchors = Anchors(sizes=((16, 24), (32, 48)), ratios=(0.5, 1.0, 3.0), order=order, ratio=ratio)
    shapes = list(shapes_of(anchors))
    assert [shape.level for shape in shapes] == [0] * 6 + [1] * 6
    box = torch.cat([cell_anchors(anchors, level, torch.float64) for level in (0, 1)])
    width, height = (box[:, 2:] - box[:, :2]).unbind(dim=1)
    assert [shape.size for shape in shapes] == pytest.approx((width * height).sqrt().tolist())
    assert [shape.ratio for shape in shapes] == pytest.approx((width / height).tolist())


def test_rows_have_the_names_of_table_1_and_the_level_where_they_need_it() -> None:
    assert names_of(list(shapes_of(settings_of("paper-zf").anchors))) == (
        *("128, 2:1", "256, 2:1", "512, 2:1", "128, 1:1", "256, 1:1", "512, 1:1"),
        *("128, 1:2", "256, 1:2", "512, 1:2"),
    )
    twice = Anchors(sizes=((32,), (32,)), ratios=(1.0,))
    assert names_of(list(shapes_of(twice))) == ("32, 1:1, level 1", "32, 1:1, level 2")


def test_sums_of_sides_go_to_the_anchor_of_the_cell() -> None:
    """Two levels of 2 anchors a cell; the first has 3 cells, so that anchor 7 is the second of the second level."""
    proposals = Proposals(
        boxes=torch.tensor(
            [
                [[0.0, 0, 10, 20], [5, 5, 8, 9], [0, 0, 100, 50]],
                [[1, 1, 3, 2], [0, 0, 9, 9], [0, 0, 0, 0]],
            ]
        ),
        scores=torch.ones(2, 3),
        valid=torch.tensor([[True, True, True], [True, True, False]]),
        level=torch.tensor([[0, 0, 1], [0, 1, 0]]),
        anchor=torch.tensor([[0, 4, 7], [3, 6, 0]]),
    )
    assert sums_of(proposals, 4, 2).tolist() == [[13, 24, 2], [2, 1, 1], [9, 9, 1], [100, 50, 1]]
