"""Convolutions that give an image bit-identical results alone and in a batch, on a CPU. For prediction."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROIS = 64
"""RoIs that a head of convolutions processes at a time."""
_SMALL = 20480
"""Elements up to which torch sends a single image through another kernel (`ConvParams::use_mkldnn`)."""


class SteadyConv2d(nn.Conv2d):
    """A convolution that computes a small single image twice, as a batch, so that the kernel of batches is used."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if len(input) == 1 and input.numel() <= _SMALL:
            return super().forward(torch.cat((input, input)))[:1]
        return super().forward(input)


class SteadyHead(nn.Module):
    """A second stage's head that sees a fixed number of RoIs at a time, since oneDNN chooses kernels by that number."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, F); zeros fill the last of the parts."""
        filled = F.pad(rois, (0, 0, 0, 0, 0, 0, 0, -len(rois) % _ROIS))
        return torch.cat([self.head(part) for part in filled.split(_ROIS)])[: len(rois)]


def steady_head(head: nn.Module) -> nn.Module:
    """Make a head steady if it has convolutions; matrix products are steady already."""
    return SteadyHead(head) if any(isinstance(layer, nn.Conv2d) for layer in head.modules()) else head


def make_steady(module: nn.Module) -> None:
    """Make all plain convolutions in `module` steady, in place. The cost is small, since only small maps go twice."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = SteadyConv2d
