"""The result of importing a detector: our settings and our tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.errors import WeightsError
from rcnn.weights.box_targets import CLASS_LAYER, LAYER


class Imported(NamedTuple):
    """A detector of another library as our settings and tensors.

    Attributes:
        settings: settings of the detector.
        tensors: our name -> tensor.
        names: class names; label k is `names[k]`.
        category_ids: number of each class in the data set. None: 1..K.
        notes: sentences about parts that were left out or can't be known from the weights alone.
        backbone: the user's own module if `model.backbone` is `custom`.
        head: the user's own head of the second stage, if any.
    """

    settings: Settings
    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    notes: tuple[str, ...]
    backbone: nn.Module | None = None
    head: nn.Module | None = None


def class_names(count: int, names: Sequence[str] | None, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return names of `count` classes without the background: the user's, else the known ones, else `class_1`, ...

    Raises:
        WeightsError: the number of the user's names is not `count`, or a name occurs twice.
    """
    if names is not None:
        if len(names) != count or len(set(names)) != count:
            raise WeightsError(
                f"the model has {count} classes beside the background, found {len(names)} names "
                f"({len(set(names))} different): {', '.join(names[:5])}, ...; give {count} different names, "
                "in the order of its labels and without the background"
            )
        return tuple(names)
    if len(known) == count:
        return tuple(known)
    return tuple(f"class_{label}" for label in range(1, count + 1))


def coco_names() -> tuple[str, ...]:
    """Return the names of COCO's category ids 1 to 90; ids without a class are `unused_12`, ..."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    return tuple(f"unused_{i}" if name == "N/A" else name for i, name in enumerate(names, start=1))


def background_last(name: str, tensor: Tensor) -> Tensor:
    """Move the background from the first class row to the last, and drop its four box rows, which are not used.

    Args:
        name: our name of the tensor; only tensors of the predictor change.
        tensor: rows with the background first.
    """
    if name.startswith(CLASS_LAYER):
        return tensor.roll(-1, dims=0)
    return tensor[4:] if name.startswith(LAYER) else tensor


def background_first(name: str, tensor: Tensor) -> Tensor:
    """Undo `background_last`, with zeros for the background's box rows."""
    if name.startswith(CLASS_LAYER):
        return tensor.roll(1, dims=0)
    return torch.cat((torch.zeros_like(tensor[:4]), tensor)) if name.startswith(LAYER) else tensor
