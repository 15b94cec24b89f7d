"""ResNet 18, 34, 50 and 101 (He et al., 2016), and the fifth stage of one as head of the second stage."""

import torchvision.models
from torch import Tensor, nn
from torchvision.models import ResNet as TorchvisionResNet

from rcnn.backbones.norm import freeze_batch_norm
from rcnn.backbones.trunk import Trunk, input_conv
from rcnn.config import Settings

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResNet(Trunk):
    """Levels 2 to 5 (to `last`): C2 to C5, the outputs of layer1 to layer4. Stage 1 is the stem, stage n layer n - 1.

    Args:
        name: one of `NAMES`.
        in_channels: of the images.
        last: deepest level that is built. None: 5.
    """

    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(self, name: str, in_channels: int = 3, last: int | None = None) -> None:
        super().__init__()
        net = _resnet(name)
        self.levels = tuple(range(2, 1 + (5 if last is None else min(max(last, 2), 5))))
        width = net.fc.in_features // 8
        self.widths = tuple(width * 2**i for i in range(len(self.levels)))
        self.conv1, self.bn1, self.relu, self.maxpool = (
            input_conv(net.conv1, in_channels),
            net.bn1,
            net.relu,
            net.maxpool,
        )
        for level in self.levels:
            self.add_module(f"layer{level - 1}", net.get_submodule(f"layer{level - 1}"))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map a level."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for level in self.levels:
            x = self.get_submodule(f"layer{level - 1}")(x)
            maps.append(x)
        return maps


class Conv5Head(nn.Module):
    """The fifth stage of a ResNet on RoI features, then the mean over cells.

    Attributes:
        out_features: length of the feature vector of a RoI.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        net = _resnet(name)
        self.layer4 = net.layer4
        self.out_features = net.fc.in_features

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, out_features)."""
        return self.layer4(rois).mean(dim=(2, 3))


def conv5_head(settings: Settings) -> Conv5Head:
    """The head of `roi.head=conv5` for the ResNet of `settings`, its batch norm as there, frozen at 5 frozen stages."""
    head = Conv5Head(settings.model.backbone)
    all_frozen = settings.model.frozen_stages >= 5
    if settings.model.norm == "frozen" or all_frozen:
        freeze_batch_norm(head)
    return head.requires_grad_(not all_frozen)


def _resnet(name: str) -> TorchvisionResNet:
    net = torchvision.models.get_model(name, weights=None)
    assert isinstance(net, TorchvisionResNet)
    return net
