"""Weights in the layer names of Caffe, as the paper's two implementations have them, as arrays: dictionaries or .npz.

Caffe's own files (.caffemodel) need Caffe to be read: `np.savez(path, **{f"{layer}.{i}": blob.data for layer, blobs in
net.params.items() for i, blob in enumerate(blobs)})` makes an .npz of one. K classes, a anchors a cell.
"""

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcnn.config import Settings, override
from rcnn.weights.box_targets import LAYER, PLAIN, renormalise
from rcnn.weights.file import WeightsError, atomic_write
from rcnn.weights.imported import Imported, class_names

ARCHITECTURES = ("paper-vgg16", "paper-zf")
"""Presets whose layers have names here."""

_VGG = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
_VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_CONVS = {
    "vgg16": {f"conv{n}": f"features.{place}" for n, place in zip(_VGG, _VGG_PLACES, strict=True)},
    "zf": {f"conv{n}": f"features.conv{n}" for n in range(1, 6)},
}
_CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3"}
_CLS = "fast_rcnn.predictor.cls"
_HEADS = {
    "rpn_conv/3x3": "rpn.head.conv",
    "rpn_cls_score": "rpn.head.cls",
    "rpn_bbox_pred": "rpn.head.reg",
    "fc6": "fast_rcnn.head.fc6",
    "fc7": "fast_rcnn.head.fc7",
    "cls_score": _CLS,
    "bbox_pred": LAYER,
}
_ALIASES = {
    "rpn_conv1": "rpn_conv/3x3",
    "conv_proposal1": "rpn_conv/3x3",
    "proposal_cls_score": "rpn_cls_score",
    "proposal_bbox_pred": "rpn_bbox_pred",
}
"""Names of py-faster-rcnn's alternating networks and of the MATLAB implementation."""

_NOTE = (
    "The arrays hold no settings: preprocessing, anchors, numbers of boxes and thresholds are those of {}. Where the "
    "network was trained with others, give them after each command, such as preprocess.short=300"
)

_KEY = re.compile(r"(?P<layer>.+?)(?:[./](?P<long>0|1|weights?|bias|biases)|_(?P<short>w|b))")
_LEAVES: dict[str, str] = dict.fromkeys(("0", "weight", "weights", "w"), "weight")

Blobs = np.ndarray | Tensor | Sequence[np.ndarray | Tensor]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing in it is run.

    Raises:
        WeightsError: the file is missing, damaged, or holds other things than arrays of numbers.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is damaged, or no .npz file of plain arrays: {reason}") from None
    types = {name: getattr(array, "dtype", None) for name, array in arrays.items()}  # of other archives bytes come out
    other = next((name for name, kind in types.items() if kind is None or kind.kind not in "biuf"), None)
    if other is not None:
        raise WeightsError(f"{path} holds other things than arrays of numbers, such as `{other}`: no file of weights")
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays as .npz, atomically.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    content, named = BytesIO(), dict[str, Any](arrays)
    np.savez(content, **named)
    atomic_write(path, content.getvalue())


def import_arrays(arrays: Mapping[str, Blobs], settings: Settings, names: Sequence[str] | None = None) -> Imported:
    """A detector of the paper's layers.

    Scores are background first, boxes a class with the background's in front, unnormalised (mean and deviation
    are in the weights, where both implementations fold them on saving). The background's boxes, which nothing reads,
    are left out.

    Args:
        arrays: layer -> (weight, bias), or `layer.weight` (`/weights`, `_w`, `.0`) -> one array.
        settings: of `paper-vgg16` or `paper-zf`; `roi.hidden` is that of the arrays.
        names: of the classes, background not counted.

    Raises:
        WeightsError: a layer is missing, or is none of this network's.
    """
    places = _places(settings)
    tensors = _placed(arrays, places, settings.model.backbone)
    background, *classes = tensors[f"{_CLS}.weight"]
    tensors[f"{_CLS}.weight"] = torch.stack([*classes, background])
    tensors[f"{_CLS}.bias"] = tensors[f"{_CLS}.bias"].roll(-1)
    for leaf in ("weight", "bias"):
        tensors[f"{LAYER}.{leaf}"] = tensors[f"{LAYER}.{leaf}"][4:]
    tensors = renormalise(tensors, PLAIN, settings.roi)
    settings = override(settings, {"roi": {"hidden": len(tensors[f"{_HEADS['fc6']}.bias"])}})
    return Imported(settings, tensors, class_names(len(classes), names), None, (_NOTE.format(settings.model.preset),))


def export_arrays(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, np.ndarray]:
    """`layer.weight` and `layer.bias` of a paper model, as `import_arrays` reads them; background boxes are zeros.

    Raises:
        WeightsError: the model is none of the paper's; the message names the settings.
    """
    _see_paper(settings)
    tensors = renormalise(tensors, settings.roi, PLAIN)
    found = {}
    for layer, place in _places(settings).items():
        for leaf in ("weight", "bias"):
            tensor = tensors[f"{place}.{leaf}"].detach().float().cpu()
            if place == _CLS:
                tensor = tensor.roll(1, dims=0)
            if place == LAYER:
                tensor = torch.cat((torch.zeros_like(tensor[:4]), tensor))
            found[f"{layer}.{leaf}"] = tensor.numpy()
    return found


def _see_paper(settings: Settings) -> None:
    """Refuse a model whose layers have no names here, or mean something else there."""
    model, anchors, rpn, roi = settings.model, settings.anchors, settings.rpn, settings.roi
    faults = [
        f"{name}={value}, there {' or '.join(map(str, there))}"
        for name, value, there in (
            ("model.backbone", model.backbone, tuple(_CONVS)),
            ("model.neck", model.neck, ("none",)),
            ("anchors.order", anchors.order, ("ratio",)),
            ("rpn.classify", rpn.classify, ("objects",)),
            ("rpn.convs", rpn.convs, (1,)),
            ("rpn.logits", rpn.logits, (2,)),
            ("rpn.score_order", rpn.score_order, ("background-first",)),
            ("roi.head", roi.head, ("fc",)),
            ("roi.class_agnostic", roi.class_agnostic, (False,)),
        )
        if value not in there
    ]
    if faults:
        raise WeightsError(f"Caffe's networks of the paper can't hold this detector: {'; '.join(faults)}")


def swap_scores(scores: Tensor) -> Tensor:
    """`rpn_cls_score`'s (2a, ...) weight or bias with background and object exchanged, which undoes itself."""
    return scores.roll(scores.shape[0] // 2, dims=0)


def network_of(names: Collection[str]) -> tuple[str, bool] | None:
    """Which network's layers arrays of these names are, vgg16 or zf, and whether they are a whole detector's.

    None: neither network's.
    """
    matches = [match for name in names if (match := _KEY.fullmatch(name))]
    layers = {_ALIASES.get(match["layer"], match["layer"]) for match in matches}
    return next(((kind, layers >= _HEADS.keys()) for kind, convs in _CONVS.items() if layers >= convs.keys()), None)


def classifier_state(arrays: Mapping[str, Blobs], source: object) -> dict[str, Tensor]:
    """A classifier's convolutions, fc6 and fc7 in torchvision's names, to start a backbone from; the rest is left out.

    Raises:
        WeightsError: these are no layers of VGG-16 or ZF.
    """
    pairs = _pairs(arrays)
    layers = {layer for layer, _ in pairs}
    kind = next((kind for kind, convs in _CONVS.items() if layers >= convs.keys()), None)
    if kind is None:
        found = ", ".join(sorted(layers)[:4]) or "no layer"
        raise WeightsError(f"{source}: expected conv1_1 to conv5_3 (VGG-16) or conv1 to conv5 (ZF), found {found}")
    places = _CONVS[kind] | _CLASSIFIER
    return {f"{places[layer]}.{leaf}": tensor for (layer, leaf), tensor in pairs.items() if layer in places}


def _places(settings: Settings) -> dict[str, str]:
    """Layer of Caffe -> our name."""
    convs = {layer: f"backbone.trunk.{place}" for layer, place in _CONVS[settings.model.backbone].items()}
    return convs | _HEADS


def _placed(arrays: Mapping[str, Blobs], places: Mapping[str, str], network: str) -> dict[str, Tensor]:
    """Our name -> tensor, each of the network's layers and nothing else."""
    pairs = _pairs(arrays)
    wanted = {(layer, leaf) for layer in places for leaf in ("weight", "bias")}
    faults = [f"`{layer}` has no {leaf}" for layer, leaf in sorted(wanted - pairs.keys())]
    faults += [f"`{layer}` is no layer of {network}" for layer in sorted({layer for layer, _ in pairs} - places.keys())]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(f"the arrays are not those of {network}: {', '.join(faults[:3])}{more}")
    return {f"{places[layer]}.{leaf}": tensor for (layer, leaf), tensor in pairs.items()}


def _pairs(arrays: Mapping[str, Blobs]) -> dict[tuple[str, str], Tensor]:
    """(layer, weight or bias) -> tensor; Caffe's old blobs have four dimensions, whatever they hold."""
    found: dict[tuple[str, str], Tensor] = {}
    for key, value in arrays.items():
        if isinstance(value, np.ndarray | Tensor):
            match = _KEY.fullmatch(key)
            if match is None:
                raise WeightsError(f"`{key}` is not named like a layer's weight or bias, such as conv1_1.weight")
            blobs = {_LEAVES.get(match["long"] or match["short"], "bias"): value}
            key = match["layer"]
        else:
            blobs = dict(zip(("weight", "bias"), value, strict=False))
        layer = _ALIASES.get(key, key)
        for leaf, blob in blobs.items():
            tensor = torch.as_tensor(blob).float()
            if leaf == "bias" or tensor.shape[:2] == (1, 1):
                tensor = tensor.reshape(-1, *tensor.shape[-1:]) if leaf == "weight" else tensor.flatten()
            found[layer, leaf] = tensor
    return found
