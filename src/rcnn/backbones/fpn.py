"""Feature pyramid network (Lin et al., 2017)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of a trunk's levels -> maps of `channels` channels at `levels`.

    From the top down, a 1x1 convolution of each trunk level is added to the level above, enlarged by nearest neighbours
    to the same size; a 3x3 convolution follows. Levels above the trunk's last take every second cell of the level
    below.

    Args:
        maps: level and channels of each map of the trunk, finest first. Maps finer than the finest output are not read;
            of several maps of one level, only the last ones are read, as many as there are outputs of it.
        channels: channels of every output.
        levels: levels of the outputs, ascending; a level may occur once per map that the trunk has of it.
        norm: whether every convolution is followed by a batch norm, and has no bias.

    Attributes:
        read: indices of the trunk's maps that are read, finest first.
    """

    conv_norms = (("lateral", "lateral_norm"), ("output", "output_norm"))

    def __init__(
        self, maps: Sequence[tuple[int, int]], channels: int, levels: Sequence[int], *, norm: bool = False
    ) -> None:
        super().__init__()
        self.levels, self.channels = tuple(levels), channels
        self.names = _names(self.levels)
        numbers = [level for level, _ in maps]
        self.read: list[int] = []
        for level in dict.fromkeys(number for number in numbers if number >= min(levels)):
            places = [i for i, number in enumerate(numbers) if number == level]
            self.read += places[-max(1, self.levels.count(level)) :]
        self._inputs = _names([numbers[i] for i in self.read])
        self._top, pooled = numbers[-1], max(levels) > numbers[-1]
        smooth = [name for name in self._inputs if name in self.names or (pooled and name == self._inputs[-1])]
        self.lateral = nn.ModuleDict(
            {
                name: nn.Conv2d(maps[i][1], channels, 1, bias=not norm)
                for name, i in zip(self._inputs, self.read, strict=True)
            }
        )
        self.output = nn.ModuleDict(
            {name: nn.Conv2d(channels, channels, 3, padding=1, bias=not norm) for name in smooth}
        )
        self.lateral_norm = nn.ModuleDict({name: nn.BatchNorm2d(channels) for name in self._inputs if norm})
        self.output_norm = nn.ModuleDict({name: nn.BatchNorm2d(channels) for name in smooth if norm})
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """(B, C, H, W) of each map of the trunk, to "p3", "p4", ... -> (B, channels, H, W), finest first.

        The second of two maps of level 5 is "p5b".
        """
        merged, outputs = None, {}
        for name, i in zip(reversed(self._inputs), reversed(self.read), strict=True):
            lateral = _layer(self.lateral, self.lateral_norm, name, maps[i])
            if merged is None:
                merged = lateral
            else:
                merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            if name in self.output:
                outputs[name] = _layer(self.output, self.output_norm, name, merged)
        below = self._inputs[-1]
        for level in range(self._top + 1, max(self.levels) + 1):
            outputs[f"p{level}"] = F.max_pool2d(outputs[below], kernel_size=1, stride=2)
            below = f"p{level}"
        return OrderedDict((name, outputs[name]) for name in self.names)


def _layer(convs: nn.ModuleDict, norms: nn.ModuleDict, name: str, x: Tensor) -> Tensor:
    x = convs[name](x)
    return norms[name](x) if name in norms else x


def _names(levels: Sequence[int]) -> tuple[str, ...]:
    """(5, 5, 6) -> p5, p5b, p6."""
    repeats = [list(levels[:i]).count(level) for i, level in enumerate(levels)]
    return tuple(f"p{level}{' bcdefgh'[repeat].strip()}" for level, repeat in zip(levels, repeats, strict=True))
