"""Map tensor names between torchvision's Faster R-CNN and ours."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rcnn.config import Settings
from rcnn.errors import WeightsError
from rcnn.weights.box_targets import CLASS_LAYER, LAYER
from rcnn.weights.imported import background_first, background_last

ARCHITECTURES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
"""Names of torchvision's own detectors."""

OTHER_HEADS = ("roi_heads.mask_", "roi_heads.keypoint_")
"""Prefixes of the tensors that Mask and Keypoint R-CNN add to a Faster R-CNN."""

_COUNTER = "num_batches_tracked"


def table(settings: Settings, trunk: str | None, *, user_head: bool = False) -> dict[str, str]:
    """Return a table from prefixes of torchvision's names to ours.

    Args:
        settings: settings of our model.
        trunk: prefix that our names of the trunk's tensors add to theirs; None: the backbone is the user's module.
        user_head: whether the second stage's head is the user's module.
    """
    names = {"backbone.": "backbone.body."}
    if trunk is not None:
        levels = settings.model.levels
        names = {"backbone.body.": f"backbone.trunk.{trunk}"}
        for index, level in enumerate(levels):
            key = f"p{level}" + "b" * levels[:index].count(level)
            for theirs, ours in (("inner", "lateral"), ("layer", "output")):
                names[f"backbone.fpn.{theirs}_blocks.{index}.0."] = f"backbone.neck.{ours}.{key}."
                names[f"backbone.fpn.{theirs}_blocks.{index}.1."] = f"backbone.neck.{ours}_norm.{key}."
    convs = settings.rpn.convs
    names |= {f"rpn.head.conv.{i}.0.": f"rpn.head.conv.{i}." if convs > 1 else "rpn.head.conv." for i in range(convs)}
    names |= {"rpn.head.cls_logits.": "rpn.head.cls.", "rpn.head.bbox_pred.": "rpn.head.reg."}
    predictor = "roi_heads.box_predictor."
    names |= {f"{predictor}cls_score.": f"{CLASS_LAYER}.", f"{predictor}bbox_pred.": f"{LAYER}."}
    if user_head:
        return names | {"roi_heads.box_head.": "fast_rcnn.head.body."}
    if settings.roi.head == "fc":
        return names | {f"roi_heads.box_head.{name}.": f"fast_rcnn.head.{name}." for name in ("fc6", "fc7")}
    convs = settings.roi.convs
    names[f"roi_heads.box_head.{convs + 1}."] = "fast_rcnn.head.fc6."  # after a Flatten
    for i in range(convs):
        names[f"roi_heads.box_head.{i}.0."] = f"fast_rcnn.head.conv.{i}."
        names[f"roi_heads.box_head.{i}.1."] = f"fast_rcnn.head.norm.{i}."
    return names


def to_ours(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename torchvision's tensors, move the background last without its box rows, and add counters to frozen norms.

    Raises:
        WeightsError: a name has no counterpart.
    """
    tensors = {_renamed(name, names): state[name] for name in state if not name.startswith(OTHER_HEADS)}
    for name in [name for name in tensors if name.endswith("running_mean") and ".body." not in name]:
        tensors.setdefault(name.removesuffix("running_mean") + _COUNTER, torch.tensor(0))
    return {name: background_last(name, tensor) for name, tensor in tensors.items()}


def to_torchvision(tensors: Mapping[str, Tensor], names: Mapping[str, str], *, frozen: bool) -> dict[str, Tensor]:
    """Rename our tensors, and move the background first, with box rows of zeros.

    Args:
        tensors: our model's tensors.
        names: the result of `table`.
        frozen: whether batch norms are constants; these have no counters in torchvision.

    Raises:
        WeightsError: a name has no counterpart.
    """
    back = {ours: theirs for theirs, ours in names.items()}
    return {
        _renamed(name, back): background_first(name, tensor.detach().cpu()).contiguous()
        for name, tensor in tensors.items()
        if not (frozen and name.endswith(_COUNTER))
    }


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for beginning, other in names.items():
        if name.startswith(beginning):
            return other + name.removeprefix(beginning)
    raise WeightsError(f"`{name}` is not part of a Faster R-CNN with these settings")
