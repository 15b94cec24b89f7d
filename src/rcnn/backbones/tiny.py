"""A small plain network for quick experiments and the demo: it learns from random weights within minutes on a CPU."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from rcnn.backbones.trunk import SequentialTrunk, Tap, initialise, up_to

_WIDTHS = (16, 32, 64, 96, 128)


def tiny(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """Levels 2 to 5 (to `last`) with 32, 64, 96 and 128 channels; stage n ends where stride 2^n ends."""
    layers = OrderedDict[str, nn.Module]()
    for number, (before, width) in enumerate(pairwise((in_channels, *_WIDTHS)), start=1):
        layers[f"stage{number}"] = _stage(before, width, 1 if number == 1 else 2)
    features = nn.Sequential(layers)
    initialise(features)
    taps = [Tap(level, f"stage{level}", _WIDTHS[level - 1]) for level in (2, 3, 4, 5)]
    return SequentialTrunk(features, up_to(taps, last), tuple((name,) for name in layers))


def _stage(before: int, width: int, convolutions: int) -> nn.Sequential:
    """3x3 convolutions with batch norm, the first of stride 2."""
    layers: list[nn.Module] = []
    for i in range(convolutions):
        conv = nn.Conv2d(before if i == 0 else width, width, 3, stride=2 if i == 0 else 1, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
