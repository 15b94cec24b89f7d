"""Names that other programs have for settings: taken where the meaning is plain, otherwise answered with ours."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from rcnn.errors import SettingsError

IMAGE_SIZE = "imgsz"
"""Sets `preprocess.short` and scales `preprocess.long` along, see `override`."""

SAME = {
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
"""Name -> the setting of the same meaning and the same values."""

NEAR = {
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
"""Name -> what comes nearest to it here; the values may be others."""


Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def by_meaning(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Have a function of a detector answer `conf=`, `imgsz=` and other names of settings elsewhere with ours."""
    known = signature(function).parameters

    @wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Returned:
        for name in named.keys() - known.keys():
            setting = IMAGE_SIZE if name == IMAGE_SIZE else SAME.get(name, NEAR.get(name, ""))
            argument = setting.rpartition(".")[2]
            if argument in known:
                raise TypeError(f"{function.__name__}() has no argument `{name}`; did you mean `{argument}=`?")
            if setting and " " not in setting:
                change = f'with_settings(["{setting}{"" if "=" in setting else "=..."}"])'
                raise TypeError(f"{function.__name__}() has no argument `{name}`; did you mean `detector.{change}`?")
        return function(*given, **named)

    return call


def scaled(sides: tuple[int, int], size: str) -> dict[str, int]:
    """The settings `short` and `long` that `imgsz=SIZE` stands for.

    Args:
        sides: both as they are, pixels; `long` changes by the same factor as `short`.
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
