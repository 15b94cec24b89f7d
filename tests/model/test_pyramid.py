import numpy as np
import torch
from torchvision.ops import batched_nms

from rcnn.config import RoI
from rcnn.model.pyramid import Found, pool_scales


def found(count: int, seed: int) -> Found:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate((low, low + random.uniform(5, 40, (count, 2))), axis=1).astype(np.float32)
    return boxes, random.random(count).astype(np.float32), random.integers(0, 3, count)


def test_scales_are_pooled_by_suppression_within_classes() -> None:
    scales = [found(40, 0), found(0, 1), found(50, 2)]
    boxes, scores, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*scales, strict=True))
    every = batched_nms(boxes.double(), scores.double(), labels, 0.4)
    assert 30 < len(every) < 90
    for most in (20, 100):
        assert pool_scales(scales, RoI(nms=0.4, detections=most)).tolist() == every[:most].tolist()


def test_a_single_scale_stays_as_it_is() -> None:
    assert pool_scales([found(7, 0)], RoI(nms=0.0, detections=1)).tolist() == list(range(7))


def test_nothing_at_any_scale_is_nothing() -> None:
    assert len(pool_scales([found(0, 0)] * 2, RoI())) == 0


def test_of_equal_scores_the_earlier_scale_goes_first() -> None:
    box = np.array([[0, 0, 10, 10]], dtype=np.float32), np.array([0.5], dtype=np.float32), np.array([1])
    assert pool_scales([box, box], RoI()).tolist() == [0]
