"""Load the weights of a classifier, under torchvision's names, into the trunk of a backbone."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rcnn.backbones.build import Backbone
from rcnn.backbones.resnet import NAMES, Conv5Head
from rcnn.backbones.timm import TimmTrunk
from rcnn.config import Preprocess
from rcnn.errors import UnavailableError, WeightsError
from rcnn.model.fast_rcnn import FCHead
from rcnn.weights.caffe import classifier_state, read_arrays
from rcnn.weights.file import MAX_FOREIGN_BYTES, check_archive, first_line, read_safetensors, reading
from rcnn.weights.hub import fetch, is_offline
from rcnn.weights.pickles import check_torch_file

_IMAGENET = {"mobilenet": "mobilenet_v2", **{name: name for name in (*NAMES, "mobilenet_v3_large", "vgg16")}}
"""Our name -> torchvision's."""
IMAGENET = ("imagenet", "imagenet-v1")
"""Names of ImageNet weights: torchvision's best ones, and its first ones."""
_CLASSIFIER = ("classifier.", "fc.", "features.18.", "layer4.")
_FC = {"classifier.0": "fc6", "classifier.3": "fc7"}
_FC6 = {"vgg16": (4096, 25088), "zf": (4096, 9216)}


class Loaded(NamedTuple):
    """The result of `load_backbone`.

    Attributes:
        source: the file or its address.
        loaded: number of tensors loaded.
        missing: torchvision's names of tensors that the source lacks; these weights are unchanged.
        unexpected: names in the source without a counterpart, except those of the classifier.
    """

    source: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_backbone(
    backbone: Backbone, source: str | Path, head: nn.Module | None = None, preprocess: Preprocess | None = None
) -> Loaded:
    """Load a classifier's weights into the trunk of `backbone`, in place; the neck is not changed.

    Half precision is widened. If the images do not have 3 channels, the first convolution is adapted: summed for 1
    channel (so that a grey image gives the same result as in colour), else repeated and scaled by 3 / channels.

    Args:
        backbone: a backbone made by `build_backbone`.
        source: `imagenet` (torchvision's best weights, IMAGENET1K_V2 where they exist, or timm's for its networks),
            `imagenet-v1` (torchvision's first ones), or a file: .safetensors or .pth with torchvision's names (timm's
            for its networks), or .npz with Caffe's.
        head: the second stage's head; a `Conv5Head` receives layer4, an `FCHead` on VGG-16 or ZF receives fc6 and fc7.
        preprocess: preprocessing of the images; if it is not torchvision's, ImageNet weights are adapted to it.

    Raises:
        UnavailableError: `imagenet` weights can't be downloaded, or torchvision has none for this trunk.
        WeightsError: the file is missing, damaged, not a dictionary of tensors, or does not fit; or `imagenet-v1` is
            requested for a network of timm.
    """
    if isinstance(backbone.trunk, TimmTrunk):
        return _load_timm(backbone.trunk, source)
    if source in IMAGENET:
        tensors, name = _imagenet(backbone.name, str(source))
    else:
        tensors, name = read_tensors(source), str(source)
    targets = _targets(backbone, head)
    matches = targets.keys() & tensors.keys()
    if not matches:
        raise WeightsError(f"{name} holds no weights of {backbone.name}: its first names are {sorted(tensors)[:3]}")
    with torch.no_grad():
        for key in sorted(matches):
            targets[key].copy_(_fit(tensors[key], targets[key], f"{name}: {key}"))
        if source in IMAGENET and preprocess:
            match_pixels(backbone.trunk, preprocess)
    missing = (key for key in targets if key not in matches and not key.endswith("num_batches_tracked"))
    unexpected = (key for key in tensors if key not in matches and not key.startswith(_CLASSIFIER))
    return Loaded(name, len(matches), tuple(missing), tuple(unexpected))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or .pth file, without running code that a .pth file may contain.

    An .npz file contains a classifier under Caffe's names; its tensors are returned under torchvision's.

    Raises:
        WeightsError: the file is missing, damaged or not a dictionary of tensors.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return classifier_state(read_arrays(path), path)
    if path.suffix not in (".pth", ".pt"):
        return read_safetensors(path)[0]
    with reading(path, MAX_FOREIGN_BYTES), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the file is read or refused anyway
        if zipfile.is_zipfile(path):
            check_archive(path)
        try:
            check_torch_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise WeightsError(
                f"{path} ({path.stat().st_size:,} bytes) is damaged or holds more than tensors, so it is not opened; "
                "save the model's state_dict alone"
            ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in content.items()
    ):
        raise WeightsError(f"{path} holds no dictionary of tensors; save the model's state_dict")
    return dict(content)


def _targets(backbone: Backbone, head: nn.Module | None) -> dict[str, Tensor]:
    """Map torchvision's names to our tensors to fill."""
    targets = dict(backbone.trunk.state_dict())
    if isinstance(head, Conv5Head):
        targets |= head.state_dict()
    if isinstance(head, FCHead) and head.fc6.weight.shape == _FC6.get(backbone.name):
        ours = head.state_dict()
        targets |= {f"{a}.{part}": ours[f"{b}.{part}"] for a, b in _FC.items() for part in ("weight", "bias")}
    return targets


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution's weight (out, in, k, k) to images of `channels` channels: (out, channels, k, k).

    For 1 channel it is summed, so that a grey image gives the same result as with its channel repeated. Otherwise it is
    repeated and scaled by in / channels.
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True)
    return weight.float().repeat(1, -(-channels // before), 1, 1)[:, :channels] * (before / channels)


def match_pixels(trunk: nn.Module, preprocess: Preprocess) -> None:
    """Adapt a first convolution from torchvision's pixels to those of `preprocess`, in place.

    Its output for an image does not change, except at the edges, where zero padding stands for the other mean. Without
    a bias it can't compensate for another mean. If it does not have 3 channels, it is left unchanged.
    """
    usual = Preprocess()
    conv = next(layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d))
    same_pixels = (usual.order, usual.mean, usual.std) == (preprocess.order, preprocess.mean, preprocess.std)
    if conv.in_channels != 3 or same_pixels:
        return
    mean, std, usual_mean, usual_std = (
        conv.weight.new_tensor(numbers).expand(3)
        for numbers in (preprocess.mean, preprocess.std, usual.mean, usual.std)
    )
    with torch.no_grad():
        weight = conv.weight / usual_std[:, None, None]
        if preprocess.order == "bgr":
            weight, usual_mean = weight.flip(1), usual_mean.flip(0)
        if conv.bias is not None:
            conv.bias += (weight.sum(dim=(2, 3)) * (mean - usual_mean)).sum(dim=1)
        conv.weight.copy_(weight * std[:, None, None])


def _fit(tensor: Tensor, target: Tensor, where: str) -> Tensor:
    """Return `tensor` in the shape of `target`; a first convolution is adapted to the number of channels."""
    shape, needed = tuple(tensor.shape), tuple(target.shape)
    if len(shape) == 4 and shape[1] == 3 and shape != needed and (shape[0], *shape[2:]) == (needed[0], *needed[2:]):
        return fit_channels(tensor, needed[1])
    if shape != needed:
        raise WeightsError(f"{where} has the shape {shape}, this backbone needs {needed}; take weights of its kind")
    return tensor


def _imagenet(name: str, source: str) -> tuple[dict[str, Tensor], str]:
    """Return the state and URL of torchvision's ImageNet weights that `source` names."""
    if name not in _IMAGENET:
        raise UnavailableError(f"torchvision has no ImageNet weights of {name}")
    from torchvision.models import get_model_weights

    url = get_model_weights(_IMAGENET[name])["DEFAULT" if source == "imagenet" else "IMAGENET1K_V1"].url
    return read_tensors(fetch(url)), url


def _load_timm(trunk: TimmTrunk, source: str | Path) -> Loaded:
    """Load weights into a network of timm by way of a second network, since timm renames and adapts weights itself."""
    name = f"timm/{trunk.name}"
    if source == "imagenet-v1":
        raise WeightsError(f"imagenet-v1 names weights of torchvision, and {name} has weights of timm: use imagenet")
    if source == "imagenet":
        if is_offline():  # timm downloads by itself, and whether its cache holds the file is unknown
            raise UnavailableError(
                f"ImageNet weights of {name} are not fetched: RCNN_OFFLINE is set. With HF_HUB_OFFLINE=1 instead, timm "
                "uses those in Hugging Face's cache"
            )
        try:
            state = trunk.create(pretrained=True).state_dict()
        except OSError as error:
            raise UnavailableError(f"ImageNet weights of {name} can't be downloaded: {error}") from None
    else:
        name, tensors = str(source), read_tensors(source)
        try:
            state = trunk.create(tensors).state_dict()
        except Exception as error:  # timm may fail in any way on unknown tensors
            raise WeightsError(f"{name} does not fit timm/{trunk.name}: {first_line(error)}") from None
    result = trunk.net.load_state_dict(state, strict=False)
    unexpected = (key for key in result.unexpected_keys if not key.endswith("num_batches_tracked"))
    return Loaded(name, len(state), tuple(result.missing_keys), tuple(unexpected))
