"""Read arrays under Caffe's layer names (.npz), and classifiers that backbones start from.

Reading Caffe's own files (.caffemodel) needs Caffe: `np.savez(path, **{f"{layer}.{i}": blob.data for layer, blobs in
net.params.items() for i, blob in enumerate(blobs)})` converts one to .npz.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcnn.errors import WeightsError
from rcnn.weights.file import MAX_FOREIGN_BYTES, check_archive, reading

_VGG = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
_VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CONVS = {
    "vgg16": {f"conv{n}": f"features.{index}" for n, index in zip(_VGG, _VGG_INDICES, strict=True)},
    "zf": {f"conv{n}": f"features.conv{n}" for n in range(1, 6)},
}
"""Our trunk -> Caffe's layer -> the trunk's layer."""
_CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3"}

_KEY = re.compile(r"(?P<layer>.+?)(?:[./](?P<long>0|1|weights?|bias|biases)|_(?P<short>w|b))")
_LEAVES: dict[str, str] = dict.fromkeys(("0", "weight", "weights", "w"), "weight")

Blobs = np.ndarray | Tensor | Sequence[np.ndarray | Tensor]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, without running code that it may contain.

    Raises:
        WeightsError: the file is missing or damaged, or contains anything but arrays of numbers.
    """
    with reading(path, MAX_FOREIGN_BYTES, "no .npz file of plain arrays"):
        check_archive(path)
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    types = {name: getattr(array, "dtype", None) for name, array in arrays.items()}  # other archives yield bytes
    other = next((name for name, kind in types.items() if kind is None or kind.kind not in "biuf"), None)
    if other is not None:
        raise WeightsError(f"{path} holds more than arrays of numbers, such as `{other}`, so it is no file of weights")
    return arrays


def classifier_state(arrays: Mapping[str, Blobs], source: object) -> dict[str, Tensor]:
    """Return a classifier's convolutions, fc6 and fc7 under torchvision's names, to start a backbone from.

    Raises:
        WeightsError: the arrays are not layers of VGG-16 or ZF.
    """
    tensors = layer_tensors(arrays)
    layers = {layer for layer, _ in tensors}
    trunk = trunk_of(layers)
    if trunk is None:
        some = ", ".join(sorted(layers)[:4]) or "no layer"
        raise WeightsError(f"{source}: expected conv1_1 to conv5_3 (VGG-16) or conv1 to conv5 (ZF), found {some}")
    names = CONVS[trunk] | _CLASSIFIER
    return {f"{names[layer]}.{leaf}": tensor for (layer, leaf), tensor in tensors.items() if layer in names}


def trunk_of(layers: Collection[str]) -> str | None:
    """Return the trunk (vgg16 or zf) whose convolutions are all among the names of layers; None: neither."""
    return next((trunk for trunk, convs in CONVS.items() if convs.keys() <= set(layers)), None)


def layer_of(name: str) -> tuple[str, str] | None:
    """Split an array's name such as `conv1_1.weight` into layer and `weight` or `bias`; None for any other name."""
    match = _KEY.fullmatch(name)
    return match and (match["layer"], _LEAVES.get(match["long"] or match["short"], "bias"))


def layer_tensors(arrays: Mapping[str, Blobs]) -> dict[tuple[str, str], Tensor]:
    """Map (layer, weight or bias) to tensors; old blobs of Caffe, which always have four dimensions, are reshaped.

    Args:
        arrays: layer -> (weight, bias), or `layer.weight` (`/weights`, `_w`, `.0`) -> one array.

    Raises:
        WeightsError: an array has any other name.
    """
    blobs: dict[tuple[str, str], np.ndarray | Tensor] = {}
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray | Tensor):
            blobs |= {(name, leaf): blob for leaf, blob in zip(("weight", "bias"), value, strict=False)}
        elif key := layer_of(name):
            blobs[key] = value
        else:
            raise WeightsError(f"`{name}` is not named like a layer's weight or bias, such as conv1_1.weight")
    return {key: _plain(torch.as_tensor(blob).float(), key[1]) for key, blob in blobs.items()}


def _plain(tensor: Tensor, leaf: str) -> Tensor:
    """Remove the leading dimensions of size 1 of old blobs of biases and fully connected layers."""
    if leaf == "bias":
        return tensor.flatten()
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.shape[:2] == (1, 1) else tensor
