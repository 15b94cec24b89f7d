"""Common parts of trunks: taps of levels, freezing of stages, a first convolution for any number of channels."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from rcnn.backbones.norm import freeze_batch_norm


class Trunk(nn.Module):
    """Images -> feature maps, finest first. Its state has torchvision's names.

    Attributes:
        levels: levels of the maps; level n has stride 2^n, and a level may occur twice.
        widths: channels of each level.
        layers: the layer that outputs the map of each level, in torchvision's names.
        stages: names of the submodules of each stage, the stem first, as counted by `freeze`.
    """

    levels: tuple[int, ...]
    widths: tuple[int, ...]
    layers: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]

    def freeze(self, stages: int, *, norm: Literal["frozen", "affine", "train"]) -> None:
        """Freeze the first `stages` stages, including their batch norms; `norm` applies to the other stages."""
        present = {name for name, _ in self.named_modules()}
        names = [name for stage in self.stages[:stages] for name in stage if name in present]
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        freeze_batch_norm(self, names)
        if norm != "train":
            freeze_batch_norm(self, affine=norm == "affine")


class Tap(NamedTuple):
    """A map in a chain of layers: its level, the layer that outputs it, its channels."""

    level: int
    layer: str
    channels: int


class SequentialTrunk(Trunk):
    """A trunk that is a single chain of layers, `features`.

    Args:
        features: the chain; layers after the last tap are cut off.
        taps: the maps, finest first.
        stages: names of the layers of each stage.
    """

    def __init__(self, features: nn.Sequential, taps: Sequence[Tap], stages: tuple[tuple[str, ...], ...]) -> None:
        super().__init__()
        self.levels = tuple(tap.level for tap in taps)
        self.widths = tuple(tap.channels for tap in taps)
        self.stages = tuple(tuple(f"features.{name}" for name in stage) for stage in stages)
        self.layers = tuple(tap.layer for tap in taps)
        last = [name for name, _ in features.named_children()].index(taps[-1].layer)
        self.features = features[: last + 1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map per level."""
        maps, x = [], images
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in self.layers:
                maps.append(x)
        return maps


def up_to(taps: Sequence[Tap], last: int | None) -> list[Tap]:
    """Return the taps of levels up to `last`; None: all."""
    return [tap for tap in taps if last is None or tap.level <= max(last, taps[0].level)]


def input_conv(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return `conv` if it takes `in_channels` channels, else a similar fresh convolution that does."""
    if conv.in_channels == in_channels:
        return conv
    geometry = (conv.kernel_size, conv.stride, conv.padding)
    fresh = nn.Conv2d(in_channels, conv.out_channels, *geometry, bias=conv.bias is not None)  # type: ignore[arg-type]
    initialise(fresh)
    return fresh


def initialise(module: nn.Module) -> None:
    """Initialise all convolutions by He's normal distribution by fan-out with zero biases, as torchvision does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
