import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from rcnn.backbones.build import build_backbone
from rcnn.backbones.norm import fold_batch_norm
from rcnn.backbones.resnet import conv5_head
from rcnn.config import Settings, validate
from rcnn.errors import UnavailableError, WeightsError
from rcnn.presets import build, settings_of
from rcnn.weights import backbone as backbone_weights
from rcnn.weights.backbone import _targets, load_backbone, match_pixels

MAKERS = {"mobilenet": mobilenet_v2, "resnet18": resnet18}


def settings(backbone: str = "mobilenet", in_channels: int = 3, **roi: Any) -> Settings:
    neck = {"neck": "none", "levels": (4,)} if roi or backbone in ("vgg16", "zf") else {}
    return validate(
        {
            "model": {"backbone": backbone, **neck},
            "anchors": {"sizes": [[64]] * (1 if neck else 4)},
            "preprocess": {"in_channels": in_channels, "mean": [0.5], "std": [0.5]},
            "roi": roi,
        }
    )


def classifier(name: str) -> nn.Module:
    """Return a network of torchvision with statistics other than 0 and 1."""
    torch.manual_seed(0)
    net = MAKERS[name](weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    return net.eval()


def features(net: nn.Module, name: str, x: Tensor) -> list[Tensor]:
    if name == "mobilenet":
        maps = []
        for i, layer in enumerate(net.features):  # type: ignore[arg-type]
            x = layer(x)
            maps += [x] if i in (3, 6, 13, 17) else []
        return maps
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))  # type: ignore[operator]
    return [x := getattr(net, f"layer{i}")(x) for i in range(1, 5)]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_torchvisions_weights_give_torchvisions_features(name: str, suffix: str, tmp_path: Path):
    net = classifier(name)
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(net.state_dict(), path)
    backbone = build_backbone(settings(name))
    loaded = load_backbone(backbone, path)
    assert loaded.missing == loaded.unexpected == ()
    assert loaded.loaded == len(backbone.trunk.state_dict())
    x = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        expected = features(net, name, x)
        for _ in range(2):
            for a, b in zip(backbone.trunk(x), expected, strict=True):
                assert (a - b).abs().max() <= 1e-5 * b.abs().max()
            fold_batch_norm(backbone)


def test_half_precision_is_widened(tmp_path: Path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in classifier("mobilenet").state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    backbone = build_backbone(settings())
    load_backbone(backbone, tmp_path / "w.safetensors")
    weight = backbone.trunk.get_parameter("features.0.0.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, half["features.0.0.weight"].float())


def test_a_grey_image_gives_the_same_features_as_in_colour(tmp_path: Path):
    net, backbone = classifier("resnet18"), build_backbone(settings("resnet18", in_channels=1))
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    load_backbone(backbone, tmp_path / "w.pth")
    grey = torch.randn(1, 1, 64, 64)
    expected = features(net, "resnet18", grey.expand(1, 3, 64, 64))
    for a, b in zip(backbone.trunk(grey), expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_more_channels_repeat_the_first_three(tmp_path: Path):
    net, backbone = classifier("resnet18"), build_backbone(settings("resnet18", in_channels=4))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    load_backbone(backbone, tmp_path / "w.pth")
    weight = net.get_parameter("conv1.weight")
    expected = torch.cat((weight, weight[:, :1]), dim=1) * 0.75
    assert torch.equal(backbone.trunk.get_parameter("conv1.weight"), expected)


def test_conv5_head_takes_layer4(tmp_path: Path):
    net = classifier("resnet18")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    backbone, head = build_backbone(s := settings("resnet18", head="conv5")), conv5_head(s)
    loaded = load_backbone(backbone, tmp_path / "w.pth", head)
    assert loaded.missing == loaded.unexpected == ()
    x = torch.randn(1, 3, 64, 64)
    expected = features(net, "resnet18", x)[-1].mean((2, 3))
    torch.testing.assert_close(head(backbone(x)["c4"]), expected, rtol=1e-4, atol=1e-4)


def test_fc6_and_fc7_of_both_networks_are_taken_where_there_is_a_head():
    for name, width in (("paper-vgg16", 25088), ("paper-zf", 9216)):
        with torch.device("meta"):
            net = build(settings_of(name), 3)
        targets = _targets(net.backbone, net.fast_rcnn.head)
        assert targets["classifier.0.weight"].shape == (4096, width)
        assert targets["classifier.3.bias"].shape == (4096,)
        assert "classifier.0.weight" not in _targets(net.backbone, None)


def test_torchvisions_weights_are_adapted_to_the_papers_pixels():
    torch.manual_seed(0)
    usual, paper = settings_of("mobilenet-fpn").preprocess, settings_of("paper-vgg16").preprocess
    conv = torch.nn.Conv2d(3, 5, 3)
    pixels = torch.randint(0, 256, (3, 8, 9)).float()
    inputs = []
    for preprocess in (usual, paper):
        ordered = pixels.flip(0) if preprocess.order == "bgr" else pixels
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocess.mean, preprocess.std))
        inputs.append((ordered / 255 - mean) / std)
    expected = conv(inputs[0])
    before = conv.weight.clone()
    match_pixels(torch.nn.Sequential(conv), usual)
    assert torch.equal(conv.weight, before)
    match_pixels(torch.nn.Sequential(conv), paper)
    torch.testing.assert_close(conv(inputs[1]), expected, rtol=1e-4, atol=1e-4)


def test_missing_and_unexpected_names_are_reported(tmp_path: Path):
    state = classifier("mobilenet").state_dict()
    del state["features.3.conv.0.0.weight"], state["features.3.conv.0.1.num_batches_tracked"]
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    loaded = load_backbone(build_backbone(settings()), tmp_path / "w.safetensors")
    assert loaded.missing == ("features.3.conv.0.0.weight",)
    assert loaded.unexpected == ("extra",)


class Payload:
    """Code that must never run."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path):
    backbone = build_backbone(settings())
    first = "features.0.0.weight"
    for content, words in (
        ({"x": Payload()}, " .* holds more than tensors"),
        ({"x": 3}, " holds no dictionary of tensors"),
        ({"x": torch.zeros(1)}, " holds no weights of mobilenet: .*'x'"),
        ({first: torch.zeros(16, 3, 3, 3)}, rf": {re.escape(first)} has the shape \(16, 3, 3, 3\)"),
    ):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(WeightsError, match=rf"bad\.pth{words}"):
            load_backbone(backbone, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"none\.pth: can't be read: No such file"):
        load_backbone(backbone, tmp_path / "none.pth")


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_truncated_pth_is_refused_by_name(length: int, tmp_path: Path):
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 30, 30)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"w\.pth.* is damaged"):
        load_backbone(build_backbone(settings()), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("source", "file"), [("imagenet", "mobilenet_v2-7ebf99e0.pth"), ("imagenet-v1", "mobilenet_v2-b0353104.pth")]
)
def test_imagenet_is_torchvisions_best_or_first_version(
    source: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def fetch(url: str) -> Path:
        asked.append(url)
        torch.save(classifier("mobilenet").state_dict(), tmp_path / "mobilenet_v2.pth")
        return tmp_path / "mobilenet_v2.pth"

    monkeypatch.setattr(backbone_weights, "fetch", fetch)
    loaded = load_backbone(build_backbone(settings()), source)
    assert asked == [f"https://download.pytorch.org/models/{file}"]
    assert loaded.source == asked[0]
    assert loaded.missing == ()


def test_a_missing_network_connection_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"Get https.*/(mobilenet_v2-7ebf99e0\.pth) .* put it into .* as \1"):
        load_backbone(build_backbone(settings()), "imagenet")
    with pytest.raises(UnavailableError, match="no ImageNet weights of zf"):
        load_backbone(build_backbone(settings("zf")), "imagenet")


def test_weights_of_timm_come_in_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t").eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone(settings("timm/resnet10t"))
    assert load_backbone(backbone, tmp_path / "w.safetensors").missing == ()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone.trunk(x)[-1], net.forward_features(x), rtol=1e-4, atol=1e-5)

    def create(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.delenv("RCNN_OFFLINE", raising=False)
    with pytest.raises(UnavailableError, match="timm/resnet10t can't be downloaded: no connection"):
        load_backbone(backbone, "imagenet")


def test_offline_timm_is_not_asked_for_weights(monkeypatch: pytest.MonkeyPatch):
    timm = pytest.importorskip("timm")
    backbone, asked = build_backbone(settings("timm/resnet10t")), []
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: asked.append(options))
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="timm/resnet10t are not fetched: RCNN_OFFLINE is set"):
        load_backbone(backbone, "imagenet")
    assert asked == []
    with pytest.raises(WeightsError, match="imagenet-v1 names weights of torchvision"):
        load_backbone(backbone, "imagenet-v1")
