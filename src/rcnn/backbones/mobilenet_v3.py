"""MobileNetV3-Large with the last 1x1 convolution of its features (Howard et al., 2019). 3.0 million parameters."""

from torch import nn
from torchvision.models import mobilenet_v3_large as torchvision_mobilenet_v3_large

from rcnn.backbones.trunk import SequentialTrunk, Tap, input_conv, up_to

_TAPS = (Tap(2, "2", 24), Tap(3, "4", 40), Tap(4, "7", 80), Tap(5, "13", 160), Tap(5, "16", 960))
_STAGES = (("0", "1"), ("2", "3"), ("4", "5", "6"), tuple(map(str, range(7, 13))), tuple(map(str, range(13, 17))))


def mobilenet_v3_large(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """Levels 2 to 5 (to `last`), each read where torchvision's detectors do: after the layer that reaches its stride.

    Level 5 comes twice, before and after the last convolution. Stage n ends where stride 2^n ends.
    """
    features = torchvision_mobilenet_v3_large(weights=None).features
    stem = features[0]
    assert isinstance(stem, nn.Sequential)
    stem[0] = input_conv(stem[0], in_channels)  # type: ignore[arg-type]
    return SequentialTrunk(features, up_to(_TAPS, last), _STAGES)
