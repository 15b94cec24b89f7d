"""MobileNetV2 1.0 (Sandler et al., 2018) and MobileNetV3-Large (Howard et al., 2019).

1.8 million parameters without the last 1x1 convolution, and 3.0 million with it.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from rcnn.backbones.trunk import SequentialTrunk, Tap, initialise, input_conv, up_to

_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of the first block: table 2 of Sandler et al. (2018)."""
_V2_TAPS = (Tap(2, "3", 24), Tap(3, "6", 32), Tap(4, "13", 96), Tap(5, "17", 320))
_V3_TAPS = (Tap(2, "2", 24), Tap(3, "4", 40), Tap(4, "7", 80), Tap(5, "13", 160), Tap(5, "16", 960))


def mobilenet(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """MobileNetV2: levels 2 to 5 (to `last`) with 24, 32, 96 and 320 channels; stage n ends where stride 2^n ends."""
    # These are torchvision's layers under its names. They are written out because importing torchvision takes as long
    # as importing torch, and this is the default backbone. The random numbers drawn are those of torchvision's network.
    layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
    channels = 32
    for expansion, out, blocks, stride in _V2:
        for number in range(blocks):
            layers.append(_Residual(channels, out, 1 if number else stride, expansion))
            channels = out
    features = nn.Sequential(*layers, _conv(channels, 1280, 1))
    classifier = nn.Linear(1280, 1000)  # draws random numbers
    initialise(features)
    nn.init.normal_(classifier.weight)
    return _trunk(features, _V2_TAPS, (2, 4, 7, 14, 18), in_channels, last)


def mobilenet_v3_large(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """MobileNetV3: levels 2 to 5 (to `last`), each read after the layer that reaches its stride, as in torchvision.

    Level 5 occurs twice, before and after the last convolution. Stage n ends where stride 2^n ends.
    """
    from torchvision import models

    return _trunk(models.mobilenet_v3_large(weights=None).features, _V3_TAPS, (2, 4, 7, 13, 17), in_channels, last)


class _Residual(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection; the input is added if it fits."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        expand = [_conv(channels, wide, 1)] if expansion > 1 else []
        depthwise = _conv(wide, wide, 3, stride, groups=wide)
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H / stride, W / stride)."""
        return x + self.conv(x) if self.adds else self.conv(x)


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


def _trunk(
    features: nn.Sequential, taps: Sequence[Tap], ends: tuple[int, ...], in_channels: int, last: int | None
) -> SequentialTrunk:
    """Return the trunk of a chain whose stage n has the layers before `ends[n]`."""
    stem = features[0]
    assert isinstance(stem, nn.Sequential)
    stem[0] = input_conv(stem[0], in_channels)  # type: ignore[arg-type]
    stages = tuple(tuple(map(str, range(start, end))) for start, end in pairwise((0, *ends)))
    return SequentialTrunk(features, up_to(taps, last), stages)
