import pytest
import torch
from torch.nn import functional

from rcnn.model.losses import box_loss, objectness_loss, smooth_l1
from tests.model import worked

PRESETS = [
    ("paper", {"lambda": 10, "beta": 1.0}, 0.017953, 0.156670),
    ("matlab", {"lambda": 10, "beta": 1.0}, 0.656552, 0.156670),
    ("py-faster-rcnn", {}, 0.656552, 0.179532),
    ("torchvision", {}, 0.656552, 0.179532),
    ("detectron2", {"box_loss": "l1"}, 0.017953, 0.006574),
    ("mean", {"lambda": 10, "beta": 1.0}, 0.656552, 0.391675),
]


@pytest.mark.parametrize(("normaliser", "settings", "objectness", "box"), PRESETS, ids=[row[0] for row in PRESETS])
def test_worked_losses(normaliser, settings, objectness, box):
    rpn = worked.network(normaliser=normaliser, **settings)
    losses = rpn.loss(worked.output(rpn), worked.targets(), worked.SIZES, torch.rand(1, 60, dtype=torch.float64))
    values = {name: (total / count).item() for name, (total, count) in losses.items()}
    assert values == pytest.approx({"rpn_objectness": objectness, "rpn_box": box}, abs=1.5e-6)


def test_swapped_score_order():
    rpn = worked.network(score_order="object-first")
    total, count = rpn.loss(worked.output(rpn), worked.targets(), worked.SIZES, torch.rand(1, 60, dtype=torch.float64))[
        "rpn_objectness"
    ]
    assert (total / count).item() == pytest.approx(0.799409, abs=1e-6)


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
    from rcnn.model.boxes import encode

    perfect = encode(targets, anchors)
    torch.testing.assert_close(
        box_loss(perfect, targets, anchors, kind, 1 / 9), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )
    deltas = (perfect + 0.05).requires_grad_()
    assert (box_loss(deltas, targets, anchors, kind, 1 / 9) > 0).all()
    if kind != "ciou":  # its weight is a constant by definition
        assert torch.autograd.gradcheck(lambda d: box_loss(d, targets, anchors, kind, 1 / 9), deltas)
