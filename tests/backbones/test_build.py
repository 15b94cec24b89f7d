import copy
from typing import Any

import pytest
import torch
from torch import nn

from rcnn.backbones.build import TRUNKS, build_backbone
from rcnn.backbones.norm import FrozenBatchNorm2d, fold_batch_norm
from rcnn.backbones.resnet import conv5_head
from rcnn.config import Settings, validate
from rcnn.errors import SettingsError

C4 = {"model": {"backbone": "resnet18", "neck": "none", "levels": (4,)}, "roi": {"head": "conv5"}}


def settings(backbone: str = "mobilenet", *, in_channels: int = 3, **model: Any) -> Settings:
    tree: dict[str, Any] = {"model": {"backbone": backbone, **model}}
    if model.get("neck") == "none":
        tree["anchors"] = {"sizes": [[64]]}
    else:
        tree["anchors"] = {"sizes": [[64]] * len(model.get("levels", (3, 4, 5, 6)))}
        tree["roi"] = {"head": "none"}  # no second stage reads levels
    tree["preprocess"] = {"in_channels": in_channels, "mean": [0.5], "std": [0.5]}
    return validate(tree)


def c4() -> Settings:
    return validate({**C4, "anchors": {"sizes": [[64]]}})


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backbone", ["mobilenet", "resnet18", "resnet50", "vgg16"])
def test_pyramid_of_an_odd_image_has_the_declared_shape(backbone: str):
    built = build_backbone(settings(backbone, levels=(2, 3, 4, 5, 6), channels=16)).to("meta")
    with torch.device("meta"):
        maps = built(torch.empty(2, 3, 97, 130))
    assert built.strides == (4, 8, 16, 32, 64)
    assert built.channels == 16
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for stride, found in zip(built.strides, maps.values(), strict=True):
        assert found.shape == (2, 16, -(-97 // stride), -(-130 // stride))


@pytest.mark.parametrize(
    ("backbone", "levels", "name", "channels"),
    [
        ("mobilenet", (2, 3), "c5", 320),
        ("mobilenet", (4,), "c4", 96),
        ("resnet34", (3, 4), "c5", 512),
        ("resnet101", (4,), "c4", 1024),
        ("vgg16", (4,), "c4", 512),
        ("zf", (4,), "c4", 256),
    ],
)
def test_without_a_neck_there_is_one_level(backbone: str, levels: tuple[int, ...], name: str, channels: int):
    built = build_backbone(settings(backbone, neck="none", levels=levels)).to("meta")
    with torch.device("meta"):
        maps = built(torch.empty(1, 3, 65, 97))
    stride = 2 ** int(name[1])
    assert built.strides == (stride,)
    assert {key: value.shape for key, value in maps.items()} == {
        name: (1, channels, -(-65 // stride), -(-97 // stride))
    }
    assert built.channels == channels


def test_tiny_images_pass():
    maps = build_backbone(settings()).eval()(torch.randn(1, 3, 1, 1))
    assert all(found.shape == (1, 96, 1, 1) for found in maps.values())


def test_c4_leaves_its_fifth_stage_to_the_head():
    backbone, head = build_backbone(c4()), conv5_head(c4())
    assert backbone.strides == (16,)
    assert not any("layer4" in name for name in backbone.state_dict())
    rois = torch.randn(3, backbone.channels, 14, 14)
    assert head(rois).shape == (3, head.out_features)
    fold_batch_norm(folded := copy.deepcopy(head))
    torch.testing.assert_close(folded(rois), head(rois), rtol=1e-4, atol=1e-5)
    assert all(norm.weight.requires_grad is False for norm in head.modules() if isinstance(norm, FrozenBatchNorm2d))


def test_default_is_small():
    assert sum(p.numel() for p in build_backbone(Settings()).parameters()) < 2_100_000


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_first_stages_get_no_gradient_and_all_others_do(backbone: str, stages: int):
    with torch.device("meta"):
        built = build_backbone(settings(backbone, neck="none", frozen_stages=stages))
        if stages < 5:
            (found,) = built(torch.randn(1, 3, 32, 32)).values()
            found.sum().backward()
    frozen = [name for stage in built.trunk.stages[:stages] for name in stage]
    for name, parameter in built.trunk.named_parameters():
        expected = not any(f"{name}.".startswith(f"{prefix}.") for prefix in frozen)
        assert parameter.requires_grad is expected
        assert (parameter.grad is not None) is expected, name


def test_stages_hold_all_of_a_trunk():
    for name, make in TRUNKS.items():
        with torch.device("meta"):
            trunk = make(3, None)
        trunk.freeze(5, norm="train")
        assert not any(p.requires_grad for p in trunk.parameters()), name


@pytest.mark.parametrize("backbone", ["mobilenet", "resnet18"])
def test_trained_norm_moves_outside_frozen_stages_only(backbone: str):
    built = build_backbone(settings(backbone, norm="train", frozen_stages=2))
    before = {name: buffer.clone() for name, buffer in built.named_buffers() if name.endswith("running_mean")}
    built.eval()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in built.named_buffers() if name in before)
    built.train()(torch.randn(2, 3, 64, 64))
    for name, buffer in built.named_buffers():
        if name in before:
            frozen = any(name.removeprefix("trunk.").startswith(f"{n}.") for s in built.trunk.stages[:2] for n in s)
            assert torch.equal(buffer, before[name]) is frozen, name


def test_frozen_norm_leaves_no_batch_norm():
    built = build_backbone(settings(norm="frozen"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_may_have_other_channels(backbone: str, in_channels: int):
    with torch.device("meta"):
        built = build_backbone(settings(backbone, in_channels=in_channels, neck="none"))
        (found,) = built(torch.randn(1, in_channels, 40, 40)).values()
    assert found.shape[1] == built.channels


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": "resnet5"}, "no `resnet5`; did you mean `resnet50`"),
        ({"backbone": "zf", "levels": (3, 4)}, r"must start with one of \(4,\), the levels of zf"),
        ({"levels": (6, 7)}, r"must start with one of \(2, 3, 4, 5\)"),
        ({"levels": (4, 3)}, "must ascend"),
        ({"backbone": "vgg16", "neck": "none", "levels": (5,)}, "vgg16 has no level 5, its last is 4"),
        ({"neck": "none", "levels": (1,)}, "mobilenet has no level 1"),
        ({"backbone": "resnet18", "neck": "none", "levels": (7,)}, "resnet18 has no level 7"),
    ],
)
def test_wrong_settings_are_refused(model: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        build_backbone(settings(**model))
