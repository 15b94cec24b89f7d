"""Feature pyramid network (Lin et al., 2017)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of a trunk's levels -> maps of `channels` channels at `levels`.

    From the top down: a 1x1 convolution of each trunk level, plus the level above enlarged by nearest neighbours to its
    exact size, then a 3x3 convolution. Levels above the trunk's last take every second cell of the one below.

    Args:
        widths: level -> channels of the trunk's maps. Those finer than the finest wanted level are not read.
        channels: of every output.
        levels: wanted, ascending.
    """

    def __init__(self, widths: Mapping[int, int], channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels, self.channels = tuple(levels), channels
        self.inputs = tuple(level for level in sorted(widths) if level >= min(levels))
        self.top = self.inputs[-1]
        smooth = [level for level in self.inputs if level in levels or (level == self.top and max(levels) > level)]
        self.lateral = nn.ModuleDict({f"p{level}": nn.Conv2d(widths[level], channels, 1) for level in self.inputs})
        self.output = nn.ModuleDict({f"p{level}": nn.Conv2d(channels, channels, 3, padding=1) for level in smooth})
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Mapping[int, Tensor]) -> OrderedDict[str, Tensor]:
        """Level -> (B, C, H, W), to "p3", "p4", ... -> (B, channels, H, W), finest first."""
        merged = self.lateral[f"p{self.top}"](maps[self.top])
        found: dict[int, Tensor] = {}
        for level in reversed(self.inputs):
            if level != self.top:
                lateral = self.lateral[f"p{level}"](maps[level])
                merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            if f"p{level}" in self.output:
                found[level] = self.output[f"p{level}"](merged)
        for level in range(self.top + 1, max(self.levels) + 1):
            found[level] = F.max_pool2d(found[level - 1], kernel_size=1, stride=2)
        return OrderedDict((f"p{level}", found[level]) for level in self.levels)
