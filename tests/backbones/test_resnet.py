from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck

from rcnn.backbones.build import build_backbone
from rcnn.backbones.resnet import NAMES, ResNet, conv5_head
from rcnn.config import Model, validate
from rcnn.errors import SettingsError

TINY: dict[str, Any] = {"widths": (8, 4, 16)}
LAYERS = {f"layer{n}": str(n) for n in (1, 2, 3, 4)}


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_features_are_torchvisions(name: str):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None)
    trunk = ResNet(name).eval()
    trunk.load_state_dict({key: value for key, value in net.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(1, 3, 65, 90)
    expected = IntermediateLayerGetter(net.eval(), LAYERS)(images)
    for found, map_ in zip(trunk(images), expected.values(), strict=True):
        torch.testing.assert_close(found, map_)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_torchvisions(name: str):
    with torch.device("meta"):
        net, trunk = torchvision.models.get_model(name, weights=None), ResNet(name)
    expected = {key: value.shape for key, value in net.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in trunk.state_dict().items()} == expected


def test_standard_widths_are_the_standard_network():
    for name, inner in (("resnet50", 64), ("resnext50_32x4d", 128), ("resnext101_32x8d", 256)):
        with torch.device("meta"):
            usual, same = ResNet(name), ResNet(name, model=Model(widths=(64, inner, 256)))
        shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (usual, same)]
        assert shapes[0] == shapes[1]


def stage(before: int, inner: int, outer: int, blocks: int) -> int:
    """Return the number of parameters of a stage: convolutions, and two per channel of the norm after each."""
    rest = 9 * inner**2 + inner * outer + 2 * (2 * inner + outer)
    return blocks * rest + (before + (blocks - 1) * outer) * inner + before * outer + 2 * outer


def test_other_widths_double_from_stage_to_stage():
    trunk = ResNet("resnet50", model=Model(**TINY))
    assert trunk.widths == (16, 32, 64, 128)
    assert trunk.conv1.out_channels == 8
    inner = [trunk.get_submodule(f"layer{n}.0.conv2").out_channels for n in (1, 2, 3, 4)]
    assert inner == [4, 8, 16, 32]
    assert [tuple(m.shape[1:]) for m in trunk(torch.randn(1, 3, 64, 64))] == [
        (width, side, side) for width, side in zip(trunk.widths, (16, 8, 4, 2), strict=True)
    ]
    assert sum(p.numel() for p in trunk.parameters()) == 3 * 49 * 8 + 2 * 8 + sum(
        stage(*shape) for shape in ((8, 4, 16, 3), (16, 8, 32, 4), (32, 16, 64, 6), (64, 32, 128, 3))
    )


def test_caffes_stride_is_torchvisions_moved_by_hand():
    torch.manual_seed(0)
    ours = ResNet("resnet50", model=Model(stride_in="1x1", **TINY)).eval()
    moved = ResNet("resnet50", model=Model(**TINY)).eval()
    moved.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 97, 97)
    assert not torch.allclose(moved(images)[-1], ours(images)[-1])
    for layer in (moved.layer2, moved.layer3, moved.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    for found, expected in zip(ours(images), moved(images), strict=True):
        assert torch.equal(found, expected)


def c4(**model: Any):
    tree = {"backbone": "resnet50", "neck": "none", "levels": [4], **model}
    return validate({"model": tree, "anchors": {"sizes": [[64]]}, "roi": {"head": "conv5", "size": 14}})


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_the_fifth_stage_as_head_follows_widths_and_stride(stride_in: str):
    settings = c4(stride_in=stride_in, **TINY)
    backbone, head = build_backbone(settings), conv5_head(settings)
    assert (backbone.channels, head.out_features) == (64, 128)
    first = head.layer4[0]
    assert isinstance(first, Bottleneck)
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))[:: 1 if stride_in == "1x1" else -1]
    rois = torch.randn(3, 64, 14, 14)
    assert head.layer4(rois).shape == (3, 128, 7, 7)
    assert head(rois).shape == (3, 128)


@pytest.mark.parametrize(("norm", "head"), [("frozen", True), ("train", False)])
def test_epsilon_is_that_of_the_settings(norm: str, head: bool):
    settings = c4(norm=norm, norm_eps=0.125, frozen_stages=0, **TINY)
    for module in (build_backbone(settings), conv5_head(settings)):
        eps = {layer.eps for layer in module.modules() if hasattr(layer, "eps")}
        assert eps == {0.125}
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()) is not head


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"widths": (8, 4, 18)}, r"resnet50 can't have \[8, 4, 18\]: the third must be a multiple of 4"),
        ({"backbone": "resnet18", "widths": (8, 16, 16)}, "`model.widths`: resnet18 has no bottlenecks"),
        ({"backbone": "resnet34", "stride_in": "1x1"}, "`model.stride_in`: resnet34 has no bottlenecks"),
        ({"backbone": "tiny", "stride_in": "1x1"}, "for ResNets only, and the backbone is tiny"),
        ({"backbone": "custom"}, "a module of your own: pass it in"),
    ],
)
def test_settings_that_a_network_can_not_have_are_refused(model: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        build_backbone(validate({"model": {"backbone": "resnet50", **model}}))
