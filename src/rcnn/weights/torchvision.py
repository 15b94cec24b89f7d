"""torchvision's Faster R-CNN: its parameter names in ours, and its habits as settings.

The core has no branch named after a library. What torchvision does differently is written down here: rounded anchors on
cell corners whose stride is guessed, unaligned RoI align, interpolation without antialiasing, background as class 0.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rcnn.model.anchors import RULES
from rcnn.weights.file import WeightsError

SETTINGS: dict[str, Any] = {
    "preprocess": {"resize": "interpolate", "short": 800, "long": 1333},
    "anchors": {**RULES["torchvision"], "sizes": ((32,), (64,), (128,), (256,), (512,))},
    "rpn": {"pre_train": 2000, "post_train": 2000, "pre_test": 1000, "post_test": 1000},
    "roi": {"aligned": False, "levels": (2, 3, 4, 5), "hidden": 1024, "samples": 512},
}
"""What `fasterrcnn_resnet50_fpn` does, laid over our `resnet50-fpn`."""

_NAMES = (
    (r"backbone\.body\.(.*)", r"backbone.trunk.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(.*)", r"backbone.neck.lateral.p{\1}.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(.*)", r"backbone.neck.output.p{\1}.\2"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(.*)", r"rpn.head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"rpn.head.cls.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"rpn.head.reg.\1"),
    (r"roi_heads\.box_head\.(fc[67])\.(.*)", r"fast_rcnn.head.\1.\2"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"fast_rcnn.predictor.cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"fast_rcnn.predictor.reg.\1"),
)


def from_torchvision_state(state: Mapping[str, Tensor], *, finest: int = 2) -> dict[str, Tensor]:
    """The tensors of `fasterrcnn_resnet50_fpn` under our names: background last, its four box rows dropped.

    Args:
        state: torchvision's state dictionary.
        finest: pyramid level of its block 0.

    Raises:
        WeightsError: a name is not one of torchvision's Faster R-CNN.
    """
    return {_renamed(name, finest): _permuted(name, tensor) for name, tensor in state.items()}


def _renamed(name: str, finest: int) -> str:
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"\{(\d)\}", lambda level: str(int(level[1]) + finest), match.expand(ours))
    raise WeightsError(f"`{name}` is not a tensor of torchvision's Faster R-CNN with a ResNet and FPN")


def _permuted(name: str, tensor: Tensor) -> Tensor:
    if "box_predictor.cls_score" in name:
        return torch.cat((tensor[1:], tensor[:1]))
    if "box_predictor.bbox_pred" in name:
        return tensor[4:]
    return tensor
