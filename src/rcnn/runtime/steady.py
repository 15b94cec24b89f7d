"""Layers that give an image bit-identical results alone and in a batch, on a CPU. For prediction.

MKL and oneDNN choose their kernels by the shapes of their operands, and kernels differ in the order of their sums.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rcnn.model.fast_rcnn import FastRCNN, RoIHead
from rcnn.model.structures import RoIOutput

_ROIS = 64
"""Number of RoIs that a head with convolutions processes at a time, since their maps are large."""
_SMALL = 20480
"""Number of elements up to which torch uses another kernel for a single image (`ConvParams::use_mkldnn`)."""


class SteadyConv2d(nn.Conv2d):
    """A convolution that processes a small single image as a batch of two, so that the kernel of batches is used."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if len(input) == 1 and input.numel() <= _SMALL:
            return super().forward(torch.cat((input, input)))[:1]
        return super().forward(input)


class SteadyRoIHead(RoIHead):
    """A head that processes one image at a time, so that its products have the same shapes in every batch."""

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIOutput:
        """As `RoIHead.forward`."""
        convolutions = any(isinstance(layer, nn.Conv2d) for layer in self.head.modules())
        images = []
        for i in range(len(boxes)):
            own = [level[i : i + 1] for level in levels]
            parts = boxes[i : i + 1].split(_ROIS, dim=1) if convolutions else [boxes[i : i + 1]]
            outputs = [super(SteadyRoIHead, self).forward(own, part) for part in parts]
            images.append(RoIOutput(*(torch.cat(field, dim=1) for field in zip(*outputs, strict=True))))
        return RoIOutput(*(torch.cat(field) for field in zip(*images, strict=True)))


class SteadyFastRCNN(SteadyRoIHead, FastRCNN):
    """A second stage whose heads process one image at a time."""


def make_steady(module: nn.Module) -> None:
    """Make all plain convolutions and the heads of the second stage in `module` steady, in place.

    The cost is small, since only small maps are processed twice, and the RoIs of one image keep a core busy.
    """
    steady: dict[type[nn.Module], type[nn.Module]] = {
        nn.Conv2d: SteadyConv2d,
        RoIHead: SteadyRoIHead,
        FastRCNN: SteadyFastRCNN,
    }
    for layer in module.modules():
        layer.__class__ = steady.get(type(layer), type(layer))
