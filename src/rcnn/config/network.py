"""Settings of the network (backbone, anchors, both stages), and the base class of all sections."""

import re
from itertools import pairwise
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rcnn.errors import SettingsError

Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
MAX_COUNT = 100_000
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Boxes = Annotated[int, Field(ge=1, le=10_000)]
Candidates = Annotated[int, Field(ge=1, le=4_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Cells = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Depth = Annotated[int, Field(ge=1, le=32)]
MAX_STAGES = 5
Levels = Annotated[tuple[Annotated[int, Field(ge=0, le=12)], ...], Field(max_length=32)]
Sides = Annotated[tuple[Positive, ...], Field(max_length=64)]
"""All values have bounds, far above useful ones, because settings also come from untrusted files."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, tuples instead of lists. Docstrings describe the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Model(Section):
    """The backbone and its neck."""

    preset: str = "mobilenet-fpn"
    """Name of the preset that these settings started from."""
    backbone: str = "mobilenet"
    """mobilenet, mobilenet_v3_large, tiny, resnet18|34|50|101|152, resnext50_32x4d, resnext101_32x8d, vgg16, zf,
    timm/NAME, or custom: a module passed from Python."""
    neck: Literal["fpn", "none"] = "fpn"
    """Feature pyramid, or the backbone's last level."""
    channels: Width = 96
    """Channels of every pyramid level."""
    levels: Levels = (3, 4, 5, 6)
    """Pyramid levels; level n has stride 2^n."""
    neck_norm: Literal["none", "batch"] = "none"
    """Norm after the pyramid's convolutions."""
    norm_eps: NonNegative | None = None
    """Constant added to variances. None: the backbone's own."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution of a bottleneck that has the stride; 1x1: as in Caffe."""
    widths: tuple[Width, Width, Width] | None = None
    """Channels of a ResNet's stem, of its first inner convolutions, and of its first stage. None: the standard ones."""
    norm: Literal["frozen", "affine", "train"] = "frozen"
    """Batch norms; frozen: constants; affine: scale and shift are trained, statistics are not; train: all are
    trained."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """Number of stages that are not trained, counted from the first."""

    @field_validator("backbone")
    @classmethod
    def _a_name_only(cls, name: str) -> str:
        if name.startswith("timm/") and not re.fullmatch(r"timm/[\w.-]+", name):
            raise ValueError(
                "timm/ must be followed by the name of one of timm's own networks, such as timm/resnet18.a1_in1k: "
                "letters, digits, `_`, `.` and `-`; addresses and paths are not opened"
            )
        return name


class Anchors(Section):
    """Reference boxes. Values of these settings reproduce the rules of py-faster-rcnn, torchvision and detectron2."""

    sizes: Annotated[tuple[Sides, ...], Field(max_length=32)] = ((32,), (64,), (128,), (256,))
    """Square roots of the areas, pixels; one tuple per level."""
    ratios: Sides = (0.5, 1.0, 2.0)
    """Aspect ratios, see `ratio`."""
    ratio: Literal["h/w", "w/h"] = "h/w"
    """Meaning of a ratio: height over width or width over height."""
    offset: Fraction = 0.5
    """Centre of the first anchor, in strides."""
    round: Literal["none", "half", "base"] = "none"
    """none: areas are exact; half: half of each side is rounded, halves to even; base: width and height are rounded at
    the size `base`, then scaled."""
    base: Pixels = 16
    """Side of the box at which `round=base` rounds, pixels."""
    order: Literal["size", "ratio"] = "size"
    """Outer index in the order of the anchors of a cell."""
    stride: Literal["declared", "image//grid"] = "declared"
    """Stride of a level: as declared, or computed from the padded image and the grid."""
    border: NonNegative | None = None
    """Anchors that reach further than this outside the image are not trained, pixels. None: all are trained."""
    fit: Literal["off", "auto"] = "off"
    """auto: fit `sizes` and `ratios` to the training boxes if that raises recall at IoU 0.5 by 0.05 or more, unless
    training starts from a detector."""

    @field_validator("fit", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads `off` as False


Window = Literal[1, 3, 5, 7]
MAX_WINDOWS = 16
LossKind = Literal["smooth_l1", "l1", "iou", "giou", "diou", "ciou"]


class RPN(Section):
    """Region proposal network: head, label rules, sampling, loss, proposals."""

    convs: Depth = 1
    """Number of hidden convolutions of the head."""
    channels: Width | None = None
    """Channels of the hidden convolutions. None: as many as their input."""
    kernel: Window | Annotated[tuple[Window, ...], Field(min_length=2, max_length=MAX_WINDOWS)] = 3
    """Side of the sliding window, cells. A list makes a pyramid of filters: with [3,5,7] a window of 3 predicts the
    first third of each level's sizes, 5 the next, 7 the last, each with its own layers."""
    classify: Literal["objects", "classes"] = "objects"
    """Output of the head; objects: object or background; classes: the class, for a one-stage detector, which needs
    roi.head=none."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """classify=classes: softmax over classes and background on the sampled anchors; focal: a sigmoid per class on all
    anchors that are not ignored, with both losses divided by the number of positives."""
    focal_gamma: NonNegative = 2.0
    """focal: larger values give easy anchors less weight."""
    focal_alpha: Fraction = 0.25
    """focal: weight of an anchor's own class; the other classes have 1 - this."""
    logits: Literal[1, 2] = 1
    """classify=objects: 1 with a sigmoid, or 2 with a softmax."""
    score_order: Literal["background-first", "object-first"] = "background-first"
    """Order of the two logits."""
    positive_iou: Fraction = 0.7
    """Anchors with at least this IoU with an object are positive."""
    negative_iou: Fraction = 0.3
    """Anchors with less than this IoU with every object are negative."""
    force_match: bool = True
    """Make the best anchors of each object positive, whatever their IoU."""
    samples: Boxes = 256
    """Sampled anchors per image."""
    positive_fraction: Fraction = 0.5
    """Maximum share of positives among the samples."""
    negatives: Literal["random", "overlap", "texture", "hard"] = "random"
    """Negatives sampled first; random: any; overlap: those that touch an object; texture: those with varying features;
    hard: those with the highest loss. If there are too few, random ones are added."""
    negatives_iou: Fraction = 0.1
    """overlap: negatives with at least this IoU are sampled first."""
    negatives_smooth: Fraction = 0.5
    """texture: this share of the negatives, the smoothest, is sampled last."""
    negatives_nms: Fraction = 0.7
    """hard: a negative with a higher IoU than this with a harder one is sampled last."""
    ignore: Literal["keep", "drop"] = "keep"
    """Crowd and difficult objects; keep: their anchors are not sampled; drop: they are treated as background."""
    normaliser: Literal["paper", "sampled-cells", "per-image", "sampled", "requested", "mean"] = "sampled"
    """Divisors of the two losses; see the end of docs/settings.md."""
    positive_weight: Fraction | None = None
    """per-image: total weight of the boxes of an image. None: 1 / samples for each."""
    box_loss: LossKind = "smooth_l1"
    """Loss of the boxes."""
    beta: NonNegative = 1 / 9
    """Absolute error at which smooth L1 becomes linear; 1 / sigma squared. 0: L1."""
    lambda_: NonNegative = Field(default=1.0, alias="lambda")
    """Weight of the box loss."""
    pre_train: Candidates = 1000
    """Boxes per level before NMS in training."""
    post_train: Boxes = 500
    """Proposals per image in training."""
    pre_test: Candidates = 1000
    """Boxes per level before NMS in prediction."""
    post_test: Boxes = 300
    """Proposals per image in prediction."""
    nms: Fraction = 0.7
    """If two boxes have a higher IoU than this, the lower-scored one is dropped."""
    score: Fraction = 0.0
    """Proposals with a lower objectness probability are dropped."""
    min_size: NonNegative = 1e-3
    """Minimum side of a proposal, pixels of the resized image."""

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
        if not fits or not 1 + several <= len(sides) <= MAX_WINDOWS:
            raise ValueError(f"1, 3, 5 or 7, or a list of 2 to {MAX_WINDOWS} of these")
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

    pool: Literal["align", "warp", "max"] = "align"
    """RoI align, RoI warp (the maximum of its samples), or RoI max pooling."""
    size: Cells = 7
    """Cells per side of the pooled features."""
    sampling_ratio: Annotated[int, Field(ge=0, le=16)] = 2
    """Samples per side of a cell; 0: adaptive."""
    aligned: bool = True
    """Shift by half a pixel, so that samples align with the centres of pixels."""
    levels: Levels = (3, 4, 5)
    """Pyramid levels from which RoIs are pooled."""
    canonical_size: Positive = 224.0
    """Side of a box that is pooled from `canonical_level`, pixels."""
    canonical_level: Annotated[int, Field(ge=-16, le=16)] = 4
    """Pyramid level of a box of side `canonical_size`."""
    head: Literal["fc", "conv-fc", "conv5", "none"] = "fc"
    """fc: two fully connected layers (fc6 and fc7 of VGG and ZF too); conv-fc: convolutions and one such layer; conv5:
    a ResNet's fifth stage; none: no second stage, proposals alone (but see rpn.classify)."""
    convs: Depth = 4
    """Number of 3x3 convolutions of conv-fc, with `model.channels` channels."""
    head_norm: Literal["none", "batch"] = "none"
    """Norm after the convolutions of the head."""
    hidden: Width = 256
    """Width of the fully connected layers."""
    dropout: Fraction = 0.0
    """Share of hidden units that are dropped in training."""
    dropout_scale: Literal["training", "prediction"] = "training"
    """When dropout rescales; training: the units that remain, up; prediction: all units, down."""
    samples: Boxes = 128
    """Sampled RoIs per image."""
    sampler: Literal["random", "ohem"] = "random"
    """Sample at random, or take the RoIs with the highest loss (OHEM)."""
    sampler_nms: Fraction = 0.7
    """ohem: a RoI with a higher IoU than this with a harder one of its class is dropped."""
    positive_fraction: Fraction = 0.25
    """Maximum share of positives among the samples."""
    positive_iou: Fraction = 0.5
    """RoIs with at least this IoU are positive."""
    negative_iou: tuple[Fraction, Fraction] = (0.0, 0.5)
    """RoIs whose best IoU is in [low, high) are negative."""
    ignore: Literal["keep", "drop"] = "keep"
    """Crowd and difficult objects; keep: their RoIs are not sampled; drop: they are treated as background."""
    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)] = 1
    """Number of heads, each of which refines the boxes of the previous one; 3: Cascade R-CNN. For fc and conv-fc."""
    stage_iou: Annotated[tuple[Fraction, ...], Field(max_length=MAX_STAGES)] | None = None
    """`positive_iou` of each head. None: it rises by 0.1 from head to head."""
    class_agnostic: bool = False
    """Predict one box per RoI instead of one per class; always so with several stages."""
    box_mean: tuple[Number, Number, Number, Number] = (0.0, 0.0, 0.0, 0.0)
    """Subtracted from the deltas (tx, ty, tw, th) before the division by `box_std`."""
    box_std: tuple[Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2)
    """Divisors of the deltas."""
    box_loss: LossKind = "smooth_l1"
    """Loss of the boxes."""
    beta: NonNegative = 1 / 9
    """Absolute error at which smooth L1 becomes linear. 0: L1."""
    box_weight: NonNegative = 1.0
    """Weight of the box loss."""
    score: Fraction = 0.05
    """Boxes with a lower score are dropped before NMS."""
    min_size: NonNegative = 0.0
    """Boxes with a smaller side are dropped before NMS, pixels."""
    nms: Fraction = 0.5
    """If two boxes of a class have a higher IoU than this, the lower-scored one is dropped."""
    detections: Boxes = 100
    """Maximum number of boxes per image."""

    @property
    def cascade(self) -> tuple["RoI", ...]:
        """Settings of each head: this section itself, or with several stages those of Cascade R-CNN.

        The `positive_iou` of a stage also separates its negatives, and `box_std` is divided by the number of the stage,
        because the boxes are closer to the objects (arXiv 1712.00726).
        """
        if self.stages == 1:
            return (self,)
        low, high = self.negative_iou
        stages = []
        for number, iou in enumerate(self._stage_ious, start=1):
            negative = (low, min(high, iou)) if number == 1 else (0.0, iou)
            std = tuple(value / number for value in self.box_std)
            own = {"class_agnostic": True, "positive_iou": iou, "negative_iou": negative, "box_std": std}
            stages.append(self.model_copy(update=own))
        return tuple(stages)

    @property
    def _stage_ious(self) -> tuple[float, ...]:
        rising = (round(self.positive_iou + 0.1 * number, 6) for number in range(self.stages))
        return tuple(rising) if self.stage_iou is None else self.stage_iou

    @model_validator(mode="after")
    def _stages_rise(self) -> Self:
        if self.stages == 1:
            if self.stage_iou is not None:
                raise ValueError("stage_iou needs several stages: set stages to 2 or more, or leave stage_iou out")
            return self
        ious = self._stage_ious
        if len(ious) != self.stages:
            raise ValueError(f"stage_iou has {len(ious)} values, and there are {self.stages} stages: give one for each")
        if any(after <= before for before, after in pairwise(ious)) or ious[-1] > 1:
            raise ValueError(f"stage_iou must rise from stage to stage, up to 1 at most (got {list(ious)})")
        if self.head not in ("fc", "conv-fc"):
            raise ValueError(f"stages={self.stages} needs head=fc or conv-fc (got {self.head})")
        return self

    @model_validator(mode="after")
    def _mining_starts_at_zero(self) -> Self:
        if self.sampler == "ohem" and self.negative_iou[0] > 0:
            raise ValueError(
                f"sampler=ohem finds the hard negatives itself: negative_iou must start at 0 (got {self.negative_iou})"
            )
        return self
