"""The stages are the network's own: what `propose` and `predict` give, and what torchvision makes of the same boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms, box_iou

from rcnn.detector import Detector
from rcnn.insight.stages.follow import Stages, Truth, counts, follow
from rcnn.insight.stages.pictures import draw_stages
from rcnn.insight.stages.ways import ways
from rcnn.presets import build, settings_of

SMALL = (
    "preprocess.short=96",
    "preprocess.long=160",
    "model.channels=8",
    "roi.hidden=16",
    "rpn.pre_test=60",
    "rpn.post_test=20",
    "rpn.samples=64",
    "anchors.sizes=[[12],[24],[48],[96]]",
)
TRUTH = Truth(
    np.array([[20.0, 30, 60, 80], [100, 40, 190, 130], [60, 100, 80, 120]]),
    np.array([0, 1, 0]),
    np.array([False, False, True]),
)


def make(*changes: str) -> Detector:
    torch.manual_seed(0)
    settings = settings_of("tiny-fpn", [*SMALL, *changes])
    model = build(settings, 2)
    with torch.no_grad():  # spread the outputs, so that scores and boxes differ
        for name, parameter in model.named_parameters():
            if "predictor" in name or "rpn.head" in name:
                parameter.normal_(std=0.1)
    return Detector(model, settings, ("a", "b"), threshold=0.3, device="cpu")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stages(detector: Detector, image: np.ndarray) -> Stages:
    return follow(detector, image, TRUTH)


def test_proposals_and_detections_are_those_of_the_detector(
    stages: Stages, detector: Detector, image: np.ndarray
) -> None:
    scale = np.array([image.shape[1] / stages.image.shape[1], image.shape[0] / stages.image.shape[0]] * 2)
    (proposed,), (predicted,) = detector.propose(image), detector.predict(image)
    np.testing.assert_array_equal(stages.proposals.scores.numpy(), proposed.scores)
    np.testing.assert_allclose(stages.proposals.boxes.numpy() * scale, proposed.boxes, atol=1e-3)
    assert stages.detections is not None
    assert len(predicted.boxes) > 3
    np.testing.assert_array_equal(stages.detections.scores.numpy(), predicted.scores)
    np.testing.assert_array_equal(stages.detections.classes.numpy(), predicted.labels)
    np.testing.assert_allclose(stages.detections.boxes.numpy() * scale, predicted.boxes, atol=1e-3)


def test_suppressing_what_enters_nms_leaves_the_proposals(stages: Stages) -> None:
    before = stages.before
    entries = sum(min(60, rows * columns * 3) for rows, columns in stages.grids)
    assert 20 < len(before.boxes) == len(before.anchor.unique()) <= entries  # those beyond the image have no area
    kept = batched_nms(before.boxes.double(), before.scores.double(), stages.levels[before.anchor], 0.7)
    kept = kept[:20]
    torch.testing.assert_close(before.boxes[kept], stages.proposals.boxes, rtol=0, atol=0)
    assert before.anchor[kept].tolist() == stages.proposals.anchor.tolist()
    torch.testing.assert_close(stages.objectness[before.anchor], before.scores)


def test_an_anchor_lies_at_its_place(stages: Stages) -> None:
    for anchor in (0, 7, 2000, len(stages.anchors) - 1):
        level, row, column, which = stages.place(anchor)
        x1, y1, x2, y2 = stages.anchors[anchor].tolist()
        stride = stages.strides[level]
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(((column + 0.5) * stride, (row + 0.5) * stride))
        assert int(stages.of_cell(level, row, column)[which]) == anchor
        ratio = (0.5, 1, 2)[which]
        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-4)


def test_labels_follow_the_rules_of_the_paper(stages: Stages) -> None:
    truth = stages.truth
    assert truth is not None
    scale = torch.tensor([129 / 201, 96 / 150] * 2, dtype=torch.float64)
    torch.testing.assert_close(truth.boxes.double(), torch.from_numpy(TRUTH.boxes) * scale, rtol=0, atol=1e-4)
    iou = box_iou(stages.anchors, truth.boxes[:2])
    best = iou.amax(dim=0)
    positive = (iou >= 0.7).any(dim=1) | (iou >= best - 1e-6).any(dim=1)
    inside = (
        stages.anchors[:, None, :2].maximum(truth.boxes[2:, :2]),
        stages.anchors[:, None, 2:].minimum(truth.boxes[2:, 2:]),
    )
    own = (stages.anchors[:, 2:] - stages.anchors[:, :2]).prod(dim=1)
    covered = (inside[1] - inside[0]).clamp(min=0).prod(dim=2)[:, 0] >= own / 2
    negative = (iou < 0.3).all(dim=1) & ~positive & ~covered
    assert torch.equal(truth.label == 1, positive)
    assert torch.equal(truth.label == 0, negative)
    assert torch.equal(truth.gt[positive], iou[positive].argmax(dim=1))


def test_a_sample_is_drawn_as_in_training(stages: Stages, detector: Detector, image: np.ndarray) -> None:
    truth = stages.truth
    assert truth is not None
    label = truth.label[truth.sampled]
    positive = int((truth.label == 1).sum())
    assert len(truth.sampled.unique()) == 64
    assert int((label == 1).sum()) == min(positive, 32)
    assert not (label == -1).any()
    other = follow(detector, image, TRUTH, seed=1).truth
    assert other is not None
    assert other.sampled.tolist() != truth.sampled.tolist()
    assert follow(detector, image, TRUTH).truth.sampled.tolist() == truth.sampled.tolist()  # type: ignore[union-attr]


def test_a_way_leads_from_an_anchor_over_its_proposal_to_the_box(stages: Stages) -> None:
    assert stages.detections is not None
    assert stages.truth is not None
    found = ways(stages)
    assert len(found) == len(stages.detections.boxes)
    for way, proposal in zip(found, stages.detections.proposal.tolist(), strict=True):
        anchor = int(stages.proposals.anchor[proposal])
        assert torch.equal(way.boxes[0], stages.anchors[anchor])
        assert torch.equal(way.boxes[1], stages.proposals.boxes[proposal])
        assert (way.level, *way.cell) == stages.place(anchor)[:3]
        iou = box_iou(way.boxes, stages.truth.boxes)
        assert way.truth == pytest.approx(iou[:, iou[2].argmax()].tolist(), abs=1e-5)


def test_counts_add_up(stages: Stages) -> None:
    found = counts(stages)
    assert found["anchors"] == 3 * sum(rows * columns for rows, columns in stages.grids)
    assert found["positive"] + found["negative"] + found["not_trained"] == found["anchors"]
    assert (found["sampled"], found["proposals"], found["objects"]) == (64, 20, 3)


def check(paths: list[Path], names: set[str], folder: Path) -> None:
    assert {path.name for path in paths} == names == {path.name for path in folder.iterdir()}
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200


TRAINING = {"2-labels.png", "3-samples.png"}
ALL = {"overview.png", "1-anchors.png", "4-objectness.png", "5-proposals.png", "6-ways.png"} | TRAINING


def test_pictures_of_all_stages(stages: Stages, tmp_path: Path) -> None:
    check(draw_stages(stages, tmp_path), ALL, tmp_path)


def test_an_empty_image_and_proposals_alone(image: np.ndarray, tmp_path: Path) -> None:
    nothing = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    stages = follow(make("roi.head=none", "rpn.logits=2"), image, nothing)
    found = counts(stages)
    assert (found["objects"], found["positive"], found["negative"]) == (0, 0, found["anchors"])
    assert stages.detections is None
    assert ways(stages) == []
    check(draw_stages(stages, tmp_path), ALL - {"6-ways.png"}, tmp_path)
