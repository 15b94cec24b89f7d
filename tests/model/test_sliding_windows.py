"""Dense sliding windows: the anchors of a model at every cell."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rcnn.model import boxes as box_ops
from rcnn.model.anchors import cell_anchors
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.sliding_windows import sliding_windows
from rcnn.presets import PRESETS, build, settings_of
from rcnn.weights.adapt import shapes_alone


@cache
def rpn_of(name: str) -> RegionProposalNetwork:
    with shapes_alone():
        return build(settings_of(name), 3).rpn


@pytest.mark.parametrize(("name", "count"), [("paper-vgg16", 21_546), ("paper-zf", 21_546), ("mobilenet-fpn", 37_611)])
def test_windows_are_the_rpns_anchors_some_20_000_at_600_by_1000(name: str, count: int) -> None:
    """The paper's three scales and three ratios at 38 x 63 cells; a pyramid has one scale per level."""
    rpn, sizes = rpn_of(name), torch.tensor([[600.0, 1000.0]])
    grids = tuple((math.ceil(600 / stride), math.ceil(1000 / stride)) for stride in rpn.strides)
    anchors = torch.cat(rpn._anchors(grids, (600, 1000), torch.zeros(0)))
    found = sliding_windows(rpn.anchors, rpn.strides, (600, 1000), sizes)
    assert found.boxes.shape == (1, count, 4)
    assert found.valid.all()
    assert found.scores.eq(1).all()
    assert sorted(found.anchor[0].tolist()) == list(range(count)) == list(range(len(anchors)))
    assert torch.equal(found.boxes[0], box_ops.clip(anchors[found.anchor[0]], sizes))
    ends = torch.tensor([rows * columns * rpn.per_cell for rows, columns in grids]).cumsum(0)
    assert torch.equal(found.level[0], torch.bucketize(found.anchor[0], ends, right=True))
    if "paper" in name:
        sides = box_ops.area(cell_anchors(rpn.anchors, 0)).sqrt()
        assert sides[3:6].tolist() == pytest.approx([128, 256, 512])


def windows_of(image: Tensor, name: str, shape: tuple[int, int]) -> set[tuple[float, ...]]:
    """Return the valid windows of one image."""
    rpn = rpn_of(name)
    found = sliding_windows(rpn.anchors, rpn.strides, shape, image[None])
    assert (found.boxes[~found.valid] == 0).all()
    assert (found.scores == found.valid).all()
    return {tuple(box) for box in found.boxes[found.valid].tolist()}


@pytest.mark.parametrize("name", ["paper-zf", "tiny-fpn"])
@given(height=st.integers(1, 130), width=st.integers(1, 130), more=st.tuples(st.integers(0, 70), st.integers(0, 70)))
def test_padding_adds_no_window(name: str, height: int, width: int, more: tuple[int, int]) -> None:
    image = torch.tensor([float(height), float(width)])
    found = windows_of(image, name, (height + more[0], width + more[1]))
    assert found == windows_of(image, name, (height, width))
    limit = torch.tensor([width, height, width, height])
    boxes = torch.tensor(sorted(found))
    assert (boxes >= 0).all()
    assert (boxes <= limit).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_filler_has_no_window_and_images_of_a_batch_are_independent() -> None:
    rpn = rpn_of("paper-zf")
    sizes = torch.tensor([[64.0, 96.0], [0.0, 0.0], [33.0, 96.0]])
    found = sliding_windows(rpn.anchors, rpn.strides, (64, 96), sizes)
    assert found.valid.sum(dim=1).tolist() == [4 * 6 * 9, 0, 3 * 6 * 9]
    alone = sliding_windows(rpn.anchors, rpn.strides, (64, 96), sizes[2:])
    assert torch.equal(alone.boxes[0], found.boxes[2])


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_windows_are_some_from_everywhere(name: str) -> None:
    """The best N windows, as requested by `--top`, are spread over the image."""
    rpn = rpn_of(name)
    found = sliding_windows(rpn.anchors, rpn.strides, (600, 1000), torch.tensor([[600.0, 1000.0]]))
    first = found.boxes[0, :300]
    centres = (first[:, :2] + first[:, 2:]) / 2
    for quarter in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inside = (centres[:, 0] > 500) == quarter[0], (centres[:, 1] > 300) == quarter[1]
        assert 40 < (inside[0] & inside[1]).sum() < 110
