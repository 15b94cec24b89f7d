"""One tree of typed settings: read from YAML, changed by `section.key=value`, written to `config.yaml`.

Every section is frozen; a change is a new, validated tree (`override`). An unknown key is an error that names the
nearest known one.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Span = tuple[Positive, Positive]


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of range. The message has one line a fault."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, tuples instead of lists."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """What is read, and what happens to faulty images."""

    path: str | None = Field(
        default=None, description="Folder, COCO json or data.yaml. None: given on the command line."
    )
    on_fault: Literal["stop", "skip"] = Field(
        default="stop", description="A fatal fault stops, or leaves its image out."
    )
    holdout: Fraction = Field(
        default=0.1, description="Share of the images held out where the data has no validation list."
    )
    voc_origin: Literal["auto", 0, 1] = Field(
        default="auto", description="First pixel of VOC boxes; auto: 1 unless a 0 occurs."
    )
    white: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="White of 16-bit images. None: 65535."
    )
    max_pixels: Count = Field(default=178_956_970, description="Larger images are refused, pixels.")
    workers: Annotated[int, Field(ge=0, le=64)] = Field(default=0, description="Loader processes beside the main one.")


class Preprocess(Section):
    """From a file's pixels to the network's input."""

    short: Count = Field(default=448, description="Shorter side after resizing, pixels.")
    long: Count = Field(default=768, description="Longer side at most, pixels; wins over `short`.")
    multiple: Count = Field(default=32, description="Resized sides are padded up to a multiple of this, pixels.")
    resize: Literal["pillow", "interpolate"] = Field(
        default="pillow", description="Bilinear with or without antialiasing."
    )
    in_channels: Literal[1, 3] | Count = Field(
        default=3, description="Channels of an image: 1 grey, 3 colour, n as in arrays."
    )
    order: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of colour channels at the network's door.")
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="Subtracted from pixels in 0..1.")
    std: tuple[Positive, ...] = Field(default=(0.229, 0.224, 0.225), description="Divides what is left.")

    @model_validator(mode="after")
    def _one_mean_a_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.in_channels):
                found, wanted = len(getattr(self, name)), self.in_channels
                raise ValueError(f"{name} has {found} numbers for {wanted} channels; give 1 or {wanted}")
        return self


class Model(Section):
    """The backbone and its neck."""

    preset: str = Field(default="mobilenet-fpn", description="Name of the preset that these settings started from.")
    backbone: str = Field(
        default="mobilenet", description="mobilenet, tiny, resnet18|34|50|101, vgg16, zf or timm/NAME."
    )
    neck: Literal["fpn", "none"] = Field(
        default="fpn", description="Feature pyramid, or the backbone's last level alone."
    )
    channels: Count = Field(default=96, description="Channels of every pyramid level.")
    levels: tuple[int, ...] = Field(default=(3, 4, 5, 6), description="Pyramid levels; level n has stride 2^n.")
    norm: Literal["frozen", "train"] = Field(
        default="frozen", description="Batch norm of the backbone: constants, or trained."
    )
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = Field(
        default=2, description="First stages that are not trained."
    )


class Anchors(Section):
    """Reference boxes. The rules of py-faster-rcnn, torchvision and detectron2 are presets of these settings."""

    sizes: tuple[tuple[Positive, ...], ...] = Field(
        default=((32,), (64,), (128,), (256,)), description="Square roots of areas, pixels; one tuple a level."
    )
    ratios: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), description="Aspect ratios, see `ratio`.")
    ratio: Literal["h/w", "w/h"] = Field(default="h/w", description="What a ratio divides.")
    offset: Fraction = Field(default=0.5, description="Centre of the first anchor, in strides.")
    round: Literal["none", "half", "base"] = Field(
        default="none", description="Rounding: none; half extents to even; width and height at `base`, then scaled."
    )
    base: Count = Field(default=16, description="Side of the box that `round=base` rounds at, pixels.")
    order: Literal["size", "ratio"] = Field(default="size", description="What is outermost in the order within a cell.")
    stride: Literal["declared", "image//grid"] = Field(
        default="declared", description="Stride of a level, or guessed from the padded image."
    )
    border: NonNegative | None = Field(
        default=None, description="Anchors further outside the image are not trained, pixels. None: all are."
    )


LossKind = Literal["smooth_l1", "l1", "iou", "giou", "diou", "ciou"]


class RPN(Section):
    """Region proposal network: head, label rules, sampling, loss, proposals."""

    channels: Count | None = Field(
        default=None, description="Channels of the hidden convolution. None: those of its input."
    )
    kernel: Literal[1, 3, 5, 7] = Field(default=3, description="Side of the sliding window, cells.")
    logits: Literal[1, 2] = Field(default=1, description="1: sigmoid; 2: softmax over background and object.")
    score_order: Literal["background-first", "object-first"] = Field(
        default="background-first", description="Meaning of the two logits."
    )
    positive_iou: Fraction = Field(default=0.7, description="An anchor of at least this IoU is positive.")
    negative_iou: Fraction = Field(default=0.3, description="An anchor under this IoU with every object is negative.")
    force_match: bool = Field(
        default=True, description="The best anchors of each object are positive, whatever their IoU."
    )
    samples: Count = Field(default=256, description="Anchors that are trained, an image.")
    positive_fraction: Fraction = Field(default=0.5, description="Positives among them at most.")
    ignore: Literal["keep", "drop"] = Field(
        default="keep", description="Crowd and difficult objects: mask their anchors, or forget them."
    )
    normaliser: Literal["paper", "matlab", "py-faster-rcnn", "torchvision", "detectron2", "mean"] = Field(
        default="torchvision", description="What divides the two losses; see the end of docs/settings.md."
    )
    box_loss: LossKind = Field(default="smooth_l1", description="Loss of the boxes.")
    beta: NonNegative = Field(default=1 / 9, description="Where smooth L1 turns linear; 1 / sigma squared. 0: L1.")
    lambda_: NonNegative = Field(default=1.0, alias="lambda", description="Weight of the box loss.")
    pre_train: Count = Field(default=1000, description="Boxes a level before NMS, in training.")
    post_train: Count = Field(default=500, description="Proposals, in training.")
    pre_test: Count = Field(default=1000, description="Boxes a level before NMS, in prediction.")
    post_test: Count = Field(default=300, description="Proposals, in prediction.")
    nms: Fraction = Field(default=0.7, description="IoU above which the lower-scored box goes.")
    min_size: NonNegative = Field(
        default=1e-3, description="Smaller proposals are dropped, pixels of the resized image."
    )

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RoI(Section):
    """Second stage: RoI features, head, sampling, loss, final boxes."""

    pool: Literal["align", "max"] = Field(default="align", description="RoI align or RoI max pooling.")
    size: Count = Field(default=7, description="Cells a side of a RoI's features.")
    sampling_ratio: Annotated[int, Field(ge=0)] = Field(default=2, description="Samples a cell and side; 0: adaptive.")
    aligned: bool = Field(default=True, description="Shift by half a pixel, as pixel centres demand.")
    levels: tuple[int, ...] = Field(default=(3, 4, 5), description="Pyramid levels that RoIs are read from.")
    canonical_size: Positive = Field(
        default=224.0, description="A box of this side is read from `canonical_level`, pixels."
    )
    canonical_level: int = Field(default=4, description="Pyramid level of a box of canonical size.")
    head: Literal["fc", "conv5"] = Field(
        default="fc",
        description="Two fully connected layers (fc6 and fc7 of VGG and ZF too), or a ResNet's fifth stage.",
    )
    hidden: Count = Field(default=256, description="Width of the fully connected layers.")
    dropout: Fraction = Field(default=0.0, description="Share of hidden units dropped in training.")
    samples: Count = Field(default=128, description="RoIs that are trained, an image.")
    positive_fraction: Fraction = Field(default=0.25, description="Positives among them at most.")
    positive_iou: Fraction = Field(default=0.5, description="A RoI of at least this IoU is positive.")
    negative_iou: tuple[Fraction, Fraction] = Field(
        default=(0.0, 0.5), description="A RoI with its best IoU in [low, high) is negative."
    )
    ignore: Literal["keep", "drop"] = Field(
        default="keep", description="Crowd and difficult objects: mask their RoIs, or forget them."
    )
    class_agnostic: bool = Field(default=False, description="One box a RoI instead of one a class.")
    box_std: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(0.1, 0.1, 0.2, 0.2), description="Deltas are divided by these."
    )
    box_loss: LossKind = Field(default="smooth_l1", description="Loss of the boxes.")
    beta: NonNegative = Field(default=1 / 9, description="Where smooth L1 turns linear. 0: L1.")
    box_weight: NonNegative = Field(default=1.0, description="Weight of the box loss.")
    score: Fraction = Field(default=0.05, description="Lower-scored boxes are dropped before NMS.")
    nms: Fraction = Field(default=0.5, description="IoU above which the lower-scored box of a class goes.")
    detections: Count = Field(default=100, description="Boxes an image at most.")


class Augment(Section):
    """Random changes of training images, boxes in step."""

    flip: Fraction = Field(default=0.5, description="Probability of a horizontal flip.")
    vertical_flip: Fraction = Field(default=0.0, description="Probability of a vertical flip.")
    scale: Span = Field(default=(0.8, 1.25), description="Range of the scale factor; above 1 the image is cropped.")
    crop: Fraction = Field(
        default=0.0, description="Probability of a random crop that keeps at least one object's centre."
    )
    brightness: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    contrast: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    saturation: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.02, description="Turn of the colour circle drawn from -+ this."
    )


class Train(Section):
    """Optimisation, and what is kept."""

    scheme: Literal["joint"] = Field(default="joint", description="Approximate joint training.")
    init: str = Field(default="imagenet", description="imagenet, none, or a file of weights.")
    epochs: Count = Field(default=30, description="Passes over the training images.")
    batch: Count = Field(default=4, description="Images a step, all processes together.")
    accumulate: Count = Field(default=1, description="Batches whose gradients are added before a step.")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="The optimiser.")
    lr: Positive = Field(default=2e-3, description="Learning rate at `lr_batch` images a step.")
    lr_batch: Count = Field(default=16, description="The learning rate is scaled by batch * accumulate / this.")
    momentum: Fraction = Field(default=0.9, description="SGD's momentum, AdamW's first beta.")
    weight_decay: NonNegative = Field(default=0.01, description="Not applied to biases and norms.")
    schedule: Literal["cosine", "step", "constant"] = Field(
        default="cosine", description="Course of the learning rate."
    )
    milestones: tuple[Fraction, ...] = Field(
        default=(0.67, 0.89), description="Shares of all steps at which `step` divides it by 10."
    )
    warmup: NonNegative = Field(default=1.0, description="Linear warm-up, epochs (at most a fifth of all steps).")
    clip: NonNegative | None = Field(default=10.0, description="Largest norm of the gradient. None: unclipped.")
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=0.998, description="Decay of the averaged weights a step. None: off."
    )
    amp: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="Precision of the convolutions; auto: bf16 where the hardware has it."
    )
    patience: Count | None = Field(default=None, description="Epochs without a better AP before stopping. None: off.")
    checkpoint_minutes: Positive = Field(default=10.0, description="Time between checkpoints within an epoch, minutes.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Seed of everything random.")
    device: str = Field(default="auto", description="auto: CUDA if there, else CPU.")


class Val(Section):
    """Validation during training and by `rcnn val`."""

    every: Count = Field(default=1, description="Epochs between validations.")
    batch: Count = Field(default=8, description="Images a batch.")


class Predict(Section):
    """How results are cut and shown."""

    score: Fraction | None = Field(
        default=None, description="Lower-scored boxes are left out. None: stored with the weights."
    )


class Settings(Section):
    """All settings of a run."""

    data: Data = Data()
    preprocess: Preprocess = Preprocess()
    model: Model = Model()
    anchors: Anchors = Anchors()
    rpn: RPN = RPN()
    roi: RoI = RoI()
    augment: Augment = Augment()
    train: Train = Train()
    val: Val = Val()
    predict: Predict = Predict()

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.model.levels) if self.model.neck == "fpn" else 1
        if len(self.anchors.sizes) != levels:
            raise ValueError(
                f"anchors.sizes has {len(self.anchors.sizes)} levels {self.anchors.sizes}, "
                f"but model.levels has {levels} {self.model.levels}; give one tuple of sizes a level"
            )
        return self


def keys(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every `section.key` of the tree, in the order of declaration."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + (field.alias or name)


def validate(tree: Mapping[str, Any]) -> Settings:
    """Settings of a plain tree of dictionaries.

    Raises:
        SettingsError: one line a fault, with the nearest known key where a key is unknown.
    """
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(entry) for entry in error.errors())) from None


def _fault(entry: Any) -> str:
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        near = get_close_matches(where, [*keys(), *Settings.model_fields], n=1, cutoff=0.5)
        return f"unknown setting `{where}`" + (f"; did you mean `{near[0]}`?" if near else "")
    reason = entry["msg"].removeprefix("Value error, ")
    return f"`{where}`: {reason} (got {entry['input']!r})" if where else reason


def dump(settings: Settings) -> dict[str, Any]:
    """A plain tree (lists, strings, numbers) that `validate` reads back to the same settings."""
    return settings.model_dump(mode="json", by_alias=True)


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with `changes` laid over it, dictionaries merged, everything else replaced."""
    merged = dict(tree)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as a tree; the value is read as YAML, and `1e-3` as the number that it is.

    Raises:
        SettingsError: no `=`, no `.`, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise SettingsError(f"`{text}` is not of the form section.key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"`{text}`: the value is not YAML ({str(error).splitlines()[0]})") from None
    if value.strip()[:1] not in ("'", '"'):  # whoever quotes a number wants text
        parsed = _number(parsed)
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text: mend numbers, also inside lists."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def override(settings: Settings, changes: Sequence[str] | Mapping[str, Any]) -> Settings:
    """Settings with `section.key=value` texts, or a tree, laid over them and validated again."""
    trees = [changes] if isinstance(changes, Mapping) else [parse_override(text) for text in changes]
    tree = dump(settings)
    for change in trees:
        tree = merge(tree, change)
    return validate(tree)


def read(path: Path) -> Settings:
    """Settings of a `config.yaml`.

    Raises:
        SettingsError: the file is missing, is not YAML or holds a wrong setting.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: can't be read as settings: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected sections such as `train:`, found {type(tree).__name__}")
    return validate(tree)


def to_yaml(settings: Settings) -> str:
    """The text of a `config.yaml` that `read` turns into the same settings."""
    return yaml.safe_dump(dump(settings), sort_keys=False, default_flow_style=None, width=120)
