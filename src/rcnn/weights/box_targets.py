"""The layer of the second stage's boxes, made for deltas that are divided by other numbers."""

from collections.abc import Mapping, Sequence

from torch import Tensor

LAYER = "fast_rcnn.predictor.reg"


def rescale(tensors: Mapping[str, Tensor], theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Tensor]:
    """Tensors of a detector of `roi.box_std` `theirs` as those of one of `ours`, which decodes the same boxes.

    With (1, 1, 1, 1) the numbers are folded into the layer: it then gives the deltas themselves, as the networks of the
    paper's implementations do once they are saved.

    Args:
        tensors: name -> tensor; rows of the layer are deltas x, y, w, h of one class after another.
        theirs: x, y, w, h.
        ours: x, y, w, h.
    """
    if tuple(theirs) == tuple(ours):
        return dict(tensors)
    return {
        name: _divided(tensor, theirs, ours) if name.startswith(f"{LAYER}.") else tensor
        for name, tensor in tensors.items()
    }


def _divided(tensor: Tensor, theirs: Sequence[float], ours: Sequence[float]) -> Tensor:
    factors = tensor.new_tensor([their / our for their, our in zip(theirs, ours, strict=True)])
    rows = tensor.unflatten(0, (-1, 4))
    return (rows * factors.view(4, *(1,) * (rows.dim() - 2))).flatten(0, 1)
