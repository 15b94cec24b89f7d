"""A second stage of several heads, each trained on the boxes that the previous one refined: Cascade R-CNN."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from rcnn.config import override
from rcnn.errors import SettingsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build, settings_of
from rcnn.runtime.folded import folded
from rcnn.runtime.steady import make_steady
from tests.model import tiny

CASCADE = {"roi": {"stages": 3}}
IOUS, STDS = (0.5, 0.6, 0.7), (1.0, 1 / 2, 1 / 3)
"""Thresholds of the heads, and factors of their deviations (arXiv 1712.00726)."""
LOSSES = [f"roi_{part}{suffix}" for suffix in ("", "_2", "_3") for part in ("class", "box")]


def cascade(seed: int = 0) -> FasterRCNN:
    return tiny.model(CASCADE, seed=seed)


def test_each_head_has_the_threshold_and_the_deviations_of_its_stage():
    heads = cascade().fast_rcnn.heads
    assert [head.settings.positive_iou for head in heads] == pytest.approx(IOUS)
    assert [head.settings.negative_iou for head in heads] == [pytest.approx((0.0, iou)) for iou in IOUS]
    assert all(head.settings.class_agnostic for head in heads)
    for head, factor in zip(heads, STDS, strict=True):
        torch.testing.assert_close(head.box_std, factor * torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=torch.float64))
    chosen = tiny.settings({"roi": {"stages": 2, "stage_iou": [0.4, 0.75]}}).roi.cascade
    assert [stage.positive_iou for stage in chosen] == [0.4, 0.75]
    assert [stage.negative_iou for stage in chosen] == [(0.0, 0.4), (0.0, 0.75)]


# The naive reference: plain loops over images, heads and RoIs, with torchvision's pooling, coder and IoU.

CODERS = [BoxCoder(tuple(1 / (factor * std) for std in (0.1, 0.1, 0.2, 0.2))) for factor in STDS]


def outputs(net: FasterRCNN, number: int, levels: list[Tensor], box: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (K + 1) and deltas (4) of a head for one box of one image."""
    head, side = net.fast_rcnn.heads[number], (box[2:] - box[:2]).clamp(min=1e-12).prod().sqrt()
    level = min(max(math.floor(4 + math.log2(max(side.item(), 1e-6) / 32) + 1e-6) - 3, 0), 1)
    pooled = roi_align(levels[level], [box[None]], 3, 1 / (8, 16)[level], 2, aligned=True)
    hidden = F.relu(head.head.fc7(F.relu(head.head.fc6(pooled.flatten(1)))))
    return head.predictor.cls(hidden)[0], head.predictor.reg(hidden)[0]


def moved(number: int, box: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    decoded = CODERS[number].decode_single(deltas[None], box[None])
    return clip_boxes_to_image(decoded, (size[0].item(), size[1].item()))[0]


def naive_losses(net: FasterRCNN, data, targets, sampled) -> dict[str, Tensor]:
    levels, sums = list(net.backbone(data.images).values()), dict.fromkeys(LOSSES, torch.zeros((), dtype=torch.float64))
    counts = dict.fromkeys(LOSSES, 0)
    for image, size in enumerate(data.sizes):
        maps = [level[image : image + 1] for level in levels]
        truth, labels = (part[image][targets.valid[image]] for part in (targets.boxes, targets.labels))
        for row in sampled.rois[image][sampled.drawn.valid[image]]:
            box = row
            for number, (iou, suffix) in enumerate(zip(IOUS, ("", "_2", "_3"), strict=True)):
                logits, deltas = outputs(net, number, maps, box)
                overlap = box_iou(box[None], truth)[0] if len(truth) else box.new_zeros(1)
                positive = overlap.max() >= iou
                label = labels[overlap.argmax()] if positive else torch.tensor(net.classes)
                weight = 0.5**number
                sums[f"roi_class{suffix}"] = sums[f"roi_class{suffix}"] + weight * F.cross_entropy(logits, label)
                if positive:
                    target = CODERS[number].encode_single(truth[overlap.argmax()][None], box[None])[0]
                    loss = F.smooth_l1_loss(deltas, target, reduction="sum", beta=1 / 9)
                    sums[f"roi_box{suffix}"] = sums[f"roi_box{suffix}"] + weight * loss
                for part in ("class", "box"):
                    counts[f"roi_{part}{suffix}"] += 1
                box = moved(number, box, deltas, size).detach()
    return {name: (sums[name], torch.tensor(counts[name])) for name in LOSSES}


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_equal_those_of_plain_loops(seed: int):
    net = cascade(seed).double()
    data, targets, keys = tiny.scene(net, 2, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        pass_ = net.execute(data)
        maps = net._roi_maps(pass_.levels)
        proposals = net.rpn.propose(pass_.rpn, data.sizes, pre=40, post=24)
        sampled = net.fast_rcnn.sample(maps, proposals, targets, keys.roi)
    losses = net.loss(data, targets, keys)
    ours, gradients = tiny.backward(net, {name: losses[name] for name in LOSSES})
    expected, expected_gradients = tiny.backward(net, naive_losses(net, data, targets, sampled))
    assert all(ours[f"roi_box{suffix}"][0] > 0 for suffix in ("", "_2", "_3"))
    for name in LOSSES:
        torch.testing.assert_close(ours[name][0], expected[name][0], rtol=1e-9, atol=1e-12)
        assert ours[name][1] == expected[name][1]
    assert gradients.keys() >= expected_gradients.keys()  # the loops do not touch a level that pools no RoI
    for name, gradient in gradients.items():
        expected_gradient = expected_gradients.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-10)


def test_detections_equal_those_of_plain_loops():
    net = cascade(1).double()
    data, _ = tiny.batch(2, seed=1, dtype=torch.float64)
    with torch.no_grad():
        levels, _, proposals, _, found = net.execute(data)
        assert found.valid.any()
        for image, size in enumerate(data.sizes):
            maps = [level[image : image + 1] for level in levels]
            real = found.valid[image]
            columns = (found.boxes, found.scores, found.labels, found.proposal)
            for final, score, label, proposal in zip(*(part[image][real] for part in columns), strict=True):
                box, probabilities = proposals.boxes[image, proposal], []
                for number in range(3):
                    logits, deltas = outputs(net, number, maps, box)
                    probabilities.append(logits.softmax(dim=0)[label])
                    box = moved(number, box, deltas, size)
                torch.testing.assert_close(final, box, rtol=0, atol=1e-9)
                torch.testing.assert_close(score, torch.stack(probabilities).mean(), rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences():
    net = cascade().double()
    data, targets, keys = tiny.scene(net, 2, dtype=torch.float64)
    tiny.total(net.loss(data, targets, keys)).backward()
    shifted = copy.deepcopy(net)
    # The boxes that a head refines are constants for the next one, so only weights of the last head are compared.
    for name in ("predictor.cls.weight", "head.fc6.weight", "predictor.reg.bias"):
        first, step, values = shifted.get_parameter(f"fast_rcnn.later.1.{name}").data.flatten()[:1], 1e-6, []
        for sign in (1, -1):
            first += sign * step
            values.append(tiny.total(shifted.loss(data, targets, keys)).detach())
            first -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        gradient = net.get_parameter(f"fast_rcnn.later.1.{name}").grad
        torch.testing.assert_close(gradient.flatten()[0], slope, atol=1e-6, rtol=1e-4)


def test_every_head_learns():
    net, history = cascade(), []
    data, targets, keys = tiny.scene(net, 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        step, _ = tiny.backward(net, net.loss(data, targets, keys))
        optimizer.step()
        history.append([tiny.total({name: step[name]}).item() for name in LOSSES[::2]])
    assert step.keys() == {"rpn_objectness", "rpn_box", *LOSSES}
    assert all(last < first / 2 for first, last in zip(history[0], history[-1], strict=True))


def test_it_is_one_graph_and_an_image_gives_the_same_alone_as_in_a_batch():
    net, (data, _) = cascade().eval(), tiny.batch(3)
    tiny.assert_one_graph(net, (2, 64, 96))
    with torch.no_grad():
        make_steady(net)
        together = net(data)
        for image in ([0], [1], [2]):
            alone = net(tiny.rows(data, image))
            torch.testing.assert_close(alone, tiny.rows(together, image), rtol=0, atol=0)


@pytest.mark.parametrize("what", ["no object", "fillers", "empty batch", "absurd padding"])
def test_padding_reaches_no_gradient(what: str):
    net = cascade()
    tiny.assert_padding_reaches_no_gradient(net, *tiny.batch(2), what)


def test_the_first_head_has_the_names_of_weights_that_files_hold():
    names = {name for name in tiny.model().state_dict() if name.startswith("fast_rcnn.")}
    layers = ("head.fc6", "head.fc7", "predictor.cls", "predictor.reg")
    assert names == {f"fast_rcnn.{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    added = cascade().state_dict().keys() - tiny.model().state_dict().keys()
    assert added == {name.replace("fast_rcnn.", f"fast_rcnn.later.{i}.") for name in names for i in range(2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["roi.stages=0"], "greater than or equal to 1"),
        (["roi.stage_iou=[0.5]"], "stage_iou needs several stages: set stages to 2 or more"),
        (["roi.stages=3", "roi.stage_iou=[0.5, 0.6]"], "stage_iou has 2 values, and there are 3 stages"),
        (["roi.stages=3", "roi.stage_iou=[0.5, 0.7, 0.6]"], r"must rise from stage to stage.*\[0.5, 0.7, 0.6\]"),
        (["roi.stages=3", "roi.stage_iou=[0.5, 0.5, 0.6]"], "must rise"),
        (["roi.stages=3", "roi.positive_iou=0.9"], r"up to 1 at most \(got \[0.9, 1.0, 1.1\]\)"),
        (["roi.stages=3", "roi.head=none"], r"stages=3 needs head=fc or conv-fc \(got none\)"),
        (["roi.stages=3", "roi.head=conv5"], r"stages=3 needs head=fc or conv-fc \(got conv5\)"),
    ],
)
def test_settings_that_make_no_cascade_are_refused(changes: list[str], message: str):
    with pytest.raises(SettingsError, match=message):
        override(tiny.settings(), changes)


def test_heads_that_do_not_exist_are_refused():
    with pytest.raises(SettingsError, match=r"roi\.head=conv5 is the fifth stage of a ResNet: .* rcnn\.presets\.build"):
        FasterRCNN(tiny.TinyBackbone(), tiny.settings({"roi": {"head": "conv5"}}), 3)
    with pytest.raises(SettingsError, match=r"roi\.stages=3 needs a head for each stage, and one module was passed"):
        FasterRCNN(tiny.TinyBackbone(), tiny.settings(CASCADE), 3, tiny.model().fast_rcnn.head)


@pytest.mark.parametrize("ranks", [[8, 8], [8]])
def test_ranks_are_checked_and_applied_in_every_head(ranks: list[int]):
    settings = settings_of("tiny-fpn", {**CASCADE, "predict": {"svd": ranks}})
    if len(ranks) == 1:
        with pytest.raises(SettingsError, match="give one rank for each of the head's layers"):
            build(settings, 3)
        return
    for head in folded(build(settings, 3)).fast_rcnn.heads:
        assert [len(layer) for layer in (head.head.fc6, head.head.fc7)] == [2, 2]
