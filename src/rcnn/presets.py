"""Named models as changes of the default settings, and the construction of a model from its settings."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from rcnn.backbones.build import build_backbone
from rcnn.backbones.norm import freeze_batch_norm, set_eps
from rcnn.backbones.resnet import conv5_head
from rcnn.config import Settings, merge, override, validate
from rcnn.errors import SettingsError
from rcnn.model.fast_rcnn import ConvFCHead
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.truncated import check_ranks

_SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "batch": 8, "weight_decay": 1e-4}
"""The usual way to train large networks from ImageNet weights."""

_LARGE_FPN: dict[str, Any] = {
    "preprocess": {"short": 800, "long": 1333},
    "model": {"channels": 256, "levels": (2, 3, 4, 5, 6), "frozen_stages": 2},
    "anchors": {"sizes": ((32,), (64,), (128,), (256,), (512,))},
    "rpn": {"pre_train": 2000, "post_train": 1000, "pre_test": 1000, "post_test": 1000},
    "roi": {"levels": (2, 3, 4, 5), "hidden": 1024, "samples": 512},
    "train": _SGD,
}

_PAPER: dict[str, Any] = {
    "preprocess": {
        "short": 600,
        "long": 1000,
        "multiple": 16,
        "resize": "interpolate",
        "order": "bgr",
        "mean": (102.9801 / 255, 115.9465 / 255, 122.7717 / 255),
        "std": (1 / 255,),
    },
    "model": {"neck": "none", "levels": (4,)},
    "anchors": {"sizes": ((128, 256, 512),), "round": "base", "order": "ratio", "border": 0.0},
    "rpn": {
        "logits": 2,
        "normaliser": "paper",
        "lambda": 10.0,
        "beta": 1.0,
        "ignore": "drop",
        "pre_train": 12000,
        "post_train": 2000,
        "pre_test": 6000,
        "post_test": 300,
        "min_size": 16.0,
    },
    "roi": {
        "levels": (4,),
        "pool": "max",
        "hidden": 4096,
        "dropout": 0.5,
        "negative_iou": (0.1, 0.5),
        "ignore": "drop",
        "beta": 1.0,
        "nms": 0.3,
    },
    "augment": {"scale": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "train": {
        "epochs": 16,
        "batch": 1,
        "optimizer": "sgd",
        "lr": 1e-3,
        "lr_batch": 1,
        "weight_decay": 5e-4,
        "bias_decay": True,
        "bias_lr": 2.0,
        "schedule": "step",
        "milestones": (0.75,),
        "warmup": 0.0,
        "clip": None,
        "ema": None,
        "amp": "float32",
    },
}
"""The paper's networks, trained jointly. 16 epochs of VOC 2007's 5,011 images correspond to its 60k + 20k steps."""

_ALTERNATING: dict[str, Any] = {
    "train": {
        "scheme": "alternating",
        "steps": (80_000, 40_000, 80_000, 40_000),
        "step_milestones": ((60_000,), (30_000,), (60_000,), (30_000,)),
        "batches": (1, 2, 1, 2),
    }
}
"""The paper's alternating training for VOC 2007; the numbers of Fast R-CNN are those of py-faster-rcnn."""

_COCO: dict[str, Any] = {
    "anchors": {"sizes": ((64, 128, 256, 512),)},
    "roi": {"negative_iou": (0.0, 0.5)},
    "train": {
        "scheme": "alternating",
        "lr": 3e-3,
        "steps": (320_000,),
        "step_milestones": ((240_000,),),
        "batches": (8, 16, 8, 16),
    },
}
"""The paper's training for COCO (section 4.2)."""

_PAPER_ZF = merge(
    _PAPER, {"model": {"backbone": "zf", "frozen_stages": 0}, "roi": {"size": 6, "dropout_scale": "prediction"}}
)

_ONE_STAGE: dict[str, Any] = {"rpn": {"classify": "classes"}, "roi": {"head": "none"}}
"""The RPN's head predicts classes, without a second stage. For the single stage of table 10, see `sliding_windows`."""

PRESETS: dict[str, dict[str, Any]] = {
    "mobilenet-fpn": {},
    "mobilenet-one-stage": merge(
        _ONE_STAGE, {"rpn": {"loss": "focal", "convs": 2, "positive_iou": 0.5, "negative_iou": 0.4}}
    ),
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
    "paper-vgg16": merge(_PAPER, {"model": {"backbone": "vgg16", "frozen_stages": 2}}),
    "paper-vgg16-alternating": merge(merge(_PAPER, _ALTERNATING), {"model": {"backbone": "vgg16", "frozen_stages": 2}}),
    "paper-vgg16-coco": merge(merge(_PAPER, _COCO), {"model": {"backbone": "vgg16", "frozen_stages": 2}}),
    "paper-zf": _PAPER_ZF,
    "paper-zf-alternating": merge(_PAPER_ZF, _ALTERNATING),
    "paper-zf-one-stage": merge(_PAPER_ZF, _ONE_STAGE),
}
"""Name -> differences from the defaults of `config.Settings`."""


def settings_of(model: str, changes: Sequence[str] | Mapping[str, Any] = ()) -> Settings:
    """Return the settings of a preset (or of `timm/NAME`, a timm backbone with a pyramid) after `changes`.

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


def build(
    settings: Settings, classes: int, *, backbone: nn.Module | None = None, head: nn.Module | None = None
) -> FasterRCNN:
    """Return the model that settings describe, with new weights.

    Args:
        settings: settings of all parts.
        classes: number of classes K, without background.
        backbone: your own backbone, as `FasterRCNN` takes it, for `model.backbone=custom`.
        head: your own head of the second stage, likewise.

    Raises:
        SettingsError: no such backbone, settings that do not fit it, or ranks (`predict.svd`) that do not fit the head.
    """
    backbone = backbone or build_backbone(settings)
    if head is None and settings.roi.head == "conv5":
        head = conv5_head(settings)
    model = FasterRCNN(backbone, settings, classes, head)
    if model.fast_rcnn and isinstance(model.fast_rcnn.head, ConvFCHead):
        set_eps(model.fast_rcnn, settings.model.norm_eps)
        if settings.model.norm != "train":
            freeze_batch_norm(model.fast_rcnn, affine=settings.model.norm == "affine")
    if settings.predict.svd:
        for stage in model.fast_rcnn.heads if model.fast_rcnn else (None,):
            check_ranks(stage and stage.head, settings.predict.svd)
    return model
