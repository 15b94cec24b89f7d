from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops as torchvision_ops

from rcnn.ops.roi_align import roi_align, roi_align_reference
from tests.ops.rois import EDGES, MAP, ROI, ZERO, by_torchvision, feature_gradients, scene, wild

theirs = partial(by_torchvision, torchvision_ops.roi_align)


@pytest.mark.parametrize("function", [roi_align, roi_align_reference])
@pytest.mark.parametrize(
    ("aligned", "ratio", "expected"),
    [
        (False, 1, [[6.625, 2.893555], [5.149414, 4.125]]),
        (False, 2, [[5.811951, 3.660950], [5.309875, 3.668457]]),
        (True, 1, [[6.963867, 2.276367], [7.217773, 4.625]]),
        (True, 2, [[6.346191, 4.386536], [5.445984, 4.275879]]),
    ],
)
def test_worked_values(function, aligned, ratio, expected):
    out = function([MAP], ROI, ZERO, [16], 2, ratio, aligned)
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [roi_align, roi_align_reference])
@pytest.mark.parametrize(
    ("aligned", "ratio", "loss", "expected"),
    [
        (True, 1, 51.669922, [-0.772949, -0.419922, -0.209473, -0.017578]),
        (True, 2, 48.560730, [-0.193375, -0.098328, -0.110947, -0.226379]),
        (False, 2, 43.737305, [-0.387573, -0.119141, -0.173218, -0.157227]),
    ],
)
def test_worked_box_gradients(function, aligned, ratio, loss, expected):
    roi = ROI.clone().requires_grad_()
    total = (function([MAP], roi, ZERO, [16], 2, ratio, aligned) * torch.tensor([[1.0, 2], [3, 4]])).sum()
    (gradient,) = torch.autograd.grad(total, roi)
    assert total.item() == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(gradient[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), ratio=st.sampled_from([0, 1, 2, 3]), aligned=st.booleans())
def test_equals_torchvision_and_the_reference(seed, size, ratio, aligned):
    levels, boxes, level, strides = scene(seed, rois=2)
    if ratio == 0:  # the kernel fails on inverted boxes; see below
        boxes = torch.cat((boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])), dim=-1)
    arguments = (levels, boxes, level, strides, size, ratio, aligned)
    out = roi_align(*arguments)
    torch.testing.assert_close(out, theirs(*arguments), rtol=0, atol=1e-12)
    torch.testing.assert_close(out, roi_align_reference(*arguments), rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
def test_adaptive_sampling_of_an_inverted_box_is_harmless(aligned):
    """Inverted in x alone: torchvision would compute a negative number of samples and allocate huge memory."""
    level = torch.randn(1, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[30.0, 10, 24, 30], [4, 4, 20, 24]]], dtype=torch.float64)
    arguments = (boxes, torch.zeros(1, 2).long(), [4], 1, 0, aligned)
    out = roi_align([level], *arguments)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 1:], roi_align_reference([level], *arguments)[:, 1:], rtol=0, atol=1e-12)
    out.sum().backward()
    assert level.grad.isfinite().all()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("stride", [4, 8])
def test_equals_torchvision_at_the_edges(aligned, ratio, stride):
    level = torch.randn(1, 3, 48 // stride, 64 // stride, dtype=torch.float64)
    boxes = EDGES[None]
    arguments = ([level], boxes, torch.zeros(1, len(EDGES)).long(), [stride], 3, ratio, aligned)
    torch.testing.assert_close(roi_align(*arguments), theirs(*arguments), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_feature_gradient_equals_torchvision(ratio):
    found, expected = (feature_gradients(function, *scene(5), 3, ratio, True) for function in (roi_align, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2])
def test_gradcheck_in_features_and_boxes(ratio, aligned):
    levels, boxes, level, strides = scene(1, rois=3, channels=1)
    leaves = [tensor.requires_grad_() for tensor in (*levels, boxes)]
    assert torch.autograd.gradcheck(lambda a, b, c: roi_align([a, b], c, level, strides, 2, ratio, aligned), leaves)


@pytest.mark.parametrize("aligned", [False, True])
def test_box_gradient_equals_the_reference(aligned):
    levels, boxes, level, strides = scene(2, rois=8)
    weight = torch.randn(2, 8, 3, 2, 2, dtype=torch.float64)
    gradients = []
    for function in (roi_align, roi_align_reference):
        leaf = boxes.clone().requires_grad_()
        out = function(levels, leaf, level, strides, 2, 2, aligned)
        gradients += torch.autograd.grad((out * weight).sum(), leaf)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    levels, boxes, level, strides = scene(3)
    leaves = [feature.to(dtype).requires_grad_() for feature in levels]
    out = roi_align(leaves, boxes.float(), level, strides, 3, 2, True)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        out.double(), roi_align(levels, boxes, level, strides, 3, 2, True), rtol=0, atol=tolerance
    )
    out.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == dtype for leaf in leaves)


@pytest.mark.parametrize("ratio", [0, 2])
def test_numbers_that_are_not_finite_do_no_harm(ratio):
    levels, boxes, level, strides = scene(4)
    leaves = [feature.clone().requires_grad_() for feature in levels]
    wild_boxes = wild(boxes).requires_grad_(ratio > 0)
    out = roi_align(leaves, wild_boxes, level, strides, 3, ratio, True)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    torch.testing.assert_close(out[:, 2:], roi_align(levels, boxes, level, strides, 3, ratio, True)[:, 2:])
    if ratio > 0:
        assert wild_boxes.grad is not None
        assert wild_boxes.grad.isfinite().all()
        assert not wild_boxes.grad[0, 0].any()


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_a_batch_equals_its_images_alone_to_the_bit(seed):
    levels, boxes, level, strides = scene(seed, batch=3)
    levels, boxes = [feature.float() for feature in levels], boxes.float()
    out = roi_align(levels, boxes, level, strides, 3, 2, True)
    for i in range(3):
        image = slice(i, i + 1)
        alone = roi_align([feature[image] for feature in levels], boxes[image], level[image], strides, 3, 2, True)
        assert torch.equal(alone[0], out[i])


def test_channels_last_features_give_the_same():
    levels, boxes, level, strides = scene(6)
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in levels]
    assert torch.equal(
        roi_align(last, boxes, level, strides, 3, 2, True), roi_align(levels, boxes, level, strides, 3, 2, True)
    )


@pytest.mark.parametrize(("batch", "rois"), [(0, 4), (2, 0), (0, 0)])
@pytest.mark.parametrize("ratio", [0, 2])
def test_empty_inputs(batch, rois, ratio):
    levels, boxes, level, strides = scene(0, batch, rois)
    leaves = [feature.requires_grad_() for feature in levels]
    out = roi_align(leaves, boxes, level, strides, 3, ratio, True)
    assert out.shape == (batch, rois, 3, 3, 3)
    out.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_adaptive_sampling_refuses_a_box_gradient():
    levels, boxes, level, strides = scene(0)
    with pytest.raises(NotImplementedError, match="sampling_ratio"):
        roi_align(levels, boxes.requires_grad_(), level, strides, 3, 0, True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch reads them itself
@pytest.mark.parametrize("ratio", [0, 2])
def test_opcheck(ratio):
    levels, boxes, level, strides = scene(0, rois=3)
    leaves = [feature.requires_grad_() for feature in levels]
    arguments = (leaves, boxes.requires_grad_(ratio > 0), level, [1 / s for s in strides], 2, ratio, True)
    torch.library.opcheck(torch.ops.rcnn.roi_align.default, arguments)
    grad = torch.randn(2, 3, 2, 2, 3, dtype=torch.float64)
    detached = [leaf.detach() for leaf in leaves]
    backward = (grad, detached, boxes.detach(), level, arguments[3], ratio, True, [True, ratio > 0])
    torch.library.opcheck(torch.ops.rcnn.roi_align_backward.default, backward)
