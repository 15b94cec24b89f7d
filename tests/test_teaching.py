"""The functions of tutorials, against worked numbers, plain loops and what the whole network does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from rcnn.model.boxes import clip, decode, encode
from rcnn.teaching import crop_regions, filter_proposals, generate_anchors, rpn_loss
from tests.model import worked


def test_reference_004_rows():
    boxes = generate_anchors((2, 3), 16, scales=(32,), ratios=(0.5, 1.0, 2.0))
    assert boxes.shape == (18, 4)
    expected = [[-3.3137, -14.6274, 19.3137, 30.6274], [8, -8, 40, 24], [17.3726, 12.6863, 62.6274, 35.3137]]
    torch.testing.assert_close(boxes[[0, 4, 17]], torch.tensor(expected), atol=1e-4, rtol=0)
    wide = generate_anchors((1, 1), 16, scales=(128, 256), ratios=(0.5, 1.0, 2.0))
    sides = wide[:, 2:] - wide[:, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor([128.0] * 3 + [256.0] * 3).square())
    assert (sides[0] == torch.tensor([90.50966799, 181.01933598])).all()  # w/h = 0.5 is tall


def test_the_loss_of_reference_004():
    rpn = worked.network()
    out = worked.output(rpn)
    found = rpn.assign(out.anchors[0], worked.targets(), worked.SIZES)
    wanted = encode(worked.OBJECTS[0][found.truth], out.anchors[0])
    (logits,), (deltas,) = out.logits, out.deltas
    losses = rpn_loss(logits, deltas, worked.labels(found), wanted)
    assert [loss.item() for loss in losses] == pytest.approx([0.656552, 0.391675], abs=1e-6)
    torch.testing.assert_close(rpn_loss(logits[..., 1] - logits[..., 0], deltas, worked.labels(found), wanted), losses)


@pytest.mark.parametrize("label", [0, -1])
def test_without_positives_the_box_loss_is_a_zero_with_a_gradient(label: int):
    """Nothing sampled, or negatives alone, with targets that are not even finite: no NaN, no detached zero."""
    rpn = worked.network()
    (logits,), (deltas,), _ = worked.output(rpn)[:3]
    labels = torch.full((1, 60), label)
    classification, box = rpn_loss(logits, deltas, labels, torch.full((1, 60, 4), math.nan))
    assert box == 0
    assert bool(classification > 0) == (label == 0)
    (classification + box).backward()
    assert not deltas.grad.any()
    assert logits.grad.isfinite().all()


BOXES = torch.tensor(
    [
        *([0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 5], [20, 20, 30, 30]),
        *([21, 20, 31, 30], [5, 5, 15, 15], [0, 0, 10, 10]),
    ]
)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.5, 0.4])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"nms_threshold": 0.3}, [4, 0, 5]),
        ({"nms_threshold": 0.5}, [4, 0, 2, 5]),
        ({}, [4, 0, 1, 2, 5]),
        ({"post_nms_topk": 2}, [4, 0]),
        ({"pre_nms_topk": 3}, [4, 0, 1]),
        ({"score_threshold": 0.7}, [4, 0, 1]),  # more than, not as much: box 2 goes
        ({"score_threshold": 0.96}, []),
    ],
)
def test_worked_example_of_seven_boxes(options: dict, kept: list[int]):
    boxes, scores = filter_proposals(BOXES, SCORES, **options)
    assert torch.equal(boxes, BOXES[kept])
    assert torch.equal(scores, SCORES[kept])


def test_the_filter_equals_its_steps_one_after_another():
    torch.manual_seed(0)
    low = torch.rand(400, 2) * 80
    boxes, scores = torch.cat((low, low + 5 + torch.rand(400, 2) * 40), dim=1), torch.rand(400)
    above = scores > 0.25
    some, of = boxes[above], scores[above]
    some, of = some[of.topk(200).indices], of.topk(200).values
    kept: list[int] = []
    for i, overlaps in enumerate(box_iou(some, some)):
        if not (overlaps[kept] > 0.7).any():
            kept.append(i)
    kept = kept[:50]
    found = filter_proposals(boxes, scores, 200, 50, 0.7, 0.25)
    torch.testing.assert_close(found, (some[kept], of[kept]))
    assert len(found[1]) == 50


def test_a_whole_network_filters_the_same_boxes():
    """With clipped boxes of one level and no limit on their size the RPN's own filter says the same."""
    rpn = worked.network(min_size=0.0)
    out = worked.output(rpn)
    whole = rpn.propose(out, worked.SIZES, pre=40, post=20)
    boxes = clip(decode(out.deltas[0], out.anchors[0]), worked.SIZES)[0]
    scores = rpn.scores(out.logits[0])[0].sigmoid()
    plain, best = filter_proposals(boxes, scores, 40, 20)
    assert torch.equal(plain, whole.boxes[0][whole.valid[0]])
    assert torch.equal(best, whole.scores[0][whole.valid[0]])


@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_crop_of_its_own_size_is_the_pixels(size: int):
    """Of noise, so that no average passes for the pixel; at every place, also along the edges."""
    image = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    places = [(x, y) for y in range(8 - size + 1) for x in range(10 - size + 1)]
    boxes = torch.tensor([(x, y, x + size, y + size) for x, y in places]).float().expand(2, -1, -1)
    crops = crop_regions(image, boxes, size)
    for i, (x, y) in enumerate(places):
        assert torch.equal(crops[:, i], image[:, :, y : y + size, x : x + size])


@pytest.mark.parametrize("times", [2, 3])
def test_a_shrunk_crop_averages_every_pixel(times: int):
    image = torch.randn(1, 3, 12, 18, generator=torch.Generator().manual_seed(0))
    crop = crop_regions(image, torch.tensor([[[6.0, 0, 18, 12]]]), 12 // times)[0, 0]
    torch.testing.assert_close(crop, F.avg_pool2d(image[0, :, :, 6:], times))
    stripes = torch.tensor([0.0, 1.0]).repeat(18).expand(1, 1, 12, 36)  # finer than the crop's pixels
    uneven = crop_regions(stripes, torch.tensor([[[2.0, 0, 32, 12]]]), 12)  # 2.5 by 1 pixels to one
    assert ((uneven - 0.5).abs() <= 0.5 / 2.5).all()


def test_an_enlarged_crop_is_interpolated():
    image = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    crop = crop_regions(image, torch.tensor([[[0.0, 0, 6, 6]]]), 12)[0, 0]
    wanted = F.interpolate(image, size=(12, 12), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(crop, wanted)


def test_crops_feed_a_network_of_their_own_once_a_box():
    """The way of R-CNN: anchors are moved by their deltas, cut out of the image and classified each by itself."""
    rpn = worked.network()
    found = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=5)
    crops = crop_regions(torch.rand(1, 3, worked.HEIGHT, worked.WIDTH, dtype=torch.float64), found.boxes, 8)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)).double()
    assert classifier(crops.flatten(0, 1)).shape == (5, 4)
