"""Convert the second stage's box layer between different normalisations of its targets."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rcnn.config import RoI

CLASS_LAYER = "fast_rcnn.predictor.cls"
LAYER = "fast_rcnn.predictor.reg"
PLAIN = RoI(box_mean=(0.0, 0.0, 0.0, 0.0), box_std=(1.0, 1.0, 1.0, 1.0))
"""The layer gives the deltas themselves: mean and deviation are folded into it, as our files have it, and those of the
paper's implementations."""


def renormalise(
    tensors: Mapping[str, Tensor], theirs: RoI, ours: RoI, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Convert a detector's tensors to other `box_mean` and `box_std`, so that it decodes the same boxes.

    Args:
        tensors: name -> tensor; rows of the layer are deltas x, y, w, h of one class after another.
        theirs: settings that the tensors are made for.
        ours: settings to convert them to.
        dtype: dtype of the converted layer.
    """
    if (theirs.box_mean, theirs.box_std) == (ours.box_mean, ours.box_std):
        return dict(tensors)
    return {
        name: _renormalised(tensor, theirs, ours).to(dtype) if name.startswith(f"{LAYER}.") else tensor
        for name, tensor in tensors.items()
    }


def _renormalised(tensor: Tensor, theirs: RoI, ours: RoI) -> Tensor:
    rows = tensor.double().unflatten(0, (-1, 4)).movedim(1, -1)  # x, y, w, h last
    plain = rows * rows.new_tensor(theirs.box_std)
    if tensor.dim() == 1:  # the bias
        plain = plain + rows.new_tensor(theirs.box_mean) - rows.new_tensor(ours.box_mean)
    return (plain / rows.new_tensor(ours.box_std)).movedim(-1, 1).flatten(0, 1)
