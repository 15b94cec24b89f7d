"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017), and their fifth stage as the head of the second stage."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rcnn.backbones.norm import freeze_batch_norm, set_eps
from rcnn.backbones.trunk import Trunk, initialise, input_conv
from rcnn.config import Model, Settings
from rcnn.errors import SettingsError

if TYPE_CHECKING:
    from torchvision.models import ResNet as TorchvisionResNet

NAMES = (*(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "resnext50_32x4d", "resnext101_32x8d")
_STANDARD = Model()


class ResNet(Trunk):
    """Levels 2 to 5 (to `last`): C2 to C5, the outputs of layer1 to layer4. Stage 1 is the stem, stage n layer n - 1.

    Args:
        name: one of `NAMES`.
        in_channels: channels of the images.
        last: deepest level to build. None: 5.
        model: settings; `stride_in` and `widths` are read.

    Raises:
        SettingsError: this network can't have these widths or this position of the stride.
    """

    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(self, name: str, in_channels: int = 3, last: int | None = None, *, model: Model = _STANDARD) -> None:
        super().__init__()
        net = _resnet(name, model)
        self.levels = tuple(range(2, 1 + (5 if last is None else min(max(last, 2), 5))))
        width = net.fc.in_features // 8
        self.widths = tuple(width * 2**i for i in range(len(self.levels)))
        self.layers = tuple(f"layer{level - 1}" for level in self.levels)
        self.conv1 = input_conv(net.conv1, in_channels)
        self.bn1, self.relu, self.maxpool = net.bn1, net.relu, net.maxpool
        for layer in self.layers:
            self.add_module(layer, net.get_submodule(layer))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map per level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
            maps.append(x)
        return maps


class Conv5Head(nn.Module):
    """The fifth stage of a ResNet on RoI features, then the mean over cells.

    Attributes:
        out_features: length of the feature vector of an RoI.
    """

    def __init__(self, name: str, model: Model = _STANDARD) -> None:
        super().__init__()
        net = _resnet(name, model)
        self.layer4 = net.layer4
        self.out_features = net.fc.in_features

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, out_features)."""
        return self.layer4(rois).mean(dim=(2, 3))


def conv5_head(settings: Settings) -> Conv5Head:
    """Return the head of `roi.head=conv5` for the ResNet of `settings`; it is frozen if `model.frozen_stages` is 5."""
    head = Conv5Head(settings.model.backbone, settings.model)
    set_eps(head, settings.model.norm_eps)
    all_frozen, norm = settings.model.frozen_stages >= 5, settings.model.norm
    if norm != "train" or all_frozen:
        freeze_batch_norm(head, affine=norm == "affine" and not all_frozen)
    return head.requires_grad_(not all_frozen)


def _resnet(name: str, model: Model) -> "TorchvisionResNet":
    """Return torchvision's network. torchvision is imported here, since that takes as long as importing torch."""
    import torchvision.models
    from torchvision.models.resnet import Bottleneck

    with torch.device("meta") if model.widths else nullcontext():  # parts that are replaced need no memory
        net = torchvision.models.get_model(name, weights=None)
    assert isinstance(net, torchvision.models.ResNet)
    if model.widths:
        _set_widths(net, name, model.widths)
    if model.stride_in == "1x1":
        _check_bottleneck(net, name, "stride_in")
        for block in net.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return net


def _set_widths(net: "TorchvisionResNet", name: str, widths: tuple[int, int, int]) -> None:
    """Replace the stem and all stages.

    `widths` are the channels of the stem and the inner and outer channels of the first stage; each later stage doubles.
    """
    from torchvision.models.resnet import Bottleneck

    _check_bottleneck(net, name, "widths")
    stem, inner, outer = widths
    planes, rest = divmod(outer, Bottleneck.expansion)
    base_width, more = divmod(64 * inner, net.groups * max(planes, 1))  # torchvision: inner = planes * base_width / 64
    if rest or more:
        raise SettingsError(
            f"`model.widths`: {name} can't have {list(widths)}: the third must be a multiple of 4, "
            f"and 256 times the second one of {net.groups} times the third"
        )
    net.conv1, net.bn1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(stem)
    net.inplanes, net.base_width = stem, base_width
    for i in range(4):
        blocks = len(net.get_submodule(f"layer{i + 1}"))  # type: ignore[arg-type]
        stage = net._make_layer(Bottleneck, planes * 2**i, blocks, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    net.fc = nn.Linear(8 * outer, 1)
    initialise(net)


def _check_bottleneck(net: "TorchvisionResNet", name: str, setting: str) -> None:
    from torchvision.models.resnet import BasicBlock

    if isinstance(net.layer1[0], BasicBlock):
        raise SettingsError(f"`model.{setting}`: {name} has no bottlenecks; take resnet50 or a deeper one")
