"""Convert the second stage's box layers between different normalisations of their targets."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rcnn.config import RoI

CLASS_LAYER = "fast_rcnn.predictor.cls"
LAYER = "fast_rcnn.predictor.reg"
LAYERS = re.compile(r"fast_rcnn\.(?:later\.(?P<later>\d+)\.)?predictor\.(?P<kind>cls|reg)\.")
"""Names of the tensors of these layers in every head; `later` numbers the heads after the first, from 0."""
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
    converted = dict(tensors)
    for name, tensor in tensors.items():
        if (layer := LAYERS.match(name)) and layer["kind"] == "reg":
            there, here = (_stage(roi, layer["later"]) for roi in (theirs, ours))
            if (there.box_mean, there.box_std) != (here.box_mean, here.box_std):
                converted[name] = _renormalised(tensor, there, here).to(dtype)
    return converted


def _stage(roi: RoI, later: str | None) -> RoI:
    """Return the settings of a head; those of the last one if there are fewer, as for `PLAIN`."""
    number = 0 if later is None else int(later) + 1
    return roi.cascade[min(number, roi.stages - 1)]


def _renormalised(tensor: Tensor, theirs: RoI, ours: RoI) -> Tensor:
    rows = tensor.double().unflatten(0, (-1, 4)).movedim(1, -1)  # x, y, w, h last
    plain = rows * rows.new_tensor(theirs.box_std)
    if tensor.dim() == 1:  # the bias
        plain = plain + rows.new_tensor(theirs.box_mean) - rows.new_tensor(ours.box_mean)
    return (plain / rows.new_tensor(ours.box_std)).movedim(-1, 1).flatten(0, 1)
