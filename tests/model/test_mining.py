"""Hard examples: hand-worked draws of the RPN's negatives, and OHEM against a loop."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torchvision import ops as tv

from rcnn.config import Anchors, override
from rcnn.errors import SettingsError
from rcnn.model import mining
from rcnn.model.anchors import cell_anchors, pyramid_anchors
from rcnn.model.assign import Rule, assign
from rcnn.model.mining import texture
from rcnn.model.structures import take
from tests.model import tiny, worked

NEGATIVES = ["random", "overlap", "texture", "hard"]


def drawn(seed: int = 0, textures: Tensor | None = None, **settings: object) -> tuple[list[int], list[int]]:
    """Return the positive and negative anchors of the worked example that are drawn, in order."""
    rpn = worked.network(**settings)
    out, targets = worked.output(rpn), worked.targets()
    labels = rpn.assign(torch.cat(out.anchors), targets, worked.SIZES)
    keys = torch.rand(1, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with patch.object(mining, "texture", return_value=textures):
        found = rpn.draw(out, labels, targets, keys)
    negative = found.valid & ~found.positive
    return found.indices[found.positive].tolist(), found.indices[negative].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_hardest_negatives_of_the_worked_example(seed: int):
    positive, negative = drawn(seed, negatives="hard", samples=4)
    assert sorted(positive) == worked.POSITIVE
    assert negative == [37, 36]  # losses 1.313262 and 0.693147, the others 0.474077


def test_a_negative_that_overlaps_a_harder_one_is_drawn_later():
    assert drawn(negatives="hard", samples=4, negatives_nms=0.57)[1] == [37, 36]
    assert drawn(negatives="hard", samples=4, negatives_nms=0.56)[1] == [37, 23]  # IoU of 36 and 37 is 0.564706
    everything = drawn(negatives="hard", samples=60, negatives_nms=0.0)[1]
    assert everything[0] == 37
    assert sorted(everything) == worked.NEGATIVE


@pytest.mark.parametrize("seed", range(5))
def test_negatives_that_touch_an_object_go_first(seed: int):
    assert sorted(drawn(seed, negatives="overlap", negatives_iou=0.2, samples=5)[1]) == [23, 33, 36]
    assert drawn(seed, negatives="overlap", negatives_iou=0.29, samples=5)[1][0] == 33


def test_smooth_negatives_go_last():
    textures = torch.rand(1, 60)
    textures[0, worked.NEGATIVE] = torch.tensor([0.3, 0.1, 0.5, 0.4, 0.2])
    for seed in range(5):
        assert sorted(drawn(seed, textures, negatives="texture", negatives_smooth=0.4, samples=5)[1]) == [23, 36, 37]
        assert drawn(seed, textures, negatives="texture", negatives_smooth=0.8, samples=3)[1][0] == 36
    assert sorted(drawn(0, textures, negatives="texture", negatives_smooth=1.0, samples=60)[1]) == worked.NEGATIVE


@pytest.mark.parametrize("negatives", ["overlap", "texture", "hard"])
def test_missing_samples_are_drawn_at_random(negatives: str):
    """Two of five negatives are preferred, three are drawn: over many draws, the third is each of the others."""
    textures = torch.zeros(1, 60)
    textures[0, [36, 37]] = 1.0
    settings = {"negatives_iou": 0.205, "negatives_smooth": 0.6, "negatives_nms": 0.4}
    preferred = {"overlap": {23, 33, 36}, "texture": {36, 37}, "hard": {37, 23, 33}}[negatives]
    count = len(preferred) + 1
    thirds = set()
    for seed in range(30):
        found = drawn(seed, textures, negatives=negatives, samples=2 + count, **settings)[1]
        assert len(found) == count
        assert preferred <= set(found)
        thirds |= set(found) - preferred
    assert thirds == set(worked.NEGATIVE) - preferred


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_texture_is_the_deviation_of_the_cells_inside_an_anchor(offset: float):
    torch.manual_seed(0)
    settings = Anchors(sizes=((20, 50), (90, 30)), ratios=(0.5, 2.0), offset=offset)
    strides, grids = (8, 16), [(5, 7), (3, 4)]
    levels = [torch.randn(2, 3, *grid) for grid in grids]
    cells = [cell_anchors(settings, level, torch.float64) for level in range(2)]
    found = texture(levels, cells, strides, settings)
    anchors = torch.cat(pyramid_anchors(settings, grids, strides, (40, 56), cells))
    assert found.shape == (2, len(anchors))
    row = 0
    for level, stride, (height, width) in zip(levels, strides, grids, strict=True):
        own = torch.cartesian_prod(torch.arange(height), torch.arange(width), torch.arange(4)).tolist()
        y, x = (torch.arange(n).double() * stride + stride / 2 for n in (height, width))
        for i, j, _ in own:
            x1, y1, x2, y2 = anchors[row].tolist()
            rows, columns = (y >= y1) & (y <= y2), (x >= x1) & (x <= x2)
            if stride / 2 <= min(x2 - x1, y2 - y1):
                rows[i], columns[j] = True, True
            inside = level[:, :, rows][..., columns].double().flatten(2)
            expected = inside.var(dim=2, unbiased=False).mean(dim=1).sqrt()
            torch.testing.assert_close(found[:, row].double(), expected, rtol=1e-3, atol=1e-4)
            row += 1


def test_plain_background_has_no_texture():
    level = torch.full((1, 4, 8, 8), 3.0)
    level[..., 4:] = torch.randn(1, 4, 8, 4)
    found = texture([level], [torch.tensor([[-16.0, -16, 16, 16]])], (16,), Anchors()).view(8, 8)
    assert (found[:, :3] < 1e-3).all()
    assert (found[:, 4:] > 0.1).all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_positives_and_counts_are_those_of_a_random_draw(negatives: str):
    found = []
    for kind in ("random", negatives):
        net = tiny.model({"rpn": {"negatives": kind, "samples": 24}})
        data, targets, keys = tiny.scene(net, 3)
        pass_ = net.execute(data, fields=())
        labels = net.rpn.assign(torch.cat(pass_.rpn.anchors), targets, data.sizes)
        sample = net.rpn.draw(pass_.rpn, labels, targets, keys.rpn, pass_.levels)
        found.append((sample.valid, sample.positive, sample.indices[sample.positive]))
        chosen = take(worked.labels(labels), sample.indices)
        assert (chosen[sample.positive] == 1).all()
        assert (chosen[sample.valid & ~sample.positive] == 0).all()
        for indices, valid in zip(sample.indices, sample.valid, strict=True):  # no duplicates
            assert len(indices[valid].unique()) == valid.sum()
    assert all(map(torch.equal, *found))


CHANGES = [*({"rpn": {"negatives": kind}} for kind in NEGATIVES[1:]), {"roi": {"sampler": "ohem"}}]
ALL_KINDS = pytest.mark.parametrize("changes", CHANGES, ids=[*NEGATIVES[1:], "ohem"])


@ALL_KINDS
def test_an_image_has_the_same_losses_alone_and_in_a_batch_with_fillers(changes: dict):
    net = tiny.model(changes)
    data, targets, keys = tiny.scene(net, 2)
    alone = net.loss(*(tiny.rows(part, [0]) for part in (data, targets, keys)))
    filled = data._replace(sizes=data.sizes * torch.tensor([[1.0], [0.0]]))
    both = net.loss(filled, targets._replace(valid=targets.valid & torch.tensor([[True], [False]])), keys)
    for name, (total, count) in alone.items():
        torch.testing.assert_close(both[name][0] / both[name][1], total / count, msg=name)
    tiny.total(both).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@ALL_KINDS
def test_validation_sees_the_loss_of_training(changes: dict):
    net = tiny.model(changes).eval()
    scene = tiny.scene(net, 2)
    with torch.no_grad():
        expected, found = net.loss(*scene), net.loss(*scene, pass_=net.execute(scene[0]))
    torch.testing.assert_close(dict(found), dict(expected))


@pytest.mark.parametrize("changes", [CHANGES[1], {**CHANGES[2], **CHANGES[3]}], ids=["texture", "hard, ohem"])
def test_one_graph(changes: dict):
    net = tiny.model(changes)
    scene = tiny.scene(net, 2)
    torch.testing.assert_close(dict(tiny.one_graph(net.loss, "eager")(*scene)), dict(net.loss(*scene)))


@pytest.mark.parametrize("nms", [0.7, 0.3, 1.0])
def test_ohem_takes_the_hardest_rois_that_are_apart(nms: float):
    net = tiny.model({"roi": {"sampler": "ohem", "sampler_nms": nms, "box_weight": 2.0}})
    second, (data, targets) = net.fast_rcnn, tiny.batch(3)
    with torch.no_grad():
        levels, _, proposals, _, _ = net.execute(data)
        rois, found, truth = second.sample(levels, proposals, targets, torch.zeros(3, 0))
        boxes = torch.cat((proposals.boxes, targets.boxes), dim=1)
        allowed = torch.cat((proposals.valid, targets.valid), dim=1)
        rule = Rule(second.settings.positive_iou, *second.settings.negative_iou, force=False)
        labels = assign(boxes, allowed, targets.boxes, targets.valid, targets.ignore, rule)
        out = second(levels, boxes)
    for image in range(3):
        losses, classes = torch.full((boxes.shape[1],), -1.0), torch.zeros(boxes.shape[1], dtype=torch.int64)
        for r, label in enumerate(worked.labels(labels)[image].tolist()):
            if label >= 0:
                g = labels.truth[image, r]
                classes[r] = targets.labels[image, g] if label else 3
                losses[r] = torch.nn.functional.cross_entropy(out.logits[image, r], classes[r])
            if label == 1:
                box, roi = targets.boxes[image, g], boxes[image, r]
                centre, origin = ((corners[2:] + corners[:2]) / 2 for corners in (box, roi))
                size, unit = (corners[2:] - corners[:2] for corners in (box, roi))
                target = torch.cat(((centre - origin) / unit, (size / unit).log())) / torch.tensor([0.1, 0.1, 0.2, 0.2])
                delta = out.deltas[image, r, classes[r]]
                losses[r] += 2 * torch.nn.functional.smooth_l1_loss(delta, target, reduction="sum", beta=1 / 9)
        usable = (losses >= 0).nonzero().flatten()
        kept = usable[tv.batched_nms(boxes[image, usable], losses[usable], classes[usable], nms)][:16]
        valid = found.valid[image]
        assert found.indices[image][valid].tolist() == kept.tolist()
        assert torch.equal(found.positive[image][valid], labels.positive[image, kept])
        assert torch.equal(rois[image][valid], boxes[image, kept])
        assert torch.equal(truth[image][valid], labels.truth[image, kept])


def test_ohem_needs_no_keys_and_its_loss_is_higher_than_that_of_a_random_sample():
    net = tiny.model({"roi": {"sampler": "ohem"}})
    data, targets = tiny.batch(2)
    one, other = (net.loss(data, targets, tiny.keys(net, data, targets, seed)) for seed in (1, 2))
    assert one["roi_class"] == other["roi_class"]
    random = tiny.model().loss(data, targets, tiny.keys(net, data, targets))
    hard, drawn = (tiny.total({name: losses[name] for name in ("roi_class", "roi_box")}) for losses in (one, random))
    assert hard > drawn


def test_ohem_starts_at_an_overlap_of_zero():
    with pytest.raises(SettingsError, match=r"negative_iou must start at 0 \(got \(0.1, 0.5\)\)"):
        override(tiny.settings(), ["roi.sampler=ohem", "roi.negative_iou=[0.1, 0.5]"])
