"""A custom suppressor, Soft-NMS of examples/, replaces NMS wherever a detector suppresses boxes."""

from pathlib import Path

import numpy as np
import torch

from rcnn.detector import Detector
from rcnn.images.views import View
from rcnn.merge_views import pool
from rcnn.metrics.overlap import box_iou
from rcnn.model.suppress import NMS, Suppression
from rcnn.presets import build, settings_of
from rcnn.result import Result
from tests.model import tiny
from tests.test_examples import script

SoftNMS = script("soft_nms")["SoftNMS"]


def naive(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Compute Soft-NMS of one image one box at a time, in float64."""
    left, chosen, found = scores.astype(np.float64), [], []
    for _ in range(min(count, len(boxes))):
        best = int(left.argmax())
        chosen.append(best)
        found.append(float(left[best]))
        for other in range(len(boxes)):
            if groups[other] == groups[best]:
                left[other] *= np.exp(-(box_iou(boxes[[best]], boxes[[other]])[0, 0] ** 2) / 0.5)
        left[best] = -1
    return chosen, found


def scene(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 50, (count, 2))
    boxes = np.concatenate((low, low + random.uniform(10, 40, (count, 2))), axis=1)
    return boxes, random.uniform(0.1, 1, count), random.integers(0, 2, count)


def test_soft_nms_is_that_of_a_loop_over_boxes():
    scenes = [scene(seed) for seed in range(3)]
    boxes, scores, groups = (torch.from_numpy(np.stack(parts)) for parts in zip(*scenes, strict=True))
    found = SoftNMS(min_score=0.0)(boxes, scores, groups, torch.ones_like(groups, dtype=torch.bool), 20)
    assert found.valid.all()
    for image, parts in enumerate(scenes):
        chosen, expected = naive(*parts, 20)
        assert found.index[image].tolist() == chosen
        np.testing.assert_allclose(found.scores[image], expected, rtol=1e-9)


def test_a_detector_with_soft_nms_gives_the_lowered_scores(tmp_path: Path):
    changes = "preprocess.short=64 preprocess.long=96 rpn.post_test=20 roi.detections=40 roi.nms=0.1"
    settings = settings_of("tiny-fpn", changes.split())
    torch.manual_seed(0)
    plain = Detector(build(settings, 2), settings, ("a", "b"), device="cpu")
    soft = plain.with_suppression(detections=SoftNMS())
    every = plain.with_suppression(detections=NMS(1.0))
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    (before,), (found,), (again,) = (detector.predict(image, score=0.0) for detector in (every, soft, plain))
    assert len(found) > len(again)
    _, scores = naive(before.boxes, before.scores, before.labels, len(found))
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert soft.with_settings(["roi.nms=0.4"]).suppression == Suppression(NMS(settings.rpn.nms), soft.suppression[1])
    assert plain.with_settings(["roi.nms=0.4"]).suppression == Suppression(NMS(settings.rpn.nms), NMS(0.4))


def test_suppression_reaches_proposals_and_exported_programs():
    net, (data, _) = tiny.model().eval(), tiny.batch(2)
    net.suppression = Suppression(SoftNMS(), SoftNMS())
    with torch.no_grad():
        torch.testing.assert_close(tiny.one_graph(net)(data), net(data))
        proposals = net.propose(data)
        out = net.execute(data, fields=()).rpn
        every = net.rpn.propose(out, data.sizes, pre=40, post=80, suppress=NMS(1.0))
    assert proposals.scores[:, 0].equal(every.scores[:, 0])
    assert (proposals.scores.sum(dim=1) < every.scores[:, :24].sum(dim=1)).all()


def test_views_are_merged_with_the_scores_of_the_suppressor():
    boxes, scores, labels = scene(3)
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    halves = (slice(20), slice(20, None))
    parts = [Result(boxes[half], scores[half], labels[half], ("a", "b"), None, (90, 90)) for half in halves]
    views = (View(0, 0, 90, 90, (90, 90)),) * 2
    merged = pool(parts, views, (90, 90), SoftNMS(min_score=0.0), 15)[0]
    chosen, expected = naive(boxes, scores, labels, 15)
    np.testing.assert_allclose(merged.scores, expected, rtol=1e-4)
    np.testing.assert_array_equal(merged.boxes, boxes[chosen])
