"""The gradient through the coordinates of proposals, which approximate joint training leaves out."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rcnn.config import merge
from rcnn.errors import SettingsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Keys, Proposals, RPNOutput, Targets
from rcnn.training.configure import check_scheme
from rcnn.training.schemes import SCHEMES
from tests.model import tiny

MORE_POSITIVES = {"positive_iou": 0.2, "negative_iou": [0.0, 0.2], "positive_fraction": 0.7}
CHANGES: dict = {"rpn": {"pre_train": 90, "post_train": 80}, "roi": MORE_POSITIVES}
STEP = 1e-7
"""Larger steps cross bends of the loss."""


def scene(changes: dict | None = None) -> tuple[FasterRCNN, AnyBatch, Targets, Keys]:
    net = tiny.model(merge(CHANGES, changes or {})).double()
    with torch.no_grad():
        net.rpn.head.reg.weight.mul_(0.1)  # proposals stay near their anchors
    data, targets = tiny.batch(2, dtype=torch.float64)
    return net, data, targets, tiny.keys(net, data, targets)


def freeze(net: FasterRCNN, data: AnyBatch, targets: Targets, keys: Keys) -> int:
    """Fix selection, sampling and assignment, and return the number of proposals that are trained as positives."""
    second = net.fast_rcnn
    assert second is not None
    with torch.no_grad():
        levels, _, proposals = training_proposals(net, data)
        sampled = second.sample(net._roi_maps(levels), proposals, targets, keys.roi)
    net.rpn.propose = lambda *_, **__: proposals
    second.sample = lambda *_: sampled
    return int((sampled.drawn.positive & (sampled.drawn.indices < proposals.boxes.shape[1])).sum())


def training_proposals(net: FasterRCNN, data: AnyBatch) -> tuple[tuple[Tensor, ...], RPNOutput, Proposals]:
    """Return feature maps, the output of the RPN's head, and the proposals of a training step, without gradient."""
    pass_, settings = net.execute(data, fields=()), net.settings.rpn
    assert pass_.rpn is not None
    with torch.no_grad():
        proposals = net.rpn.propose(pass_.rpn, data.sizes, pre=settings.pre_train, post=settings.post_train)
    return pass_.levels, pass_.rpn, proposals


def errors(net: FasterRCNN, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Return parameter -> relative difference between the gradient of the loss and its central difference."""
    net.zero_grad()
    loss().backward()
    generator, found = torch.Generator().manual_seed(1), {}
    for name, parameter in net.named_parameters():
        direction, values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter += sign * STEP * direction
                values.append(loss().item())
        slope = (values[0] - values[1]) / (2 * STEP)
        found[name] = abs((parameter.grad * direction).sum().item() - slope) / max(abs(slope), 1e-2)
    return found


@pytest.mark.parametrize("target_gradient", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"rpn": {"convs": 2}}, {"roi": {"pool": "warp"}}, {"roi": {"sampler": "ohem"}}]
)
def test_the_full_gradient_equals_finite_differences_and_that_of_joint_does_not(changes, target_gradient):
    """With every parameter of the network; constant targets are constants in the differences too."""
    net, data, targets, keys = scene(changes)
    assert freeze(net, data, targets, keys) > 5

    full = {"box_gradient": True, "target_gradient": target_gradient}
    right = errors(net, lambda: tiny.total(net.loss(data, targets, keys, **full)))
    assert max(right.values()) < 1e-5, right
    whole, joint = (tiny.backward(net, net.loss(data, targets, keys, **options))[1] for options in (full, {}))
    missing = {name for name in whole if (whole[name] - joint[name]).norm() > 1e-3 * whole[name].norm()}
    before_the_boxes = {name for name in whole if not name.startswith(("fast_rcnn", "rpn.head.cls"))}
    assert missing == before_the_boxes


def test_target_gradient_changes_the_gradient_of_the_rpn_and_no_loss():
    net, *arguments = scene()
    losses, gradients = [], []
    for options in ({}, {"box_gradient": True}, {"box_gradient": True, "target_gradient": True}):
        found, gradient = tiny.backward(net, net.loss(*arguments, **options))
        losses.append(tiny.total(found).item())
        gradients.append(gradient["rpn.head.reg.weight"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-12)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)
    assert not torch.allclose(gradients[1], gradients[2], rtol=1e-3)


@pytest.mark.parametrize("pool", ["align", "warp"])
def test_gradcheck_from_deltas_through_proposals_to_roi_features(pool: str):
    net, data, targets, keys = scene({"roi": {"pool": pool}})
    with torch.no_grad():
        levels, out, proposals = training_proposals(net, data)
    sampled = net.fast_rcnn.sample([], proposals, targets, keys.roi)

    def pooled(*deltas: Tensor) -> Tensor:
        moved = net._decoded_again(out._replace(deltas=deltas), None, proposals, sampled, data.sizes)
        return net.fast_rcnn.pool(net._roi_maps(levels), moved)[:, ::5, :2]

    deltas = [part.clone().requires_grad_() for part in out.deltas]
    assert torch.autograd.gradcheck(pooled, deltas, fast_mode=True)
    (gradient, _) = torch.autograd.grad(pooled(*deltas).square().sum(), deltas)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("sampler", ["random", "ohem"])
@pytest.mark.parametrize(("scheme", "reaches"), [("joint", False), ("joint-full", True)])
def test_the_second_stages_loss_reaches_the_rpns_box_layer_however_rois_are_sampled(sampler, scheme, reaches):
    net, data, targets, keys = scene({"roi": {"sampler": sampler}, "train": {"scheme": scheme}})
    losses = SCHEMES[net.settings.train.scheme][0].loss(net)(data, targets, keys)
    second = tiny.total({name: loss for name, loss in losses.items() if name.startswith("roi")})
    for gradient in torch.autograd.grad(second, list(net.rpn.head.reg.parameters()), materialize_grads=True):
        assert gradient.isfinite().all()
        assert gradient.any() == reaches


def test_traced_rois_are_the_sampled_ones_and_ground_truths_are_constants():
    net, data, targets, keys = scene()
    _, out, proposals = training_proposals(net, data)
    sampled = net.fast_rcnn.sample([], proposals, targets, keys.roi)
    rois, drawn, _ = sampled
    traced = net._decoded_again(out, None, proposals, sampled, data.sizes)
    torch.testing.assert_close(traced, rois)
    (gradient,) = torch.autograd.grad(traced.sum(), traced, retain_graph=True)
    assert gradient.all()
    truths = drawn.valid & (drawn.indices >= proposals.boxes.shape[1])
    assert truths.any()
    through = torch.autograd.grad(traced[truths].sum(), out.deltas, retain_graph=True, materialize_grads=True)
    assert not any(part.any() for part in through)
    through = torch.autograd.grad(traced[drawn.valid & ~truths].sum(), out.deltas)
    assert any(part.any() for part in through)


@pytest.mark.parametrize("what", ["no object", "fillers", "empty batch"])
def test_padding_does_not_affect_gradients(what):
    net, data, targets, keys = scene()
    if what == "fillers":
        data = data._replace(sizes=data.sizes * 0)
    if what == "empty batch":
        data, targets, keys = (tiny.rows(part, slice(0)) for part in (data, targets, keys))
    targets = targets._replace(valid=targets.valid & False)
    tiny.total(net.loss(data, targets, keys, box_gradient=True, target_gradient=True)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_compiles_into_one_graph():
    net = tiny.model(CHANGES)
    loss = partial(net.loss, box_gradient=True)
    tiny.assert_same_losses(net, loss, tiny.one_graph(loss, "eager"), *tiny.batch(2))


@pytest.mark.parametrize("roi", [{"pool": "max"}, {"sampling_ratio": 0}])
def test_pooling_without_a_gradient_in_the_boxes_is_refused(roi):
    with pytest.raises(SettingsError, match=r"train\.scheme=joint-full needs features with a gradient"):
        check_scheme(tiny.settings({"roi": roi, "train": {"scheme": "joint-full"}}))
