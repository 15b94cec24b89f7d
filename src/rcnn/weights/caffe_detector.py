"""Import and export of detectors as arrays under Caffe's layer names, as in the paper's two implementations.

K classes, A anchors per cell.
"""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rcnn.config import Settings, override
from rcnn.errors import WeightsError
from rcnn.weights.adapt import some
from rcnn.weights.box_targets import CLASS_LAYER, LAYER, PLAIN, renormalise
from rcnn.weights.caffe import CONVS, Blobs, layer_of, layer_tensors, trunk_of
from rcnn.weights.file import atomic_write
from rcnn.weights.imported import Imported, background_first, background_last, class_names

ARCHITECTURES = ("paper-vgg16", "paper-zf")
"""Presets whose layers have names in Caffe."""

_HEADS = {
    "rpn_conv/3x3": "rpn.head.conv",
    "rpn_cls_score": "rpn.head.cls",
    "rpn_bbox_pred": "rpn.head.reg",
    "fc6": "fast_rcnn.head.fc6",
    "fc7": "fast_rcnn.head.fc7",
    "cls_score": CLASS_LAYER,
    "bbox_pred": LAYER,
}
_ALIASES = {
    "rpn_conv1": "rpn_conv/3x3",
    "conv_proposal1": "rpn_conv/3x3",
    "proposal_cls_score": "rpn_cls_score",
    "proposal_bbox_pred": "rpn_bbox_pred",
}
"""Names of py-faster-rcnn's alternating networks and of the MATLAB implementation."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "model.backbone": tuple(CONVS),
    "model.neck": ("none",),
    "anchors.order": ("ratio",),
    "rpn.classify": ("objects",),
    "rpn.kernel": (3,),
    "rpn.convs": (1,),
    "rpn.logits": (2,),
    "rpn.score_order": ("background-first",),
    "roi.head": ("fc",),
    "roi.class_agnostic": (False,),
}
"""Setting -> its values in a model whose layers have names in Caffe, and the same meaning there."""

_NOTE = (
    "The arrays hold no settings: preprocessing, anchors, numbers of boxes and thresholds are those of {}. If the "
    "network was trained with others, give them after each command, such as preprocess.short=300"
)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz file atomically.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    content, named = BytesIO(), dict[str, Any](arrays)
    np.savez(content, **named)
    atomic_write(path, content.getvalue())


def import_arrays(arrays: Mapping[str, Blobs], settings: Settings, names: Sequence[str] | None = None) -> Imported:
    """Import a detector of the paper from arrays.

    In the arrays, the background's scores and boxes come first. Boxes are per class and not normalised, since both
    implementations fold mean and deviation into the weights on saving. The unused boxes of the background are left out.

    Args:
        arrays: arrays in the form that `rcnn.weights.caffe.layer_tensors` takes.
        settings: settings of `paper-vgg16` or `paper-zf`; `roi.hidden` is read from the arrays.
        names: class names, without the background.

    Raises:
        WeightsError: a layer is missing or does not belong to this network.
    """
    our_names, network = _names(settings), settings.model.backbone
    blobs = {(_ALIASES.get(layer, layer), leaf): tensor for (layer, leaf), tensor in layer_tensors(arrays).items()}
    missing = sorted({(layer, leaf) for layer in our_names for leaf in ("weight", "bias")} - blobs.keys())
    foreign = sorted({layer for layer, _ in blobs} - our_names.keys())
    faults = [f"`{layer}` has no {leaf}" for layer, leaf in missing]
    faults += [f"`{layer}` is no layer of {network}" for layer in foreign]
    if faults:
        raise WeightsError(f"the arrays are not those of {network}: {some(faults, 3)}")
    tensors = {f"{our_names[layer]}.{leaf}": tensor for (layer, leaf), tensor in blobs.items()}
    tensors = {name: background_last(name, tensor) for name, tensor in tensors.items()}
    tensors = renormalise(tensors, PLAIN, settings.roi)
    count = len(tensors[f"{CLASS_LAYER}.bias"]) - 1
    settings = override(settings, {"roi": {"hidden": len(tensors[f"{_HEADS['fc6']}.bias"])}})
    return Imported(settings, tensors, class_names(count, names), None, (_NOTE.format(settings.model.preset),))


def export_arrays(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, np.ndarray]:
    """Export a model of the paper as `layer.weight` and `layer.bias`, for `import_arrays`; background boxes are zero.

    Raises:
        WeightsError: the model is not one of the paper's; the message names the settings.
    """
    values = {name: attrgetter(name)(settings) for name in _FIXED}
    faults = [
        f"{name}={values[name]}, there {' or '.join(map(str, allowed))}"
        for name, allowed in _FIXED.items()
        if values[name] not in allowed
    ]
    if faults:
        raise WeightsError(f"Caffe's networks of the paper can't hold this detector: {'; '.join(faults)}")
    tensors = renormalise(tensors, settings.roi, PLAIN)
    return {
        f"{layer}.{leaf}": background_first(name, tensors[f"{name}.{leaf}"].detach().float().cpu()).numpy()
        for layer, name in _names(settings).items()
        for leaf in ("weight", "bias")
    }


def swap_scores(scores: Tensor) -> Tensor:
    """Exchange background and object in the (2A, ...) weight or bias of `rpn_cls_score`; a second call restores it."""
    return scores.roll(scores.shape[0] // 2, dims=0)


def network_of(names: Collection[str]) -> tuple[str, bool] | None:
    """Return the network (vgg16 or zf) of arrays with these names and whether they form a detector; None: neither."""
    layers = {_ALIASES.get(key[0], key[0]) for name in names if (key := layer_of(name))}
    trunk = trunk_of(layers)
    return (trunk, layers >= _HEADS.keys()) if trunk else None


def _names(settings: Settings) -> dict[str, str]:
    """Map layers of Caffe to our names."""
    convs = {layer: f"backbone.trunk.{name}" for layer, name in CONVS[settings.model.backbone].items()}
    return convs | _HEADS
