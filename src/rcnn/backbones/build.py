"""Build a backbone from settings: a trunk, optionally with a feature pyramid."""

from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn

from rcnn.backbones.fpn import FeaturePyramid
from rcnn.backbones.mobilenet import mobilenet, mobilenet_v3_large
from rcnn.backbones.norm import freeze_batch_norm, set_eps
from rcnn.backbones.resnet import NAMES, ResNet
from rcnn.backbones.timm import TimmTrunk
from rcnn.backbones.tiny import tiny
from rcnn.backbones.trunk import Trunk
from rcnn.backbones.vgg import vgg16
from rcnn.backbones.zf import zf
from rcnn.config import Model, Settings
from rcnn.errors import SettingsError

TRUNKS: dict[str, Callable[[int, int | None], Trunk]] = {
    "mobilenet": mobilenet,
    "mobilenet_v3_large": mobilenet_v3_large,
    "tiny": tiny,
    "vgg16": vgg16,
    "zf": zf,
    **{name: partial(ResNet, name) for name in NAMES},
}
"""Name -> function of (channels of the images, deepest level or None for all)."""


class Backbone(nn.Module):
    """Images -> feature maps of equal width.

    Args:
        name: name of the trunk in `TRUNKS`, or timm/NAME.
        trunk: network that computes feature maps of images.
        neck: pyramid on the trunk's levels. None: only the trunk's last level.

    Attributes:
        strides: stride of each output in pixels.
        channels: channels of every output.
    """

    def __init__(self, name: str, trunk: Trunk, neck: FeaturePyramid | None) -> None:
        super().__init__()
        self.name, self.trunk, self.neck = name, trunk, neck
        levels = neck.levels if neck else trunk.levels[-1:]
        self.strides = tuple(2**level for level in levels)
        self.channels = neck.channels if neck else trunk.widths[-1]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, H, W) -> "p3", "p4", ... (pyramid) or "c4" (one level) -> (B, channels, H / stride, W / stride)."""
        # On a CPU, channels last is twice as fast; on a GPU, it is not slower.
        maps = self.trunk(images.contiguous(memory_format=torch.channels_last))
        if self.neck is None:
            return OrderedDict({f"c{self.trunk.levels[-1]}": maps[-1]})
        return self.neck(maps)


def build_backbone(settings: Settings) -> Backbone:
    """Build the backbone of `settings.model` with fresh weights and its frozen parts marked.

    Without a neck, the only level is that of `model.levels` if it names a single one, else the trunk's last. With
    `roi.head=conv5` it is 4, since the fifth stage is the head.

    Raises:
        SettingsError: the backbone is unknown or does not have these levels or widths.
    """
    model = settings.model
    last = None
    if model.neck == "none":
        last = 4 if settings.roi.head == "conv5" else model.levels[0] if len(model.levels) == 1 else None
    trunk = _trunk(model, settings.preprocess.in_channels, last)
    if last is not None and trunk.levels[-1] != last:
        raise SettingsError(f"`model.levels`: {model.backbone} has no level {last}, its last is {trunk.levels[-1]}")
    set_eps(trunk, model.norm_eps)
    trunk.freeze(model.frozen_stages, norm=model.norm)
    neck = None
    if model.neck == "fpn":
        levels, name = model.levels, model.backbone
        repeated = any(levels.count(level) > max(1, trunk.levels.count(level)) for level in levels)
        if list(levels) != sorted(levels) or repeated:
            raise SettingsError(f"`model.levels`: {levels} must ascend, each once for every map that {name} has of it")
        if not levels or levels[0] not in trunk.levels:
            raise SettingsError(f"`model.levels`: {levels} must start with one of {trunk.levels}, the levels of {name}")
        maps = list(zip(trunk.levels, trunk.widths, strict=True))
        neck = FeaturePyramid(maps, model.channels, levels, norm=model.neck_norm == "batch")
        set_eps(neck, model.norm_eps)
        if model.norm != "train":
            freeze_batch_norm(neck, affine=model.norm == "affine")
    return Backbone(model.backbone, trunk, neck).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _trunk(model: Model, in_channels: int, last: int | None) -> Trunk:
    name = model.backbone
    if name in NAMES:
        return ResNet(name, in_channels, last, model=model)
    if model.widths or model.stride_in != "3x3":
        raise SettingsError(f"`model.widths` and `model.stride_in` are for ResNets only, and the backbone is {name}")
    if name == "custom":
        raise SettingsError(
            "`model.backbone=custom` is a module of your own: pass it in, as build(settings, classes, backbone=MODULE) "
            "or Detector.load(path, backbone=MODULE)"
        )
    if name.startswith("timm/"):
        return TimmTrunk(name.removeprefix("timm/"), in_channels, last)
    if name not in TRUNKS:
        near = get_close_matches(name, TRUNKS, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise SettingsError(
            f"`model.backbone`: there is no `{name}`{hint} (there are {', '.join(TRUNKS)}, timm/NAME and custom)"
        )
    return TRUNKS[name](in_channels, last)
