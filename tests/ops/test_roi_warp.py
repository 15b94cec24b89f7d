import pytest
import torch
from torchvision import ops as tv

from rcnn.ops.roi_warp import roi_warp, roi_warp_reference
from tests.ops.rois import EDGES, MAP, ROI, ZERO, scene


@pytest.mark.parametrize("function", [roi_warp, roi_warp_reference])
def test_worked_values(function):
    ramp = torch.arange(6.0, dtype=torch.float64)
    level = (10 * ramp[:, None] + ramp)[None, None]  # f(y, x) = 10 y + x, which bilinear reading reproduces
    box = torch.tensor([[[1.0, 1, 5, 5]]], dtype=torch.float64)
    # Samples lie at 1, 2, 3, 4 (the centres of quarters, shifted by half a pixel); the last of a cell is the largest.
    out = function([level], box, ZERO, [1], 2, 2, True)
    assert out[0, 0, 0].tolist() == [[22, 24], [42, 44]]
    single = function([MAP], ROI, ZERO, [16], 2, 1, True)  # the maximum of a single sample is its mean
    expected = torch.tensor([[6.963867, 2.276367], [7.217773, 4.625]], dtype=torch.float64)
    torch.testing.assert_close(single[0, 0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_equals_the_reference_and_torchvisions_samples(samples, aligned):
    levels, boxes, level, strides = scene(samples)
    out = roi_warp(levels, boxes, level, strides, 3, samples, aligned)
    torch.testing.assert_close(out, roi_warp_reference(levels, boxes, level, strides, 3, samples, aligned))
    for image, roi in ((0, 1), (1, 4)):
        which = int(level[image, roi])
        row = torch.cat((boxes.new_tensor([image]), boxes[image, roi]))[None]
        crop = tv.roi_align(levels[which], row, 3 * samples, 1 / strides[which], 1, aligned)
        torch.testing.assert_close(out[image, roi], torch.nn.functional.max_pool2d(crop, samples)[0])


def test_edges_and_no_boxes_at_all_are_harmless():
    level = torch.randn(1, 3, 12, 16, dtype=torch.float64)
    arguments = (EDGES[None], torch.zeros(1, len(EDGES)).long(), [4], 3, 2, True)
    torch.testing.assert_close(roi_warp([level], *arguments), roi_warp_reference([level], *arguments))
    assert roi_warp([level], EDGES[None, :0], torch.zeros(1, 0).long(), [4], 3, 2, True).shape == (1, 0, 3, 3, 3)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradcheck_in_features_and_boxes(aligned):
    levels, boxes, level, strides = scene(3, rois=2, channels=2)
    inputs = [feature.requires_grad_() for feature in levels] + [boxes.requires_grad_()]
    function = lambda *args: roi_warp(args[:2], args[2], level, strides, 2, 2, aligned)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-5, fast_mode=True)
