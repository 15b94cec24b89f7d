"""A second stage of several heads: each is trained on the boxes that the previous head refined."""

import pytest
import torch

from rcnn.errors import SettingsError
from rcnn.model.fast_rcnn import FastRCNN, FCHead, RoIHead, class_probabilities
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.runtime.steady import make_steady
from tests.model import tiny

AGNOSTIC = {"roi": {"class_agnostic": True}}


def cascade() -> FasterRCNN:
    net = tiny.model(AGNOSTIC)
    first = net.fast_rcnn
    later = tiny.settings({"roi": {"class_agnostic": True, "positive_iou": 0.6, "negative_iou": [0.0, 0.6]}}).roi
    second = RoIHead(FCHead(8, later.size, later.hidden), first.strides, 3, later)
    net.fast_rcnn = FastRCNN(first.head, first.strides, 3, first.settings, [second])
    return net


def test_two_heads_learn_and_the_last_one_gives_the_boxes():
    net, losses = cascade(), []
    data, targets, keys = tiny.scene(net, 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(30):
        step, _ = tiny.backward(net, net.loss(data, targets, keys))
        optimizer.step()
        losses.append(tiny.total({name: step[name] for name in ("roi_class_2", "roi_box_2")}).item())
    assert step.keys() == {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_class_2", "roi_box_2"}
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        _, _, proposals, (first, second), found = net.execute(data)
    heads = net.fast_rcnn.heads
    assert torch.equal(first.boxes, proposals.boxes)
    assert torch.equal(second.boxes, heads[0].refine(first, data.sizes)[:, :, 0])
    refined = heads[1].refine(second, data.sizes)
    scores = class_probabilities(torch.stack((first.logits, second.logits)))
    assert found.valid[0].any()
    for image in range(2):
        real = found.valid[image]
        row, label = found.proposal[image, real], found.labels[image, real]
        assert torch.equal(found.boxes[image, real], refined[image, row, 0])
        torch.testing.assert_close(found.scores[image, real], scores.mean(dim=0)[image, row, label])


def test_two_heads_are_one_graph_and_an_image_gives_the_same_alone_as_in_a_batch():
    net, (data, _) = cascade().eval(), tiny.batch(3)
    with torch.no_grad():
        torch.testing.assert_close(tiny.one_graph(net)(data), net(data))
        make_steady(net)
        together = net(data)
        for image in ([0], [1], [2]):
            alone = net(tiny.rows(data, image))
            torch.testing.assert_close(alone, tiny.rows(together, image), rtol=0, atol=0)


def test_one_head_has_the_names_of_weights_that_files_hold():
    names = {name for name in tiny.model().state_dict() if name.startswith("fast_rcnn.")}
    layers = ("head.fc6", "head.fc7", "predictor.cls", "predictor.reg")
    assert names == {f"fast_rcnn.{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    added = cascade().state_dict().keys() - tiny.model(AGNOSTIC).state_dict().keys()
    assert added == {name.replace("fast_rcnn.", "fast_rcnn.later.0.") for name in names}


def test_heads_that_do_not_exist_are_refused():
    first = tiny.model().fast_rcnn
    with pytest.raises(SettingsError, match=r"set roi\.class_agnostic=true"):
        FastRCNN(first.head, first.strides, 3, first.settings, [first])
    with pytest.raises(SettingsError, match=r"roi\.head=conv5 is the fifth stage of a ResNet: .* rcnn\.presets\.build"):
        FasterRCNN(tiny.TinyBackbone(), tiny.settings({"roi": {"head": "conv5"}}), 3)
