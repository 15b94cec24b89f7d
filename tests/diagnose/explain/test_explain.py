"""The steps of an explanation are those of `propose` and `predict`, and agree with torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image
from torchvision.ops import batched_nms, box_iou

from rcnn.detector import Detector
from rcnn.diagnose.explain import pictures
from rcnn.diagnose.explain.follow import Explanation, follow
from rcnn.diagnose.explain.pictures import draw_explanation
from rcnn.metrics.types import Truth
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
def explanation(detector: Detector, image: np.ndarray) -> Explanation:
    return follow(detector, image, TRUTH)


def test_proposals_and_detections_are_those_of_the_detector(
    explanation: Explanation, detector: Detector, image: np.ndarray
) -> None:
    scale = np.array([image.shape[1] / explanation.image.shape[1], image.shape[0] / explanation.image.shape[0]] * 2)
    (proposed,), (predicted,) = detector.propose(image), detector.predict(image)
    np.testing.assert_array_equal(explanation.proposals.scores.numpy(), proposed.scores)
    np.testing.assert_allclose(explanation.proposals.boxes.numpy() * scale, proposed.boxes, atol=1e-3)
    assert len(predicted.boxes) > 3
    np.testing.assert_array_equal(explanation.detections.scores.numpy(), predicted.scores)
    np.testing.assert_array_equal(explanation.detections.classes.numpy(), predicted.labels)
    np.testing.assert_allclose(explanation.detections.boxes.numpy() * scale, predicted.boxes, atol=1e-3)


def test_suppressing_what_enters_nms_leaves_the_proposals(explanation: Explanation) -> None:
    before = explanation.before
    entries = sum(min(60, rows * columns * 3) for rows, columns in explanation.grids)
    assert 20 < len(before.boxes) == len(before.anchor.unique()) <= entries  # those beyond the image have no area
    survivors = batched_nms(before.boxes.double(), before.scores.double(), explanation.levels[before.anchor], 0.7)[:20]
    torch.testing.assert_close(before.boxes[survivors], explanation.proposals.boxes, rtol=0, atol=0)
    assert before.anchor[survivors].tolist() == explanation.proposals.anchor.tolist()
    torch.testing.assert_close(explanation.objectness[before.anchor], before.scores)


def test_an_anchor_lies_at_its_place(explanation: Explanation) -> None:
    for anchor in (0, 7, 2000, len(explanation.anchors) - 1):
        level, row, column, which = explanation.cell_of(anchor)
        x1, y1, x2, y2 = explanation.anchors[anchor].tolist()
        stride = explanation.strides[level]
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(((column + 0.5) * stride, (row + 0.5) * stride))
        assert int(explanation.anchors_of(level, row, column)[which]) == anchor
        ratio = (0.5, 1, 2)[which]
        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-4)


def labels(explanation: Explanation) -> torch.Tensor:
    """(A,) 1 positive, 0 negative, -1 not trained, by the paper's rules; half in the third object counts as neither."""
    boxes = explanation.truth.boxes
    iou = box_iou(explanation.anchors, boxes[:2])
    positive = (iou >= 0.7).any(dim=1) | (iou >= iou.amax(dim=0) - 1e-6).any(dim=1)
    low, high = explanation.anchors.split(2, dim=1)
    inside = (high.minimum(boxes[2, 2:]) - low.maximum(boxes[2, :2])).clamp(min=0)
    covered = inside.prod(dim=1) >= (high - low).prod(dim=1) / 2
    negative = (iou < 0.3).all(dim=1) & ~positive & ~covered
    return positive.long() - (~positive & ~negative).long()


def test_labels_follow_the_rules_of_the_paper(explanation: Explanation) -> None:
    truth = explanation.truth
    scale = torch.tensor([129 / 201, 96 / 150] * 2, dtype=torch.float64)
    torch.testing.assert_close(truth.boxes.double(), torch.from_numpy(TRUTH.boxes) * scale, rtol=0, atol=1e-4)
    assert torch.equal(truth.label.long(), labels(explanation))
    positive = truth.label == 1
    iou = box_iou(explanation.anchors[positive], truth.boxes[:2])
    assert torch.equal(truth.truth[positive], iou.argmax(dim=1))


def test_a_sample_is_drawn_as_in_training(explanation: Explanation, detector: Detector, image: np.ndarray) -> None:
    truth = explanation.truth
    label = truth.label[truth.sampled]
    assert len(truth.sampled.unique()) == 64
    assert int((label == 1).sum()) == min(int((truth.label == 1).sum()), 32)
    assert not (label == -1).any()
    again, other = (follow(detector, image, TRUTH, seed=seed).truth.sampled.tolist() for seed in (0, 1))
    assert again == truth.sampled.tolist() != other


def test_a_detection_comes_from_an_anchor_over_its_proposal(explanation: Explanation) -> None:
    origins = explanation.origins()
    assert len(origins) == len(explanation.detections.boxes)
    for origin, proposal in zip(origins, explanation.detections.proposal.tolist(), strict=True):
        anchor = int(explanation.proposals.anchor[proposal])
        assert torch.equal(origin.boxes[0], explanation.anchors[anchor])
        assert torch.equal(origin.boxes[1], explanation.proposals.boxes[proposal])
        assert (origin.level, *origin.cell) == explanation.cell_of(anchor)[:3]
        iou = box_iou(origin.boxes, explanation.truth.boxes)
        assert origin.ious == pytest.approx(iou[:, iou[2].argmax()].tolist(), abs=1e-5)


def test_counts_add_up(explanation: Explanation) -> None:
    counts = explanation.counts()
    assert counts["anchors"] == 3 * sum(rows * columns for rows, columns in explanation.grids)
    assert counts["positive"] + counts["negative"] + counts["not_trained"] == counts["anchors"]
    assert (counts["sampled"], counts["proposals"], counts["objects"]) == (64, 20, 3)


def check(paths: list[Path], names: set[str], folder: Path) -> None:
    assert {path.name for path in paths} == names == {path.name for path in folder.iterdir()}
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200


TRAINING = {"2-labels.png", "3-samples.png"}
ALL = {"overview.png", "1-anchors.png", "4-objectness.png", "5-proposals.png", "6-ways.png"} | TRAINING


def test_pictures_of_all_stages(explanation: Explanation, tmp_path: Path) -> None:
    check(draw_explanation(explanation, tmp_path), ALL, tmp_path)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sheets(explanation: Explanation) -> dict[str, list[Axes]]:
    """The panels of each picture but the origins, with their titles."""
    made: dict[str, list[Axes]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save", lambda figure, path: made.update({path.stem: figure.axes}))
        patch.setattr(pictures, "draw_origins", lambda explanation, origins, path: path)
        draw_explanation(explanation, Path())
    return made


def drawn(axes: Axes, name: str = "") -> torch.Tensor:
    """Return the (n, 4) frames in a panel whose label starts with a name; all but the objects without a name."""
    lines = [part for part in axes.collections if isinstance(part, LineCollection)]
    chosen = [part for part in lines if str(part.get_label()).startswith(name) and part.get_label() != "object"]
    corners = [corner[[0, 2]].reshape(4) for part in chosen for corner in part.get_segments()]
    return torch.from_numpy(np.array(corners, np.float32).reshape(-1, 4))


def test_the_labels_have_a_panel_each(explanation: Explanation, sheets: dict[str, list[Axes]]) -> None:
    label = labels(explanation)
    assert min((label == value).sum() for value in (1, 0, -1)) > 0
    positive, neither, negative = sheets["2-labels"]
    for axes, value, title in (
        (positive, 1, "positive anchors"),
        (neither, -1, "not trained"),
        (sheets["overview"][2], 1, "3. positive anchors"),
    ):
        assert torch.equal(drawn(axes), explanation.anchors[label == value])
        assert axes.get_title(loc="left") == f"{title}: {int((label == value).sum()):,}"
        for level, stride in enumerate(explanation.strides):
            own = (label == value) & (explanation.levels == level)
            assert len(drawn(axes, f"stride {stride}:")) == own.sum()
    assert not len(drawn(negative))
    middles = []
    for level in range(len(explanation.strides)):
        own = explanation.anchors[(label == 0) & (explanation.levels == level)]
        middles += torch.unique((own[:, :2] + own[:, 2:]) / 2, dim=0).tolist()
    dots = (part for part in negative.collections if isinstance(part, PathCollection))
    assert sorted(dot for part in dots for dot in np.asarray(part.get_offsets()).tolist()) == sorted(middles)


def test_the_sample_has_a_panel_of_positives_and_one_of_negatives(
    explanation: Explanation, sheets: dict[str, list[Axes]]
) -> None:
    sampled, label = explanation.truth.sampled, labels(explanation)
    positive, negative = (explanation.anchors[sampled[label[sampled] == value]] for value in (1, 0))
    first, second = sheets["3-samples"]
    assert torch.equal(drawn(first), positive)
    assert torch.equal(drawn(second), negative)
    assert torch.equal(drawn(sheets["overview"][3], "positive"), positive)
    assert torch.equal(drawn(sheets["overview"][3], "negative"), negative)


def test_the_map_of_a_level_has_the_best_anchor_of_each_cell(
    explanation: Explanation, sheets: dict[str, list[Axes]]
) -> None:
    height, width = explanation.image.shape[:2]
    highest = np.zeros((height, width))
    for level, ((rows, columns), stride) in enumerate(zip(explanation.grids, explanation.strides, strict=True)):
        expected = np.zeros((rows, columns))
        for row, column in np.ndindex(rows, columns):
            best = max(explanation.objectness[explanation.anchors_of(level, row, column)].tolist())
            expected[row, column] = best
            area = highest[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            area[...] = np.maximum(area, best)
        np.testing.assert_array_equal(sheets["4-objectness"][level].images[-1].get_array(), expected)
    np.testing.assert_array_equal(sheets["overview"][4].images[-1].get_array(), highest)


def test_proposals_are_drawn_in_the_colours_of_their_scores_the_best_on_top(
    explanation: Explanation, sheets: dict[str, list[Axes]]
) -> None:
    for panels, number in ((sheets["5-proposals"], 0), (sheets["overview"], 5)):
        for axes, ranked in zip(panels[number:], (explanation.before, explanation.proposals), strict=False):
            assert torch.equal(drawn(axes), ranked.boxes.flip(0))
            (lines,) = axes.collections
            np.testing.assert_array_equal(np.asarray(lines.get_array()), ranked.scores.flip(0).numpy())
    assert torch.equal(drawn(sheets["overview"][7]), explanation.detections.boxes)


def test_anchors_of_one_place_on_every_level(explanation: Explanation, sheets: dict[str, list[Axes]]) -> None:
    """The cell lies at the centre of the largest object, (92.9, 54.4) in the resized image."""
    cells = []
    for level, stride in enumerate(explanation.strides):
        own = explanation.anchors[explanation.anchors_of(level, int(54.4 // stride), int(92.9 // stride))]
        assert torch.equal(drawn(sheets["1-anchors"][level]), own)
        cells.append(own)
    assert torch.equal(drawn(sheets["overview"][1]), torch.cat(cells))


def test_a_cascade_shows_the_box_after_every_head(image: np.ndarray, tmp_path: Path) -> None:
    detector = make("roi.stages=3")
    explanation = follow(detector, image, TRUTH)
    assert explanation.refined.shape == (2, len(explanation.proposals.boxes), 4)
    origin, proposal = explanation.origins()[0], int(explanation.detections.proposal[0])
    assert origin.boxes.shape == (5, 4)
    assert len(origin.ious) == 5
    assert torch.equal(origin.boxes[2:4], explanation.refined[:, proposal])
    assert torch.equal(origin.boxes[-1], explanation.detections.boxes[0])
    check(draw_explanation(explanation, tmp_path), ALL, tmp_path)


def test_an_empty_image_and_proposals_alone(image: np.ndarray, tmp_path: Path) -> None:
    no_objects = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    explanation = follow(make("roi.head=none", "rpn.logits=2"), image, no_objects)
    counts = explanation.counts()
    assert (counts["objects"], counts["positive"], counts["negative"]) == (0, 0, counts["anchors"])
    assert explanation.detections is None
    assert explanation.origins() == []
    check(draw_explanation(explanation, tmp_path), ALL - {"6-ways.png"}, tmp_path)
