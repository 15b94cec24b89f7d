"""Compute the receptive field of a feature map's cells: size, distance and position."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class ReceptiveField(NamedTuple):
    """Receptive field of the cells of a map.

    Attributes:
        size: side of a cell's receptive field, in pixels.
        stride: distance between neighbouring cells, in pixels.
        middle: centre of the first cell's receptive field, in pixels from the image's edge; a pixel's centre is at 0.5.
    """

    size: int
    stride: int
    middle: float


def receptive_field(layers: Iterable[nn.Module]) -> ReceptiveField:
    """Return the receptive field after a chain of convolutions and poolings.

    In the paper it is 228 pixels for VGG-16 and 171 for ZF, with the RPN's 3 x 3 window (section 3.1), both with stride
    16 (section 3.3). As in the paper, all other layers count as pointwise, including ZF's norms over 3 x 3 cells.
    Windows must be square.

    Args:
        layers: in order, such as `[*model.backbone.trunk.features, model.rpn.head.conv]`.
    """
    size, stride, middle = 1, 1, 0.5
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            reach = (_side(layer.kernel_size) - 1) * _side(getattr(layer, "dilation", 1))
            middle += (reach / 2 - _side(layer.padding)) * stride
            size += reach * stride
            stride *= _side(layer.stride)
    return ReceptiveField(size, stride, middle)


def _side(value: object) -> int:
    assert isinstance(value, int | tuple)
    return value[0] if isinstance(value, tuple) else value
