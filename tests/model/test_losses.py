import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torchvision import ops as tv

from rcnn.config import LossKind
from rcnn.model.assign import Sample
from rcnn.model.boxes import decode, encode
from rcnn.model.fast_rcnn import SampledRoIs
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.losses import box_loss, objectness_loss, smooth_l1
from rcnn.model.structures import Targets
from tests.model import tiny, worked

PRESETS = [
    ("paper", {"lambda": 10, "beta": 1.0}, 0.017953, 0.156670),
    ("sampled-cells", {"lambda": 10, "beta": 1.0}, 0.656552, 0.156670),
    ("paper", {"lambda": 10 * 20 / 2400, "beta": 1.0}, 0.017953, 0.001306),  # as if there were 2400 locations
    ("per-image", {}, 0.656552, 0.179532),
    ("per-image", {"positive_weight": 0.5}, 0.656552, 0.314180),
    ("sampled", {}, 0.656552, 0.179532),
    ("requested", {"box_loss": "l1"}, 0.017953, 0.006574),
    ("mean", {"lambda": 10, "beta": 1.0}, 0.656552, 0.391675),
]


def worked_losses(**settings: object) -> dict[str, float]:
    rpn = worked.network(**settings)
    losses = rpn.loss(worked.output(rpn), worked.targets(), worked.SIZES, torch.rand(1, 60, dtype=torch.float64))
    return {name: (total / count).item() for name, (total, count) in losses.items()}


@pytest.mark.parametrize(("normaliser", "settings", "objectness", "box"), PRESETS)
def test_worked_losses(normaliser, settings, objectness, box):
    losses = worked_losses(normaliser=normaliser, **settings)
    assert losses == pytest.approx({"rpn_objectness": objectness, "rpn_box": box}, abs=1.5e-6)


def test_swapped_score_order():
    assert worked_losses(score_order="object-first")["rpn_objectness"] == pytest.approx(0.799409, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_equals_torch(beta):
    d = torch.linspace(-3, 3, 101, dtype=torch.float64)
    expected = functional.smooth_l1_loss(d, torch.zeros_like(d), reduction="none", beta=beta)
    torch.testing.assert_close(smooth_l1(d, beta), expected)


def test_two_logits_equal_one():
    logit = torch.linspace(-4, 4, 9)
    positive = torch.arange(9) % 2 == 0
    two = torch.stack((torch.full_like(logit, 0.7), logit + 0.7), dim=-1)
    torch.testing.assert_close(objectness_loss(two, positive), objectness_loss(logit, positive))


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "iou", "giou", "diou", "ciou"])
def test_box_losses_vanish_at_the_target_and_have_right_gradients(kind):
    anchors = torch.tensor([[10.0, 12, 50, 40], [0, 0, 20, 30]], dtype=torch.float64)
    targets = torch.tensor([[14.0, 8, 60, 45], [3, 2, 18, 25]], dtype=torch.float64)
    perfect = encode(targets, anchors)
    torch.testing.assert_close(
        box_loss(perfect, targets, anchors, kind, 1 / 9), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )
    deltas = (perfect + 0.05).requires_grad_()
    assert (box_loss(deltas, targets, anchors, kind, 1 / 9) > 0).all()
    if kind != "ciou":  # its weight is a constant by definition, see below
        assert torch.autograd.gradcheck(lambda d: box_loss(d, targets, anchors, kind, 1 / 9), deltas)


TORCHVISION = {
    "giou": tv.generalized_box_iou_loss,
    "diou": tv.distance_box_iou_loss,
    "ciou": tv.complete_box_iou_loss,
}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["giou", "diou", "ciou"]))
def test_overlap_losses_and_their_gradients_are_torchvisions(seed: int, kind: LossKind) -> None:
    """CIoU's weight of the aspect ratios is a constant in the gradient."""
    generator = torch.Generator().manual_seed(seed)
    corners, sides, (deltas, _) = torch.rand(3, 2, 50, 4, generator=generator, dtype=torch.float64)
    corners, sides = 30 * corners[..., :2], 5 + 40 * sides[..., :2]
    anchors, targets = torch.cat((corners, corners + sides), dim=2)
    deltas = (deltas - 0.5).requires_grad_()
    theirs = TORCHVISION[kind](decode(deltas, anchors), targets, reduction="none", eps=0.0)
    losses = (box_loss(deltas, targets, anchors, kind, 1.0), theirs)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), deltas) for loss in losses))


def test_worked_log_losses_and_box_losses_of_each_anchor():
    rpn = worked.network()
    out, targets = worked.output(rpn), worked.targets()
    index = torch.tensor([worked.POSITIVE + worked.NEGATIVE])
    logits, deltas = out.logits[0][0, index], out.deltas[0][0, index]
    positive = torch.arange(7)[None] < 2
    expected = torch.tensor([[0.474077, 0.693147, 0.474077, 0.474077, 0.693147, 1.313262, 0.474077]]).double()
    torch.testing.assert_close(objectness_loss(logits, positive), expected, atol=1e-6, rtol=0)
    one = objectness_loss(logits[..., 1] - logits[..., 0], positive)
    torch.testing.assert_close(one, expected, atol=1e-6, rtol=0)
    anchors = out.anchors[0][worked.POSITIVE]
    for kind, beta, total in (("smooth_l1", 1.0, 0.313340), ("smooth_l1", 1 / 9, 1.256722), ("l1", 1.0, 1.682907)):
        found = box_loss(deltas[0, :2], targets.boxes[0], anchors, kind, beta)
        assert found.sum().item() == pytest.approx(total, abs=1e-6)


def test_smooth_l1_of_sigma_3_by_hand():
    """0.5 (3d)^2 below 1/9, |d| - 1/18 above."""
    d = torch.tensor([0.1, -0.1, 1 / 9, 0.5, -2.0], dtype=torch.float64)
    expected = torch.tensor([0.045, 0.045, 1 / 18, 0.5 - 1 / 18, 2 - 1 / 18], dtype=torch.float64)
    torch.testing.assert_close(smooth_l1(d, 1 / 9), expected)


ASPECT = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
SHIFTED, FLAT = [2.0, 2, 6, 6], [0.0, 0, 4, 2]
OVERLAPS: list[tuple[LossKind, list[float], float]] = [
    ("iou", SHIFTED, 1 - 4 / 28),
    ("giou", SHIFTED, 1 - 4 / 28 + (36 - 28) / 36),
    ("diou", SHIFTED, 1 - 4 / 28 + 8 / 72),
    ("ciou", SHIFTED, 1 - 4 / 28 + 8 / 72),  # both are squares
    ("iou", FLAT, 1 - 8 / 16),
    ("giou", FLAT, 1 - 8 / 16),  # the hull is the union
    ("diou", FLAT, 1 - 8 / 16 + 1 / 32),
    ("ciou", FLAT, 1 - 8 / 16 + 1 / 32 + ASPECT / (0.5 + ASPECT) * ASPECT),
    ("giou", [8.0, 0, 12, 4], 1 - 0 + (48 - 32) / 48),  # apart, and still with a gradient
]


def box_loss_of(net: FasterRCNN, stage: str, box: Tensor, targets: Targets) -> float:
    """The box loss of one anchor or RoI (1, 1, 4) of object 0, whose deltas are zero."""
    with torch.no_grad():
        for parameter in (*net.rpn.head.reg.parameters(), *net.fast_rcnn.predictor.reg.parameters()):
            parameter.zero_()
    index = torch.zeros(1, 1, dtype=torch.int64)
    drawn, sizes = Sample(index, index == 0, index == 0), torch.tensor([[64.0, 96.0]])
    levels = [torch.randn(1, 8, 8, 12, dtype=torch.float64), torch.randn(1, 8, 4, 6, dtype=torch.float64)]
    if stage == "rpn":
        out = net.rpn(levels, (64, 96))
        worked.fix_sample(net.rpn, worked.assignment(index), drawn)
        out = out._replace(anchors=(box[0], *out.anchors[1:]))
        losses = net.rpn.loss(out, targets, sizes, torch.zeros(1, 1))
    else:
        losses = net.fast_rcnn.loss(levels, SampledRoIs(box, drawn, index), targets, sizes)
    total, count = losses[f"{stage}_box"]
    return (total / count).item()


@pytest.mark.parametrize(("kind", "target", "expected"), OVERLAPS)
@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_overlap_losses_by_hand_in_either_stage(stage: str, kind: LossKind, target: list[float], expected: float):
    """Deltas of zero leave the anchor, or RoI, [0, 0, 4, 4] where it is."""
    square, truth = (torch.tensor([[corners]], dtype=torch.float64) for corners in ([0.0, 0, 4, 4], target))
    net = tiny.model({stage: {"box_loss": kind, "positive_iou": 0.0}}).double()
    assert box_loss_of(net, stage, square, worked.targets(truth)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "beta", "mean", "expected"),
    [
        ("smooth_l1", 1.0, (0, 0, 0, 0), 0.430362),
        ("smooth_l1", 1 / 9, (0, 0, 0, 0), 1.322082),
        ("l1", 1.0, (0, 0, 0, 0), 1.544304),
        ("l1", 1.0, (0.01, -0.02, 0.05, 0.03), 1.744304),
        ("giou", 1.0, (0.015625, 0.078125, -0.031749, 0.089612), 0.0),
    ],
)
def test_box_losses_on_normalised_targets_by_hand(kind: LossKind, beta: float, mean: tuple, expected: float):
    """Deltas of object [9, 9, 40, 44] from RoI [8, 8, 40, 40], divided: (0.15625, 0.78125, -0.158743, 0.448061).

    With beta 1: 0.5 x (0.024414 + 0.610352 + 0.025199 + 0.200759); with 1/9: each |d| > 1/9, so |d| - 1/18. Less a
    mean: (0.05625, 0.98125, -0.408743, 0.298061). A layer that gives nothing decodes to the mean.
    """
    net = tiny.model({"roi": {"box_loss": kind, "beta": beta, "box_weight": 3.0, "box_mean": mean}}).double()
    targets = worked.targets(worked.OBJECTS[:, :1])
    roi = torch.tensor([[[8.0, 8, 40, 40]]], dtype=torch.float64)
    deltas = torch.tensor([0.15625, 0.78125, -0.158743, 0.448061]).double()
    deltas = deltas - torch.tensor(mean).double() / torch.tensor([0.1, 0.1, 0.2, 0.2]).double()
    found = encode(targets.boxes, roi, net.fast_rcnn.delta_normal(roi.dtype))[0, 0]
    torch.testing.assert_close(found, deltas, atol=1e-6, rtol=0)
    assert box_loss_of(net, "roi", roi, targets) == pytest.approx(3 * expected, abs=5e-6)
