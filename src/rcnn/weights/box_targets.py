"""The layer of the second stage's boxes, made for deltas that are normalised by other numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn.config import Settings

LAYER = "fast_rcnn.predictor.reg"


class Normal(NamedTuple):
    """`roi.box_mean` and `roi.box_std` as they are in a file or a model: x, y, w, h."""

    mean: Sequence[float]
    std: Sequence[float]


PLAIN = Normal((0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0))
"""The layer gives the deltas themselves: mean and deviation are folded into it, as our files have it, and those of the
paper's implementations."""


def normal_of(settings: Settings) -> Normal:
    """What a model of these settings has its deltas normalised by."""
    return Normal(settings.roi.box_mean, settings.roi.box_std)


def renormalise(
    tensors: Mapping[str, Tensor], theirs: Normal, ours: Normal, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A detector's tensors, whose deltas are normalised by `theirs`, for `ours`: it decodes the same boxes.

    Args:
        tensors: name -> tensor; rows of the layer are deltas x, y, w, h of one class after another.
        theirs: what they are made for.
        ours: what they are to be made for.
        dtype: of the layer, where the two differ.
    """
    if theirs == ours:
        return dict(tensors)
    return {
        name: _renormalised(tensor, theirs, ours).to(dtype) if name.startswith(f"{LAYER}.") else tensor
        for name, tensor in tensors.items()
    }


def _renormalised(tensor: Tensor, theirs: Normal, ours: Normal) -> Tensor:
    rows = tensor.double().unflatten(0, (-1, 4))
    their, our = (rows.new_tensor(normal).view(2, 4, *(1,) * (rows.dim() - 2)) for normal in (theirs, ours))
    plain = rows * their[1]
    if tensor.dim() == 1:  # the bias
        plain = plain + their[0] - our[0]
    return (plain / our[1]).flatten(0, 1)
