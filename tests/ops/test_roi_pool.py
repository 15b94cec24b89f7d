from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops as torchvision_ops

from rcnn.ops.roi_pool import roi_pool, roi_pool_reference
from tests.ops.rois import MAP, by_torchvision, feature_gradients, scene, wild

theirs = partial(by_torchvision, torchvision_ops.roi_pool)


@pytest.mark.parametrize("function", [roi_pool, roi_pool_reference])
@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([10, 20, 70, 85], [[10, 8], [9, 8]]),
        ([10, 20, 70, 85], [[10, 9, 8], [9, 9, 8], [9, 8, 7]]),
        ([24, 24, 40, 56], [[9, 8], [5, 8]]),
        ([8, 8, 23, 23], [[10, 10], [10, 10]]),
        ([80, 80, 120, 120], [[6, 0], [0, 0]]),
        ([40, 8, 24, 72], [[8, 8], [8, 8]]),  # inverted: its width is clamped to one pixel
    ],
)
def test_worked_values(function, roi, expected):
    size = len(expected)
    out = function([MAP], torch.tensor([[roi]], dtype=torch.float64), torch.zeros(1, 1).long(), [16], size)[0, 0, 0]
    assert out.tolist() == expected


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4))
def test_equals_torchvision_and_the_reference(seed, size):
    arguments = (*scene(seed, rois=4), size)
    assert torch.equal(roi_pool(*arguments), theirs(*arguments))
    assert torch.equal(roi_pool(*arguments), roi_pool_reference(*arguments))


def test_feature_gradient_equals_torchvision_and_the_reference():
    found = feature_gradients(roi_pool, *scene(5), 3)
    for function in (theirs, roi_pool_reference):
        torch.testing.assert_close(found, feature_gradients(function, *scene(5), 3), rtol=0, atol=1e-12)


def test_gradcheck_in_features():
    levels, boxes, level, strides = scene(1, rois=3, channels=1)
    leaves = [feature.requires_grad_() for feature in levels]
    assert torch.autograd.gradcheck(lambda *maps: roi_pool(maps, boxes, level, strides, 2), leaves)


def test_bfloat16():
    levels, boxes, level, strides = scene(3)
    leaves = [feature.bfloat16().requires_grad_() for feature in levels]
    out = roi_pool(leaves, boxes.float(), level, strides, 3)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.bfloat16 for leaf in leaves)


def test_numbers_that_are_not_finite_do_no_harm():
    levels, boxes, level, strides = scene(4)
    out = roi_pool(levels, wild(boxes), level, strides, 3)
    assert out.isfinite().all()
    assert torch.equal(out[:, 2:], roi_pool(levels, boxes, level, strides, 3)[:, 2:])


@pytest.mark.parametrize(("batch", "rois"), [(0, 4), (2, 0), (0, 0)])
def test_empty_inputs(batch, rois):
    levels, boxes, level, strides = scene(0, batch, rois)
    leaves = [feature.requires_grad_() for feature in levels]
    out = roi_pool(leaves, boxes, level, strides, 3)
    assert out.shape == (batch, rois, 3, 3, 3)
    out.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch reads them itself
def test_opcheck():
    levels, boxes, level, strides = scene(0, rois=3)
    scales = [1 / s for s in strides]
    leaves = [feature.clone().requires_grad_() for feature in levels]
    torch.library.opcheck(torch.ops.rcnn.roi_pool.default, (leaves, boxes, level, scales, 2))
    out, source = torch.ops.rcnn.roi_pool(levels, boxes, level, scales, 2)
    backward = (torch.randn_like(out), source, levels, boxes, level, scales)
    torch.library.opcheck(torch.ops.rcnn.roi_pool_backward.default, backward)
