"""MobileNetV2 1.0 (Sandler et al., 2018) and MobileNetV3-Large (Howard et al., 2019).

1.8 million parameters without the last 1x1 convolution, and 3.0 million with it.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchvision import models

from rcnn.backbones.trunk import SequentialTrunk, Tap, input_conv, up_to

_V2_TAPS = (Tap(2, "3", 24), Tap(3, "6", 32), Tap(4, "13", 96), Tap(5, "17", 320))
_V3_TAPS = (Tap(2, "2", 24), Tap(3, "4", 40), Tap(4, "7", 80), Tap(5, "13", 160), Tap(5, "16", 960))


def mobilenet(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """MobileNetV2: levels 2 to 5 (to `last`) with 24, 32, 96 and 320 channels; stage n ends where stride 2^n ends."""
    return _trunk(models.mobilenet_v2(weights=None).features, _V2_TAPS, (2, 4, 7, 14, 18), in_channels, last)


def mobilenet_v3_large(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """MobileNetV3: levels 2 to 5 (to `last`), each read after the layer that reaches its stride, as torchvision does.

    Level 5 comes twice, before and after the last convolution. Stage n ends where stride 2^n ends.
    """
    return _trunk(models.mobilenet_v3_large(weights=None).features, _V3_TAPS, (2, 4, 7, 13, 17), in_channels, last)


def _trunk(
    features: nn.Sequential, taps: Sequence[Tap], ends: tuple[int, ...], in_channels: int, last: int | None
) -> SequentialTrunk:
    """The trunk of a chain whose stage n has the layers before `ends[n]`."""
    stem = features[0]
    assert isinstance(stem, nn.Sequential)
    stem[0] = input_conv(stem[0], in_channels)  # type: ignore[arg-type]
    stages = tuple(tuple(map(str, range(start, end))) for start, end in pairwise((0, *ends)))
    return SequentialTrunk(features, up_to(taps, last), stages)
