"""Settings of the network: backbone, anchors, both stages; and the base of all sections of the settings."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rcnn.errors import SettingsError

Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Boxes = Annotated[int, Field(ge=1, le=10_000)]
Candidates = Annotated[int, Field(ge=1, le=4_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Cells = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Depth = Annotated[int, Field(ge=1, le=32)]
Levels = Annotated[tuple[Annotated[int, Field(ge=0, le=12)], ...], Field(max_length=32)]
Sides = Annotated[tuple[Positive, ...], Field(max_length=64)]
"""Everything is bounded, far above what is useful: settings also come from files of strangers."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, tuples instead of lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Section):
    """The backbone and its neck."""

    preset: str = Field(default="mobilenet-fpn", description="Name of the preset that these settings started from.")
    backbone: str = Field(
        default="mobilenet",
        description="mobilenet, mobilenet_v3_large, tiny, resnet18|34|50|101|152, resnext50_32x4d, resnext101_32x8d, "
        "vgg16, zf, timm/NAME, or custom: a module passed in by hand.",
    )
    neck: Literal["fpn", "none"] = Field(default="fpn", description="Feature pyramid, or the backbone's last level.")
    channels: Width = Field(default=96, description="Channels of every pyramid level.")
    levels: Levels = Field(default=(3, 4, 5, 6), description="Pyramid levels; level n has stride 2^n.")
    neck_norm: Literal["none", "batch"] = Field(default="none", description="Norm after the pyramid's convolutions.")
    norm_eps: NonNegative | None = Field(default=None, description="Added to variances. None: the network's own.")
    stride_in: Literal["3x3", "1x1"] = Field(
        default="3x3", description="Which convolution of a bottleneck has the stride; 1x1: Caffe."
    )
    widths: tuple[Width, Width, Width] | None = Field(
        default=None, description="ResNet's stem, first inner convolutions, first stage. None: the standard ones."
    )
    norm: Literal["frozen", "affine", "train"] = Field(
        default="frozen", description="Batch norms: constants; affine: all but their statistics trained; train: all."
    )
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = Field(
        default=2, description="First stages that are not trained."
    )

    @field_validator("backbone")
    @classmethod
    def _a_name_only(cls, name: str) -> str:
        if name.startswith("timm/") and not re.fullmatch(r"timm/[\w.-]+", name):
            raise ValueError(
                "after timm/ comes the name of one of timm's own networks, such as timm/resnet18.a1_in1k: letters, "
                "digits, `_`, `.` and `-`; no address or path is opened"
            )
        return name


class Anchors(Section):
    """Reference boxes. The rules of py-faster-rcnn, torchvision and detectron2 are presets of these settings."""

    sizes: Annotated[tuple[Sides, ...], Field(max_length=32)] = Field(
        default=((32,), (64,), (128,), (256,)), description="Square roots of areas, pixels; one tuple per level."
    )
    ratios: Sides = Field(default=(0.5, 1.0, 2.0), description="Aspect ratios, see `ratio`.")
    ratio: Literal["h/w", "w/h"] = Field(default="h/w", description="What a ratio divides.")
    offset: Fraction = Field(default=0.5, description="Centre of the first anchor, in strides.")
    round: Literal["none", "half", "base"] = Field(
        default="none",
        description="none: areas are exact; half: half of each side is rounded, halves to even; base: width and height "
        "are rounded at `base`, then scaled.",
    )
    base: Pixels = Field(default=16, description="Side of the box that `round=base` rounds at, pixels.")
    order: Literal["size", "ratio"] = Field(default="size", description="Outermost index in the order within a cell.")
    stride: Literal["declared", "image//grid"] = Field(
        default="declared", description="Stride of a level, or guessed from the padded image."
    )
    border: NonNegative | None = Field(
        default=None, description="Anchors further outside the image are not trained, pixels. None: all are."
    )
    fit: Literal["off", "auto"] = Field(
        default="off",
        description="auto: a training takes `sizes` and `ratios` fitted to its boxes where that raises recall at IoU "
        "0.5 by 0.05 or more, unless it starts from a detector.",
    )

    @field_validator("fit", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # which YAML reads it as


Window = Literal[1, 3, 5, 7]
MOST_WINDOWS = 16
LossKind = Literal["smooth_l1", "l1", "iou", "giou", "diou", "ciou"]


class RPN(Section):
    """Region proposal network: head, label rules, sampling, loss, proposals."""

    convs: Depth = Field(default=1, description="Hidden convolutions of the head.")
    channels: Width | None = Field(default=None, description="Channels of these. None: those of their input.")
    kernel: Window | Annotated[tuple[Window, ...], Field(min_length=2, max_length=MOST_WINDOWS)] = Field(
        default=3,
        description="Side of the sliding window, cells. A list makes a pyramid of filters: with [3,5,7] a window of 3 "
        "predicts the first third of each level's sizes, 5 the next, 7 the last, each with layers of its own.",
    )
    classify: Literal["objects", "classes"] = Field(
        default="objects",
        description="What the head tells apart: object or not; classes: a one-stage detector, which needs "
        "roi.head=none.",
    )
    loss: Literal["cross-entropy", "focal"] = Field(
        default="cross-entropy",
        description="classify=classes: softmax over classes and background on the sampled anchors; focal: a sigmoid "
        "per class on all anchors that are not ignored, and both losses are divided by the positives.",
    )
    focal_gamma: NonNegative = Field(default=2.0, description="focal: the larger, the less an easy anchor counts.")
    focal_alpha: Fraction = Field(default=0.25, description="focal: weight of an anchor's own class; 1 - this: others.")
    logits: Literal[1, 2] = Field(default=1, description="classify=objects: 1 sigmoid, or 2 with a softmax.")
    score_order: Literal["background-first", "object-first"] = Field(
        default="background-first", description="Meaning of the two logits."
    )
    positive_iou: Fraction = Field(default=0.7, description="An anchor of at least this IoU is positive.")
    negative_iou: Fraction = Field(default=0.3, description="An anchor under this IoU with every object is negative.")
    force_match: bool = Field(default=True, description="Each object's best anchors are positive, whatever their IoU.")
    samples: Boxes = Field(default=256, description="Anchors that are trained, per image.")
    positive_fraction: Fraction = Field(default=0.5, description="Largest share of positives among them.")
    negatives: Literal["random", "overlap", "texture", "hard"] = Field(
        default="random",
        description="Which negatives go first: any; those that touch an object; those whose features vary; those with "
        "the highest loss. If there are too few, random ones are added.",
    )
    negatives_iou: Fraction = Field(default=0.1, description="overlap: those of at least this IoU go first.")
    negatives_smooth: Fraction = Field(default=0.5, description="texture: this share, the smoothest, goes last.")
    negatives_nms: Fraction = Field(
        default=0.7, description="hard: IoU with a harder negative above which one goes last."
    )
    ignore: Literal["keep", "drop"] = Field(
        default="keep", description="Crowd and difficult objects: mask their anchors, or forget them."
    )
    normaliser: Literal["paper", "sampled-cells", "per-image", "sampled", "requested", "mean"] = Field(
        default="sampled", description="Divisors of the two losses; see the end of docs/settings.md."
    )
    positive_weight: Fraction | None = Field(
        default=None, description="per-image: weight of an image's boxes together. None: 1 / samples each."
    )
    box_loss: LossKind = Field(default="smooth_l1", description="Loss of the boxes.")
    beta: NonNegative = Field(default=1 / 9, description="Where smooth L1 turns linear; 1 / sigma squared. 0: L1.")
    lambda_: NonNegative = Field(default=1.0, alias="lambda", description="Weight of the box loss.")
    pre_train: Candidates = Field(default=1000, description="Boxes per level before NMS, in training.")
    post_train: Boxes = Field(default=500, description="Proposals per image, in training.")
    pre_test: Candidates = Field(default=1000, description="Boxes per level before NMS, in prediction.")
    post_test: Boxes = Field(default=300, description="Proposals per image, in prediction.")
    nms: Fraction = Field(default=0.7, description="IoU above which the lower-scored box is dropped.")
    score: Fraction = Field(default=0.0, description="Proposals with a lower objectness probability are dropped.")
    min_size: NonNegative = Field(default=1e-3, description="Least side of a proposal, pixels of the resized image.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Sides of all sliding windows."""
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)

    @field_validator("kernel", mode="before")
    @classmethod
    def _one_window_or_several(cls, value: object) -> object:
        several = isinstance(value, list | tuple)
        sides = tuple(value) if several else (value,)
        fits = all(type(side) is int and side in get_args(Window) for side in sides)
        if not fits or not 1 + several <= len(sides) <= MOST_WINDOWS:
            raise ValueError(f"1, 3, 5 or 7, or a list of 2 to {MOST_WINDOWS} of these")
        return value

    def see_sizes(self, anchors: Anchors) -> None:
        """Check that the sizes of every level can be divided among the sliding windows.

        Raises:
            SettingsError: they can't.
        """
        windows = len(self.kernels)
        if any(len(sizes) % windows for sizes in anchors.sizes):
            raise SettingsError(
                f"rpn.kernel={list(self.kernels)} divides the sizes of each level among {windows} windows, but "
                f"anchors.sizes is {anchors.sizes}; give every level {windows} sizes or a multiple of that, or set "
                "rpn.kernel to one window, such as 3"
            )


class RoI(Section):
    """Second stage: RoI features, head, sampling, loss, final boxes."""

    pool: Literal["align", "warp", "max"] = Field(
        default="align", description="RoI align, RoI warp (the largest of its samples), or RoI max pooling."
    )
    size: Cells = Field(default=7, description="Cells per side of a RoI's features.")
    sampling_ratio: Annotated[int, Field(ge=0, le=16)] = Field(
        default=2, description="Samples per cell side; 0: adaptive."
    )
    aligned: bool = Field(default=True, description="Shift by half a pixel, so that samples align with pixel centres.")
    levels: Levels = Field(default=(3, 4, 5), description="Pyramid levels that RoIs are read from.")
    canonical_size: Positive = Field(default=224.0, description="Side of a box read from `canonical_level`, pixels.")
    canonical_level: Annotated[int, Field(ge=-16, le=16)] = Field(
        default=4, description="Pyramid level of a box of canonical size."
    )
    head: Literal["fc", "conv-fc", "conv5", "none"] = Field(
        default="fc",
        description="fc: two fully connected layers (fc6 and fc7 of VGG and ZF too); conv-fc: convolutions, one such; "
        "conv5: a ResNet's fifth stage; none: no second stage, proposals alone (but see rpn.classify).",
    )
    convs: Depth = Field(default=4, description="3x3 convolutions of conv-fc, as wide as `model.channels`.")
    head_norm: Literal["none", "batch"] = Field(default="none", description="Norm after the head's convolutions.")
    hidden: Width = Field(default=256, description="Width of the fully connected layers.")
    dropout: Fraction = Field(default=0.0, description="Share of hidden units dropped in training.")
    dropout_scale: Literal["training", "prediction"] = Field(
        default="training",
        description="When dropout scales: kept units up in training, or all units down in prediction.",
    )
    samples: Boxes = Field(default=128, description="RoIs that are trained, per image.")
    sampler: Literal["random", "ohem"] = Field(
        default="random", description="A random draw, or the RoIs with the highest loss (OHEM)."
    )
    sampler_nms: Fraction = Field(
        default=0.7, description="ohem: IoU with a harder RoI of its class above which one is dropped."
    )
    positive_fraction: Fraction = Field(default=0.25, description="Largest share of positives among them.")
    positive_iou: Fraction = Field(default=0.5, description="A RoI of at least this IoU is positive.")
    negative_iou: tuple[Fraction, Fraction] = Field(
        default=(0.0, 0.5), description="A RoI with its best IoU in [low, high) is negative."
    )
    ignore: Literal["keep", "drop"] = Field(
        default="keep", description="Crowd and difficult objects: mask their RoIs, or forget them."
    )
    class_agnostic: bool = Field(default=False, description="One box per RoI instead of one per class.")
    box_mean: tuple[Number, Number, Number, Number] = Field(
        default=(0.0, 0.0, 0.0, 0.0), description="Subtracted from the deltas (tx, ty, tw, th) before the division."
    )
    box_std: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(0.1, 0.1, 0.2, 0.2), description="Deltas are divided by these."
    )
    box_loss: LossKind = Field(default="smooth_l1", description="Loss of the boxes.")
    beta: NonNegative = Field(default=1 / 9, description="Where smooth L1 turns linear. 0: L1.")
    box_weight: NonNegative = Field(default=1.0, description="Weight of the box loss.")
    score: Fraction = Field(default=0.05, description="Lower-scored boxes are dropped before NMS.")
    min_size: NonNegative = Field(default=0.0, description="Boxes with a smaller side are dropped before NMS, pixels.")
    nms: Fraction = Field(default=0.5, description="IoU above which the lower-scored box of a class is dropped.")
    detections: Boxes = Field(default=100, description="Largest number of boxes per image.")

    @model_validator(mode="after")
    def _mining_starts_at_zero(self) -> Self:
        if self.sampler == "ohem" and self.negative_iou[0] > 0:
            raise ValueError(
                f"sampler=ohem finds the hard negatives itself, so negative_iou starts at 0 (got {self.negative_iou})"
            )
        return self
