"""Named models: settings that differ from the defaults, and the modules that settings describe."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from rcnn.backbones.build import build_backbone
from rcnn.config import Settings, SettingsError, merge, override, validate
from rcnn.model.faster_rcnn import FasterRCNN

_SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "batch": 8, "weight_decay": 1e-4}
"""How the field trains large networks from ImageNet weights."""

_LARGE_FPN: dict[str, Any] = {
    "preprocess": {"short": 800, "long": 1333},
    "model": {"channels": 256, "levels": (2, 3, 4, 5, 6), "frozen_stages": 2},
    "anchors": {"sizes": ((32,), (64,), (128,), (256,), (512,))},
    "rpn": {"pre_train": 2000, "post_train": 1000, "pre_test": 1000, "post_test": 1000},
    "roi": {"levels": (2, 3, 4, 5), "hidden": 1024, "samples": 512},
    "train": _SGD,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mobilenet-fpn": {},
    "tiny-fpn": {
        "preprocess": {"short": 256, "long": 384},
        "model": {"backbone": "tiny", "channels": 64, "levels": (2, 3, 4, 5), "norm": "train", "frozen_stages": 0},
        "anchors": {"sizes": ((16,), (32,), (64,), (128,))},
        "rpn": {"pre_train": 500, "post_train": 256, "pre_test": 500, "post_test": 200},
        "roi": {
            "levels": (2, 3, 4),
            "canonical_size": 96.0,
            "canonical_level": 4,
            "hidden": 256,
            "samples": 64,
            "positive_fraction": 0.5,
        },
        "train": {"init": "none", "lr": 6e-3, "ema": 0.99},
    },
    **{
        f"{backbone}-fpn": merge(_LARGE_FPN, {"model": {"backbone": backbone}})
        for backbone in ("resnet18", "resnet34", "resnet50", "resnet101")
    },
    "resnet50-c4": {
        "preprocess": {"short": 800, "long": 1333},
        "model": {"backbone": "resnet50", "neck": "none", "levels": (4,), "frozen_stages": 2},
        "anchors": {"sizes": ((32, 64, 128, 256, 512),)},
        "rpn": {"pre_train": 12000, "post_train": 2000, "pre_test": 6000, "post_test": 1000},
        "roi": {"levels": (4,), "size": 14, "head": "conv5", "samples": 512},
        "train": _SGD,
    },
}
"""Name -> what differs from the defaults of `config.Settings`."""


def settings_of(model: str, changes: Sequence[str] | Mapping[str, Any] = ()) -> Settings:
    """Settings of a preset (or of `timm/NAME`, any timm backbone under a pyramid) with changes laid over them.

    Raises:
        SettingsError: no such preset, or a wrong setting.
    """
    if model.startswith("timm/"):
        tree = merge(_LARGE_FPN, {"model": {"backbone": model, "frozen_stages": 0}})
    elif model in PRESETS:
        tree = PRESETS[model]
    else:
        near = get_close_matches(model, PRESETS, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise SettingsError(f"no model is called `{model}`{hint} (there are {', '.join(PRESETS)} and timm/NAME)")
    return override(validate(merge(tree, {"model": {"preset": model}})), changes)


def build(settings: Settings, classes: int) -> FasterRCNN:
    """The model that settings describe, for `classes` classes, with fresh weights."""
    backbone = build_backbone(settings)
    head = None
    if settings.roi.head == "conv5":
        from rcnn.backbones.resnet import conv5_head

        head = conv5_head(settings)
    return FasterRCNN(backbone, settings, classes, head)
