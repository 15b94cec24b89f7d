"""MobileNetV2 1.0 without its last 1x1 convolution (Sandler et al., 2018). 1.8 million parameters."""

from torch import nn
from torchvision.models import mobilenet_v2

from rcnn.backbones.trunk import SequentialTrunk, Tap, input_conv, up_to

_TAPS = (Tap(2, "3", 24), Tap(3, "6", 32), Tap(4, "13", 96), Tap(5, "17", 320))
_STAGES = (("0", "1"), ("2", "3"), ("4", "5", "6"), tuple(map(str, range(7, 14))), tuple(map(str, range(14, 18))))


def mobilenet(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """Levels 2 to 5 (to `last`) with 24, 32, 96 and 320 channels; stage n ends where stride 2^n ends."""
    features = mobilenet_v2(weights=None).features
    stem = features[0]
    assert isinstance(stem, nn.Sequential)
    stem[0] = input_conv(stem[0], in_channels)  # type: ignore[arg-type]
    return SequentialTrunk(features, up_to(_TAPS, last), _STAGES)
