"""Convolutions that give an image the same bits alone and in a batch, on a CPU. For prediction."""

import torch
from torch import Tensor, nn

_SMALL = 20480
"""Elements up to which torch sends a single image through another kernel (`ConvParams::use_mkldnn`)."""


class SteadyConv2d(nn.Conv2d):
    """A convolution that computes a small single image twice, as a batch, so that the kernel of batches is used."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if len(input) == 1 and input.numel() <= _SMALL:
            return super().forward(torch.cat((input, input)))[:1]
        return super().forward(input)


def make_steady(module: nn.Module) -> None:
    """Make all plain convolutions in `module` steady, in place. The cost is small, since only small maps go twice."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = SteadyConv2d
