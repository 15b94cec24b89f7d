import sys

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")

from rcnn.backbones.build import build_backbone  # noqa: E402
from rcnn.backbones.timm import TimmTrunk  # noqa: E402
from rcnn.config import Settings, validate  # noqa: E402
from rcnn.errors import SettingsError  # noqa: E402


def settings(backbone: str, **model: object) -> Settings:
    return validate({"model": {"backbone": backbone, "channels": 8, **model}})


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_networks_of_timm_give_a_pyramid(name: str):
    built = build_backbone(settings(f"timm/{name}")).eval()
    maps = built(torch.randn(1, 3, 64, 96))
    assert built.strides == (8, 16, 32, 64)
    assert [tuple(m.shape) for m in maps.values()] == [(1, 8, -(-64 // s), -(-96 // s)) for s in built.strides]


def test_maps_equal_timms_with_frozen_norm_in_training_mode():
    built = build_backbone(settings("timm/mobilenetv3_small_050")).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())
    plain = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    assert isinstance(built.trunk, TimmTrunk)
    plain.load_state_dict(built.trunk.net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    for found, expected in zip(built.trunk(x), plain(x)[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
def test_first_stages_get_no_gradient(name: str):
    trunk = TimmTrunk(name)
    trunk.freeze(3, norm="train")
    second, _, last = (trunk(torch.randn(2, 3, 64, 64))[i] for i in (1, 2, 3))
    assert not second.requires_grad
    assert last.requires_grad
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.requires_grad for norm in norms)


def test_only_wanted_levels_are_built():
    trunk = TimmTrunk("resnet10t", in_channels=4, last=4)
    assert trunk.levels == (2, 3, 4)
    maps = trunk(torch.randn(1, 4, 64, 64))
    assert [m.shape[-1] for m in maps] == [16, 8, 4]
    assert [m.shape[1] for m in maps] == list(trunk.widths)


def test_channels_come_first_for_every_network():
    trunk = TimmTrunk("swin_tiny_patch4_window7_224").eval()
    maps = trunk(torch.randn(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]


def test_a_network_for_one_size_takes_any_where_timm_can_do_that():
    trunk = TimmTrunk("swin_tiny_patch4_window7_224", last=4)
    assert trunk.training
    assert [tuple(m.shape[1:]) for m in trunk(torch.randn(1, 3, 96, 128))] == [(96, 24, 32), (192, 12, 16), (384, 6, 8)]
    (found,) = TimmTrunk("vit_tiny_patch16_224")(torch.randn(1, 3, 64, 96))
    assert tuple(found.shape) == (1, 192, 4, 6)


@pytest.mark.parametrize("name", ["levit_128", "coat_lite_tiny"])
def test_a_network_for_one_size_is_refused_where_timm_can_not(name: str):
    with pytest.raises(SettingsError, match=rf"`{name}` takes images of one size only.* such as timm/convnext_tiny"):
        build_backbone(settings(f"timm/{name}"))


def test_an_unknown_network_is_reported_with_the_nearest_name():
    with pytest.raises(SettingsError, match=r"can't make `resnet10tt`.*did you mean `timm/resnet10t`"):
        build_backbone(settings("timm/resnet10tt"))


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match=r"pip install rcnn\[timm\]"):
        build_backbone(settings("timm/resnet10t"))
