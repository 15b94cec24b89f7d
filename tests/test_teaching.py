"""The functions of a tutorial (reference 004 of docs/references.md) and crops, against oracles and worked numbers.

The oracles below implement what the tutorial publishes: plain loops with one IEEE rounding to float32 per step if that
gives the same bits, and otherwise torch's operations in the published order. Each function equals its oracle to the bit
in 1,000 random cases, which include the edge cases that the tutorial does not describe.
"""

import math
from collections.abc import Sequence
from inspect import Parameter, Signature, signature

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from rcnn.config import Anchors
from rcnn.model.anchors import RULES, cell_anchors, grid_anchors
from rcnn.model.boxes import clip, decode, encode
from rcnn.teaching import crop_regions, filter_proposals, generate_anchors, rpn_loss
from tests.model import worked

CASES = 1000


def test_signatures_and_defaults_are_the_published_ones():
    topk, thresholds = "pre_nms_topk=2000, post_nms_topk=300", "nms_threshold=0.7, score_threshold=0.0"
    published = {
        generate_anchors: "(feature_size, stride, scales=(32, 64, 128, 256, 512), ratios=(0.5, 1.0, 2.0))",
        rpn_loss: "(cls_logits, box_deltas, labels, reg_targets, lambda_reg=10.0)",
        filter_proposals: f"(boxes, scores, {topk}, {thresholds})",
    }
    for function, expected in published.items():
        parameters = [entry.replace(annotation=Parameter.empty) for entry in signature(function).parameters.values()]
        assert str(Signature(parameters)) == expected


def anchors_by_loops(
    feature_size: tuple[int, int], stride: float, scales: Sequence[float], ratios: Sequence[float]
) -> np.ndarray:
    """Compute the anchors one by one: row, column, scale, ratio. Shapes are double precision and rounded once."""
    rows = []
    for row in range(feature_size[0]):
        for column in range(feature_size[1]):
            x, y = (np.float32(cell + 0.5) * np.float32(stride) for cell in (column, row))
            for scale in scales:
                for ratio in ratios:  # width over height
                    dx, dy = (np.float32(side / 2) for side in (scale * ratio**0.5, scale / ratio**0.5))
                    rows.append([x - dx, y - dy, x + dx, y + dy])
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def test_anchors_are_the_published_ones_to_the_bit():
    for seed in range(CASES):
        random = np.random.default_rng(seed)
        grid = tuple(int(side) for side in random.integers(0, 5, 2))
        stride = int(2 ** random.integers(0, 7)) if seed % 3 else float(random.uniform(1, 70))
        scales = random.choice([16, 32, 100, 512], random.integers(1, 4)).tolist() + random.uniform(1, 900, 1).tolist()
        ratios = random.choice([0.5, 1.0, 2.0], random.integers(1, 3)).tolist() + random.uniform(0.05, 20, 1).tolist()
        found, expected = generate_anchors(grid, stride, scales, ratios), anchors_by_loops(grid, stride, scales, ratios)
        assert torch.equal(found, torch.from_numpy(expected)), seed


def test_anchors_have_five_scales_by_default():
    expected = anchors_by_loops((2, 3), 16, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    assert torch.equal(generate_anchors((2, 3), 16), torch.from_numpy(expected))
    assert len(expected) == 2 * 3 * 15


def test_reference_004_rows():
    boxes = generate_anchors((2, 3), 16, scales=(32,), ratios=(0.5, 1.0, 2.0))
    assert boxes.shape == (18, 4)
    expected = [[-3.3137, -14.6274, 19.3137, 30.6274], [8, -8, 40, 24], [17.3726, 12.6863, 62.6274, 35.3137]]
    torch.testing.assert_close(boxes[[0, 4, 17]], torch.tensor(expected), atol=1e-4, rtol=0)
    wide = generate_anchors((1, 1), 16, scales=(128, 256), ratios=(0.5, 1.0, 2.0))
    sides = wide[:, 2:] - wide[:, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor([128.0] * 3 + [256.0] * 3).square())
    assert (sides[0] == torch.tensor([90.50966799, 181.01933598])).all()  # w/h = 0.5 is tall


def test_the_detector_has_these_anchors_as_a_rule_of_its_own():
    """With `anchors.ratio=w/h`, except for the last bit: the detector divides, the tutorial multiplies."""
    scales, ratios = (32.0, 64.0), (0.5, 1.0, 2.0)
    rule = Anchors.model_validate({"sizes": (scales,), "ratios": ratios, **RULES["reference-004"]})
    ours = grid_anchors(cell_anchors(rule, 0), (2, 3), (16, 16), rule.offset)
    torch.testing.assert_close(ours, generate_anchors((2, 3), 16, scales, ratios))
    plain = Anchors(sizes=(scales,), ratios=(2.0, 1.0, 0.5))
    swapped = grid_anchors(cell_anchors(plain, 0), (2, 3), (16, 16), plain.offset)
    torch.testing.assert_close(swapped, generate_anchors((2, 3), 16, scales, ratios))


def loss_by_steps(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Pick rows one by one, and add the means of cross-entropy and smooth L1; NaN if all rows are ignored."""
    rows = [(image, anchor) for image, of in enumerate(labels.tolist()) for anchor in range(len(of))]
    used = [row for row in rows if labels[row] != -1]
    objects = [row for row in rows if labels[row] == 1]
    picked = torch.stack([logits[row] for row in used]) if used else logits[:0, 0]
    loss = F.cross_entropy(picked, torch.tensor([int(labels[row]) for row in used], dtype=torch.int64))
    if objects:
        pair = (torch.stack([tensor[row] for row in objects]) for tensor in (deltas, targets))
        return loss + weight * F.smooth_l1_loss(*pair)
    return loss


def loss_by_hand(logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, weight: float) -> float:
    """Compute the same by formulas in double precision; the mean of no values is 0."""
    logs, smooth = [], []
    for z, d, label, t in zip(
        *(logits.flatten(0, 1).tolist(), deltas.flatten(0, 1).tolist()),
        *(labels.flatten().tolist(), targets.flatten(0, 1).tolist()),
        strict=True,
    ):
        if label >= 0:
            logs.append(math.log1p(math.exp(z[1 - label] - z[label])))
        if label == 1:
            sizes = [abs(a - b) for a, b in zip(d, t, strict=True)]
            smooth += [size * size / 2 if size < 1 else size - 0.5 for size in sizes]
    return sum(logs) / max(1, len(logs)) + weight * sum(smooth) / max(1, len(smooth))


def test_the_loss_and_its_gradients_are_the_published_ones_to_the_bit():
    undefined = 0
    for seed in range(CASES):
        random = torch.Generator().manual_seed(seed)
        images, count = 1 + seed % 3, int(torch.randint(1, 12, (1,), generator=random))
        logits, deltas, targets = (torch.randn(images, count, n, generator=random) * 2 for n in (2, 4, 4))
        kinds = ((-1, 2), (0, 2), (-1, 1), (0, 1), (1, 2), (-1, 0))[seed % 6]  # all; no ignored; no positive; one only
        labels = torch.randint(*kinds, (images, count), generator=random)
        weight = (10.0, 1.0, 0.0)[seed // 6 % 3]
        values, gradients = [], []
        for function in (rpn_loss, loss_by_steps):
            leaves = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
            value = function(*leaves, labels, targets, weight)
            assert value.shape == ()
            value.backward()
            values.append(value.detach())
            gradients.append([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
        ours, published = values
        assert ours.item() == pytest.approx(
            loss_by_hand(logits, deltas, labels, targets, weight), rel=1e-5, abs=1e-6
        ), seed
        if (labels == -1).all():
            undefined += 1
            assert published.isnan()
            assert ours == 0
        else:
            assert torch.equal(ours, published), seed
            assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), seed
    assert undefined > CASES / 6 - 1


def test_the_loss_of_reference_004():
    rpn = worked.network()
    out = worked.output(rpn)
    assignment = rpn.assign(out.anchors[0], worked.targets(), worked.SIZES)
    targets = encode(worked.OBJECTS[0][assignment.truth], out.anchors[0])
    (logits,), (deltas,), labels = out.logits, out.deltas, worked.labels(assignment)
    assert rpn_loss(logits, deltas, labels, targets, 0.0).item() == pytest.approx(0.656552, abs=1e-6)
    assert rpn_loss(logits, deltas, labels, targets).item() == pytest.approx(0.656552 + 0.391675, abs=1e-6)


def test_the_loss_is_the_detectors_with_means():
    """`rpn.normaliser=mean`, lambda 10 and smooth L1 of beta 1, if the sample is large enough for all anchors."""
    rpn = worked.network(**{"normaliser": "mean", "lambda": 10.0, "beta": 1.0, "samples": 120})
    out = worked.output(rpn)
    losses = rpn.loss(out, worked.targets(), worked.SIZES, torch.rand(1, 60, dtype=torch.float64))
    assignment = rpn.assign(out.anchors[0], worked.targets(), worked.SIZES)
    targets = encode(worked.OBJECTS[0][assignment.truth], out.anchors[0])
    loss = rpn_loss(out.logits[0], out.deltas[0], worked.labels(assignment), targets)
    torch.testing.assert_close(loss, sum(total / count for total, count in losses.values()))


@pytest.mark.parametrize("label", [0, -1])
def test_without_positives_the_box_loss_is_a_zero_with_a_gradient(label: int):
    """No samples, or negatives alone, with targets that are not finite: the loss is not NaN and has a gradient."""
    rpn = worked.network()
    (logits,), (deltas,), _ = worked.output(rpn)[:3]
    labels = torch.full((1, 60), label)
    loss = rpn_loss(logits, deltas, labels, torch.full((1, 60, 4), math.nan))
    assert bool(loss > 0) == (label == 0)
    loss.backward()
    assert deltas.grad is not None
    assert not deltas.grad.any()
    assert logits.grad.any() if label == 0 else not logits.grad.any()
    assert logits.grad.isfinite().all()


def proposals_by_steps(
    boxes: Tensor, scores: Tensor, before: int, after: int, most: float, lowest: float
) -> tuple[Tensor, Tensor]:
    """Apply the threshold, `topk` if more remain, then a loop that compares each box with the better ones kept."""
    rows = [i for i, score in enumerate(scores.numpy()) if score > np.float32(lowest)]
    if len(rows) > before:
        rows = [rows[i] for i in scores[rows].topk(before).indices.tolist()]
    x1, y1, x2, y2 = boxes[rows].numpy().reshape(-1, 4).T
    areas = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -scores[rows[i]].item()):  # stable: the earlier of equal ones first
        width = np.minimum(x2[i], x2[kept]) - np.maximum(x1[i], x1[kept])
        height = np.minimum(y2[i], y2[kept]) - np.maximum(y1[i], y1[kept])
        common = width.clip(min=0) * height.clip(min=0)
        with np.errstate(invalid="ignore"):  # 0 / 0 of two empty boxes suppresses nothing
            if not ((common / (areas[i] + areas[kept] - common)).astype(float) > most).any():
                kept.append(i)
    chosen = [rows[i] for i in kept[:after]]
    return boxes[chosen].view(-1, 4), scores[chosen]


def test_filtered_proposals_are_the_published_ones_to_the_bit():
    """Boxes lie on quarters of a pixel, so areas and sums are exact; every other case has equal scores."""
    for seed in range(CASES):
        random = torch.Generator().manual_seed(seed)
        count, before, after = (int(torch.randint(0, most, (1,), generator=random)) for most in (40, 30, 20))
        low = torch.randint(0, 120, (count, 2), generator=random)
        boxes = torch.cat((low, low + torch.randint(0, 80, (count, 2), generator=random)), dim=1) / 4
        scores = torch.rand(count, generator=random)
        if seed % 2:
            scores = (scores * 5).round() / 5
        if seed % 5 == 0:
            before, after = 2000, 300
        options = (before, after, (0.7, 0.5, 0.25, 1.0)[seed // 2 % 4], (0.0, 0.2, 0.6)[seed // 8 % 3])
        found, expected = filter_proposals(boxes, scores, *options), proposals_by_steps(boxes, scores, *options)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True)), seed


def test_equal_scores_keep_their_order_if_all_boxes_enter():
    boxes = torch.arange(40.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])  # no two overlap
    scores = torch.full((40,), 0.5)
    for most in (40, 41, 2000):
        assert torch.equal(filter_proposals(boxes, scores, most)[0], boxes)


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
        ({"score_threshold": 0.7}, [4, 0, 1]),  # scores must be higher: box 2 is dropped
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


def test_the_rpn_filters_the_same_boxes():
    """With clipped boxes of one level and no minimum size, the RPN's own filter gives the same.

    All boxes enter: if some are left out, the RPN prefers the first of equal scores, but `topk` may take any of them.
    """
    rpn = worked.network(min_size=0.0)
    out = worked.output(rpn)
    boxes = clip(decode(out.deltas[0], out.anchors[0]), worked.SIZES)[0]
    scores = rpn.scores(out.logits[0])[0].sigmoid()
    whole = rpn.propose(out, worked.SIZES, pre=len(scores), post=20)
    plain, best = filter_proposals(boxes, scores, len(scores), 20)
    assert torch.equal(plain, whole.boxes[0][whole.valid[0]])
    assert torch.equal(best, whole.scores[0][whole.valid[0]])


@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_crop_that_is_not_resized_equals_the_pixels(size: int):
    """At every position of noise, in which no average equals a pixel, also along the edges."""
    image = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    corners = [(x, y) for y in range(8 - size + 1) for x in range(10 - size + 1)]
    boxes = torch.tensor([(x, y, x + size, y + size) for x, y in corners]).float().expand(2, -1, -1)
    crops = crop_regions(image, boxes, size)
    for i, (x, y) in enumerate(corners):
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
    expected = F.interpolate(image, size=(12, 12), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(crop, expected)


def test_crops_are_classified_by_a_network_one_by_one():
    """As in R-CNN, anchors are moved by their deltas, cropped from the image and classified separately."""
    rpn = worked.network()
    found = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=5)
    crops = crop_regions(torch.rand(1, 3, worked.HEIGHT, worked.WIDTH, dtype=torch.float64), found.boxes, 8)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)).double()
    assert classifier(crops.flatten(0, 1)).shape == (5, 4)
