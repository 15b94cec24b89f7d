"""The RPN's variants in test, on a small network."""

from typing import Any

import pytest
import torch

from rcnn.data.loader import Item
from rcnn.detector import Detector
from rcnn.model import boxes as box_ops
from rcnn.paper.anchors import three_scales
from rcnn.paper.measure import OfRPN, without_boxes, without_scores
from rcnn.paper.proposals import RANDOM
from rcnn.presets import build, settings_of
from tests.model import tiny


@pytest.fixture(scope="module")
def rpn() -> Detector:
    changes = ["preprocess.short=64", "preprocess.long=96", "model.channels=8", "rpn.min_size=0", "roi.head=none"]
    torch.manual_seed(0)
    settings = settings_of("tiny-fpn", changes)
    model = build(settings, 2)
    with torch.no_grad():  # deltas that are seen
        model.rpn.head.reg.weight.mul_(30)
        model.rpn.head.cls.weight.mul_(30)
    return Detector(model, settings, ("disc", "square"), device="cpu")


def batch() -> Item:
    images, targets = tiny.batch(2, seed=0)
    return Item(images, targets, torch.tensor([11, 12]), torch.tensor([0, 1]))


def propose(detector: Detector, rpn: dict[str, Any], change: Any = None, item: Item | None = None) -> Any:
    return OfRPN(detector.with_settings({"rpn": rpn}), change)(item or batch())


def anchors(detector: Detector) -> Any:
    return torch.cat(detector.runner.run(batch().batch, wanted=()).rpn.anchors)


def test_without_its_boxes_the_rpn_proposes_clipped_anchors_in_the_order_of_its_scores(rpn: Detector) -> None:
    found = propose(rpn, {"post_test": 30}, without_boxes)
    clipped = box_ops.clip(anchors(rpn)[found.anchor], batch().batch.sizes)
    assert found.valid.all()
    assert torch.allclose(found.boxes, clipped, atol=1e-4)
    assert (found.scores.diff(dim=1) <= 0).all()
    refined = propose(rpn, {"post_test": 30})
    assert not torch.allclose(refined.boxes, box_ops.clip(anchors(rpn)[refined.anchor], batch().batch.sizes))


def test_without_scores_the_proposals_are_a_draw_from_all_anchors_that_an_image_keeps(rpn: Detector) -> None:
    everything = anchors(rpn).shape[0]
    found = propose(rpn, {**RANDOM, "post_test": everything}, without_scores)
    assert sorted(found.anchor[0].tolist()) == list(range(everything))
    few = propose(rpn, {**RANDOM, "post_test": 40}, without_scores)
    assert torch.equal(few.anchor, found.anchor[:, :40])
    assert not torch.equal(few.anchor[0], few.anchor[1])
    turned = batch()
    turned = Item(*(type(part)(*(t.flip(0) for t in part)) for part in turned[:2]), turned.seeds.flip(0), turned.index)
    assert torch.equal(propose(rpn, {**RANDOM, "post_test": 40}, without_scores, turned).anchor, few.anchor.flip(0))
    # A uniform draw hits each level by its number of anchors: four fifths and more are of the finest.
    assert (propose(rpn, {**RANDOM, "post_test": 200}, without_scores).level == 0).double().mean() > 0.6


def test_with_nms_1_all_boxes_of_every_level_stay(rpn: Detector) -> None:
    plain = propose(rpn, {"pre_test": 100, "post_test": 6000})
    every = propose(rpn, {"pre_test": 100, "post_test": 6000, "nms": 1.0})
    out = rpn.runner.run(batch().batch, wanted=()).rpn
    kept = sum(min(100, level.shape[1]) for level in out.logits)
    assert every.valid.sum(dim=1).tolist() == [kept, kept]
    assert plain.valid.sum() < every.valid.sum()
    assert every.boxes.shape == (2, 6000, 4)


def test_three_scales_of_each_level() -> None:
    assert three_scales(((128, 256, 512),)) == ((128, 256, 512),)
    assert three_scales(((32, 64, 128, 256),)) == ((32, 64, 128),)
    (fine, coarse) = three_scales(((32,), (64,)))
    assert fine == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))
    assert coarse == pytest.approx(tuple(2 * size for size in fine))
