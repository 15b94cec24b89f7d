import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from rcnn.backbones.norm import fold_batch_norm, freeze_batch_norm
from rcnn.config import RoI
from rcnn.model.fast_rcnn import ConvFCHead
from rcnn.model.rpn_head import RPNHead
from tests.backbones.test_norm import randomise
from tests.model import tiny

LEAVES = ("weight", "bias")
MANY = {"rpn": {"convs": 2}, "roi": {"head": "conv-fc", "convs": 2}, "model": {"channels": 8}}


@pytest.mark.parametrize("convs", [1, 2, 3])
def test_several_convolutions_of_the_rpn_are_torchvisions(convs: int):
    torch.manual_seed(0)
    ours = RPNHead(6, 6, 3, logits=1, kernel=3, convs=convs)
    theirs = TorchvisionRPNHead(6, 3, conv_depth=convs)
    names = [f"conv.{i}." if convs > 1 else "conv." for i in range(convs)]
    state = {f"conv.{i}.0.{leaf}": ours.state_dict()[name + leaf] for i, name in enumerate(names) for leaf in LEAVES}
    state |= {f"cls_logits.{leaf}": ours.state_dict()[f"cls.{leaf}"] for leaf in LEAVES}
    state |= {f"bbox_pred.{leaf}": ours.state_dict()[f"reg.{leaf}"] for leaf in LEAVES}
    theirs.load_state_dict(state)
    assert len(state) == len(ours.state_dict())
    feature = torch.randn(2, 6, 5, 7)
    (logits,), (deltas,) = theirs([feature])
    found = ours(feature)
    torch.testing.assert_close(found[0], logits.permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(found[1], deltas.permute(0, 2, 3, 1).reshape(2, -1, 4))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_convolutions_and_one_layer_are_torchvisions_head(norm: str):
    torch.manual_seed(0)
    ours = ConvFCHead(6, 7, 5, RoI(head="conv-fc", convs=3, hidden=11, head_norm=norm))  # type: ignore[arg-type]
    theirs = FastRCNNConvFCHead((6, 7, 7), [5] * 3, [11], nn.BatchNorm2d if norm == "batch" else None)
    randomise(theirs)
    state = {}
    for name, tensor in theirs.state_dict().items():
        first, _, leaf = name.partition(".")
        kind, _, leaf = leaf.rpartition(".")
        state[f"fc6.{leaf}" if first == "4" else f"{'norm' if kind == '1' else 'conv'}.{first}.{leaf}"] = tensor
    ours.load_state_dict(state)
    rois = torch.randn(4, 6, 7, 7)
    expected = theirs.eval()(rois)
    torch.testing.assert_close(ours.eval()(rois), expected)
    freeze_batch_norm(ours)
    assert ours.state_dict().keys() == state.keys()
    torch.testing.assert_close(ours.train()(rois), expected, rtol=1e-4, atol=1e-5)
    fold_batch_norm(ours)
    assert not any("norm" in name for name in ours.state_dict())
    torch.testing.assert_close(ours(rois), expected, rtol=1e-4, atol=1e-5)


def test_the_head_of_resnet50_v2_has_its_parameters():
    ours = ConvFCHead(256, 7, 256, RoI(head="conv-fc", hidden=1024, head_norm="batch"))
    theirs = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], nn.BatchNorm2d)
    assert [sum(p.numel() for p in head.parameters()) for head in (ours, theirs)] == [15_207_424] * 2


def test_improbable_proposals_are_dropped_before_suppression():
    net = tiny.model()
    data, _ = tiny.batch(2)
    with torch.no_grad():
        out = net.execute(data, fields=()).rpn
    every = net.rpn.propose(out, data.sizes, pre=40, post=24)
    least = float(every.scores[every.valid].median())
    strict = tiny.model({"rpn": {"score": least}}).rpn.propose(out, data.sizes, pre=40, post=24)
    likely = every.valid & (every.scores >= least)
    assert 0 < likely.sum() < every.valid.sum()
    assert torch.equal(strict.valid, likely)
    assert torch.equal(strict.boxes[likely], every.boxes[likely])


@pytest.mark.parametrize("least", [0.0, 12.0])
def test_small_boxes_are_dropped_before_suppression(least: float):
    net = tiny.model({"roi": {"min_size": least, "nms": 1.0, "detections": 200}}).eval()
    data, _ = tiny.batch(2)
    with torch.no_grad():
        found = net(data)
        net.fast_rcnn.settings = net.fast_rcnn.settings.model_copy(update={"min_size": 0.0})
        every = net(data)
    big = ((every.boxes[..., 2:] - every.boxes[..., :2]) >= least).all(-1) & every.valid
    assert (big.sum() < every.valid.sum()) == bool(least)
    for row in range(2):
        assert torch.equal(found.boxes[row][found.valid[row]], every.boxes[row][big[row]])


def test_without_a_second_stage_there_are_two_losses_and_the_same_proposals():
    whole, first = tiny.model(), tiny.model({"roi": {"head": "none"}})
    first.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fast_rcnn.")})
    data, targets, keys = tiny.scene(whole, 2)
    four, two = whole.loss(data, targets, keys), first.loss(data, targets, keys)
    assert two == {name: four[name] for name in ("rpn_objectness", "rpn_box")}
    torch.testing.assert_close(first.propose(data), whole.propose(data))
    pass_ = first.execute(data)
    assert pass_.rois == ()
    assert pass_.detections.boxes.shape == (2, 0, 4)
    assert pass_.detections.finite.all()
    torch.testing.assert_close(pass_.proposals, whole.propose(data))
    assert first.loss(data, targets, keys, pass_=pass_).keys() == two.keys()


def test_a_level_that_occurs_twice_is_read_once():
    class Backbone(tiny.TinyBackbone):
        strides = (8, 16, 16)

        def forward(self, images):
            maps = super().forward(images)
            maps["p4b"] = maps["p4"] * 2
            return maps

    changes = {"model": {"levels": [3, 4, 4]}, "anchors": {"sizes": [[16], [32], [32]]}, "roi": {"levels": [3, 4, 4]}}
    net = tiny.FasterRCNN(Backbone(), tiny.settings(changes), 3)
    assert (net.roi_levels, net.fast_rcnn.strides) == ((0, 1), (8, 16))
    scene = tiny.scene(net, 2)
    assert net.propose(scene[0]).valid.any()
    assert tiny.total(net.loss(*scene)).isfinite()


def test_many_convolutions_are_one_graph():
    net = tiny.model({**MANY, "roi": {**MANY["roi"], "head_norm": "batch"}})
    scene = tiny.scene(net, 2)
    compiled = tiny.one_graph(net.loss)
    (expected, expected_gradients), (found, gradients) = (
        tiny.backward(net, loss(*scene)) for loss in (net.loss, compiled)
    )
    torch.testing.assert_close(found, expected)
    assert expected_gradients.keys() == dict(net.named_parameters()).keys()
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)
