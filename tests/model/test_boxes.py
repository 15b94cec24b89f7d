import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops as tv

from rcnn.model import boxes as box_ops

coordinate = st.floats(-500, 500, width=32)
side = st.floats(0.5, 400, width=32)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], coordinate, coordinate, side, side)
NORMAL = box_ops.Normal(*torch.tensor([[0.01, -0.02, 0.05, 0.03], [0.1, 0.1, 0.2, 0.2]], dtype=torch.float64))
boxes = st.lists(box, min_size=1, max_size=8).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@given(boxes, boxes)
def test_overlaps_equal_torchvision(a, b):
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    torch.testing.assert_close(box_ops.pairwise_iou(a, b), tv.box_iou(a, b))
    torch.testing.assert_close(box_ops.generalised_iou(a, b, "giou"), tv.generalized_box_iou(a, b).diagonal())
    for kind, loss in (("diou", tv.distance_box_iou_loss), ("ciou", tv.complete_box_iou_loss)):
        torch.testing.assert_close(1 - box_ops.generalised_iou(a, b, kind), loss(a, b), atol=1e-6, rtol=1e-6)


@given(boxes)
def test_iou_is_symmetric_and_between_0_and_1(a):
    overlap = box_ops.pairwise_iou(a, a)
    assert torch.equal(overlap, overlap.mT)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-12)).all()
    torch.testing.assert_close(overlap.diagonal(), torch.ones(len(a), dtype=torch.float64))


@given(boxes, box, st.sampled_from([box_ops.PLAIN, NORMAL]))
def test_decode_undoes_encode(targets, anchor, normal):
    anchors = torch.tensor([anchor], dtype=torch.float64).expand_as(targets)
    growth = (targets[:, 2:] - targets[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    back = box_ops.decode(box_ops.encode(targets, anchors, normal), anchors, normal)
    fits = (growth < 62.4).all(dim=1)
    torch.testing.assert_close(back[fits], targets[fits], atol=1e-6, rtol=1e-9)


def test_decode_limits_growth():
    huge = box_ops.decode(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    torch.testing.assert_close(huge[0, 2:] - huge[0, :2], torch.tensor([1000.0, 1000.0]))


def test_inclusive_boxes_of_the_paper():
    a, b = torch.tensor([[8.0, 8, 39, 39]]), torch.tensor([[9.0, 9, 39, 43]])
    last = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert box_ops.iou(a + last, b + last).item() == pytest.approx(0.837108, abs=1e-6)
    assert box_ops.iou(a, b).item() == pytest.approx(0.832562, abs=1e-6)


def test_worked_targets():
    anchor = torch.tensor([[8.0, 8, 40, 40], [45, 18, 67, 62]], dtype=torch.float64)
    gt = torch.tensor([[9.0, 9, 40, 44], [44, 14, 76, 62]], dtype=torch.float64)
    decoded = box_ops.decode(torch.tensor([[-0.2, 0.3, 0.1, -0.1]], dtype=torch.float64), anchor[:1])
    for found, expected in (
        (box_ops.encode(gt, anchor)[0], [0.015625, 0.078125, -0.031749, 0.089612]),
        (box_ops.encode(gt, anchor)[1], [0.181818, -0.045455, 0.374693, 0.087011]),
        (box_ops.encode(gt, anchor, box_ops.Normal(0.0, NORMAL.std))[0], [0.15625, 0.78125, -0.158743, 0.448061]),
        (box_ops.encode(gt, anchor, NORMAL)[0], [0.05625, 0.98125, -0.408743, 0.298061]),
        (decoded[0], [-0.082735, 19.122601, 35.282735, 48.077399]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@given(boxes)
def test_clip_keeps_boxes_inside_their_images(rows):
    sizes = torch.tensor([[100.0, 50.0], [20.0, 300.0]], dtype=torch.float64)
    clipped = box_ops.clip(rows.expand(2, -1, -1), sizes)
    for image, (height, width) in zip(clipped, sizes.tolist(), strict=True):
        torch.testing.assert_close(image, tv.clip_boxes_to_image(rows, (height, width)))


def test_sides_are_compared_one_by_one():
    sides = torch.tensor([0.0, -1.0, 2.0, 3.0, torch.nan, torch.inf])
    low = torch.zeros(len(sides), len(sides), 2)
    boxes = torch.cat((low, torch.stack(torch.meshgrid(sides, sides, indexing="ij"), dim=-1)), dim=-1)
    for least in (0.0, 2.5):
        long = (sides > 0) & (sides >= least)
        assert torch.equal(box_ops.larger_than(boxes, least), long[:, None] & long)
