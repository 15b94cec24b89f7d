"""Names of settings in other programs: accepted if the meaning is the same, otherwise answered with a suggestion."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from rcnn.errors import SettingsError

IMAGE_SIZE = "imgsz"
"""Sets `preprocess.short` and scales `preprocess.long` by the same factor, see `override`."""

ALIASES = {
    "epochs": "train.epochs",
    "batch": "train.batch",
    "batch_size": "train.batch",
    "lr": "train.lr",
    "lr0": "train.lr",
    "learning_rate": "train.lr",
    "optimizer": "train.optimizer",
    "patience": "train.patience",
    "seed": "train.seed",
    "device": "train.device",
    "workers": "data.workers",
    "num_workers": "data.workers",
    "conf": "predict.score",
}
"""Name -> the setting with the same meaning and values."""

SUGGESTIONS = {
    "classes": "data.classes",
    "single_cls": "data.classes",
    "callbacks": "recorders=[...]` of `rcnn.train",
    "hooks": "recorders=[...]` of `rcnn.train",
    "loggers": "recorders=[...]` of `rcnn.train",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "warmup_epochs": "train.warmup",
    "cos_lr": "train.schedule=cosine",
    "scheduler": "train.schedule",
    "amp": "train.amp=bf16",
    "half": "predict.precision=bf16",
    "pretrained": "train.init",
    "weights": "train.init",
    "freeze": "model.frozen_stages",
    "trainable_backbone_layers": "model.frozen_stages",
    "img_size": "preprocess.short",
    "image_size": "preprocess.short",
    "min_size": "preprocess.short",
    "max_size": "preprocess.long",
    "fliplr": "augment.flip",
    "flipud": "augment.vertical_flip",
    "hsv_h": "augment.hue",
    "hsv_s": "augment.saturation",
    "hsv_v": "augment.brightness",
    "iou": "roi.nms",
    "nms_thresh": "roi.nms",
    "max_det": "roi.detections",
    "threshold": "predict.score",
    "project": "--out` or, in Python, `runs=",
}
"""Name -> the nearest setting here, whose values may differ."""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def suggest_settings(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Make a method of a detector suggest our setting for an argument such as `conf=` or `imgsz=`."""
    known = signature(function).parameters

    @wraps(function)
    def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Returned:
        for name in keywords.keys() - known.keys():
            setting = IMAGE_SIZE if name == IMAGE_SIZE else ALIASES.get(name, SUGGESTIONS.get(name, ""))
            argument = setting.rpartition(".")[2]
            if argument in known:
                raise TypeError(f"{function.__name__}() has no argument `{name}`; did you mean `{argument}=`?")
            if setting and " " not in setting:
                change = f'with_settings(["{setting}{"" if "=" in setting else "=..."}"])'
                raise TypeError(f"{function.__name__}() has no argument `{name}`; did you mean `detector.{change}`?")
        return function(*arguments, **keywords)

    return call


def scaled(sides: tuple[int, int], size: str) -> dict[str, int]:
    """Return the settings `short` and `long` for `imgsz=SIZE`.

    Args:
        sides: current `short` and `long`, pixels; both change by the same factor.
        size: text of the new `short`, pixels.

    Raises:
        SettingsError: the size is not one whole number.
    """
    if not re.fullmatch(r"[1-9][0-9]{0,4}", size):
        raise SettingsError(
            f"`{IMAGE_SIZE}={size[:80]}`: give one whole number, the pixels of the shorter side of resized images"
        )
    short, long = sides
    return {"short": int(size), "long": round(int(size) * long / short)}
