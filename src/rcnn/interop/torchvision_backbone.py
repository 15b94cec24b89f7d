"""Backbones of torchvision's detectors: match them to ours, or wrap the user's own module."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from rcnn.backbones.build import TRUNKS, build_backbone
from rcnn.config import Settings
from rcnn.errors import SettingsError, WeightsError
from rcnn.interop.torchvision_settings import FeatureMaps
from rcnn.weights.adapt import shapes_alone, weights_follow

_RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
_MOBILENETS = ("mobilenet_v3_large", "mobilenet")

PREFIXES: dict[str, str] = {**dict.fromkeys(_RESNETS, ""), **dict.fromkeys(_MOBILENETS, "features.")}
"""Trunks that torchvision's bodies can be -> prefix of our tensor names over theirs."""

_PROBE = 256
"""Side in pixels of the image that strides are measured with, large enough for several cells in P6 and P7."""

_TOLERANCE = 1e-3
"""Largest difference, relative to the largest feature, between backbones that count as equal."""


class UserBackbone(nn.Module):
    """The user's own module as a backbone.

    Args:
        body: module that maps (B, C, H, W) to one map or a dictionary of maps, finest first.
        maps: names, levels and channels of its maps.

    Attributes:
        strides: stride of each output in pixels.
        channels: channels of every output.
        settings: its `model` settings.
    """

    foldable = False  # its modules need not run in the order in which they are kept

    def __init__(self, body: nn.Module, maps: FeatureMaps) -> None:
        super().__init__()
        self.body, self.names = body, maps.names
        self.strides, self.channels = tuple(2**level for level in maps.levels), maps.channels
        neck = "fpn" if len(maps.levels) > 1 else "none"
        self.settings = {"backbone": "custom", "neck": neck, "channels": maps.channels, "levels": maps.levels}

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, H, W) -> name -> (B, channels, H / stride, W / stride)."""
        maps = self.body(images)
        return OrderedDict({self.names[0]: maps}) if isinstance(maps, Tensor) else OrderedDict(maps)


def as_backbone(body: nn.Module) -> UserBackbone:
    """Wrap a module such as torchvision's detectors take; one forward pass in eval mode measures its strides.

    Raises:
        WeightsError: its outputs are not feature maps of equal width.
    """
    return UserBackbone(body, probe(copy.deepcopy(body).cpu().float().eval()))


def in_channels(body: nn.Module) -> int:
    """Return the channels of the images, from the first convolution."""
    return next((layer.in_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)), 3)


def probe(body: nn.Module) -> FeatureMaps:
    """Measure names, levels and channels of the feature maps of a backbone in eval mode, in float32 on the CPU.

    Raises:
        WeightsError: it can't be run on a square image, or its maps differ in width.
    """
    channels = in_channels(body)
    try:
        with torch.no_grad():
            output = body(torch.zeros(1, channels, _PROBE, _PROBE))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise WeightsError(
            f"`model.backbone` can't be run on an image of {_PROBE} x {_PROBE} x {channels}: {error}"
        ) from None
    maps = {"0": output} if isinstance(output, Tensor) else output
    widths = {int(value.shape[1]) for value in maps.values()} if isinstance(maps, Mapping) else set()
    if len(widths) != 1:
        raise WeightsError(
            f"`model.backbone` gives a {type(output).__name__} of widths {sorted(widths)}; it must give a feature map, "
            "or a dictionary of maps of equal width, finest first"
        )
    levels = (round(torch.tensor(_PROBE / value.shape[2]).log2().item()) for value in maps.values())
    return FeatureMaps(tuple(maps), tuple(levels), widths.pop())


def recognise(backbone: nn.Module, maps: FeatureMaps, channels: int) -> dict[str, Any] | None:
    """Return settings of our backbone with the same tensors; None if there is none.

    Only names and shapes decide here; `same_features` tells whether both compute the same.

    Args:
        backbone: torchvision's backbone, on the CPU.
        maps: its feature maps.
        channels: channels of the images.
    """
    if type(backbone) is not BackboneWithFPN:
        return None
    fpn: Any = backbone.fpn
    shapes = _shapes(backbone.body)
    for name, prefix in PREFIXES.items():
        if ("conv1.weight" in shapes) != (name in _RESNETS):  # making a trunk takes a while
            continue
        with shapes_alone():
            trunk = TRUNKS[name](channels, None)
        if _shapes(trunk) == {prefix + key: shape for key, shape in shapes.items()}:
            return {
                "backbone": name,
                "neck": "fpn",
                "neck_norm": "batch" if len(fpn.inner_blocks[0]) > 1 else "none",
                "channels": maps.channels,
                "levels": maps.levels,
                "frozen_stages": _frozen_stages(backbone.body, trunk.stages, prefix),
            }
    return None


def same_features(backbone: nn.Module, settings: Settings, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether torchvision's backbone and ours with these tensors give the same maps for a random image."""
    inside = {name.removeprefix("backbone."): tensors[name] for name in tensors if name.startswith("backbone.")}
    try:
        with weights_follow():
            ours = build_backbone(settings).eval()
        ours.load_state_dict(inside)
    except (SettingsError, RuntimeError):
        return False
    image = torch.rand(1, settings.preprocess.in_channels, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, maps = list(backbone(image).values()), list(ours(image).values())
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * a.abs().max())
        for a, b in zip(expected, maps, strict=True)
    )


def norm_settings(parts: Iterable[nn.Module]) -> dict[str, Any]:
    """Read whether the batch norms in `parts` are constants or trained, and their eps.

    Raises:
        WeightsError: they differ in eps or in kind.
    """
    kinds_of_norm = FrozenBatchNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm
    norms = [layer for part in parts for layer in part.modules() if isinstance(layer, kinds_of_norm)]
    eps, kinds = {float(layer.eps) for layer in norms}, {type(layer) for layer in norms}  # type: ignore[arg-type]
    if len(eps) > 1 or len(kinds) > 1:
        raise WeightsError(
            f"the model's batch norms are {sorted(kind.__name__ for kind in kinds)} with eps {sorted(eps)}; "
            "they must all be of one kind and have the same eps"
        )
    return {"norm": "frozen" if FrozenBatchNorm2d in kinds else "train", "norm_eps": eps.pop() if eps else None}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {name: tuple(state[name].shape) for name in state if not name.endswith("num_batches_tracked")}


def _frozen_stages(body: nn.Module, stages: tuple[tuple[str, ...], ...], prefix: str) -> int:
    """Count the leading stages without a trained parameter."""
    trained = [prefix + name for name, parameter in body.named_parameters() if parameter.requires_grad]
    for number, stage in enumerate(stages):
        if any(name.startswith(tuple(f"{part}." for part in stage)) for name in trained):
            return number
    return len(stages)
