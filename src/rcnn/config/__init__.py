"""One tree of typed settings: read from YAML, changed by `section.key=value`, written to `config.yaml`.

Every section is frozen; a change is a new, validated tree (`override`). An unknown key is an error that suggests the
nearest known one. The docstring of a setting is its description in docs/settings.md.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from rcnn.config import yaml_tree
from rcnn.config.aliases import ALIASES, IMAGE_SIZE, SUGGESTIONS, scaled
from rcnn.config.files import MB, read_text
from rcnn.config.images import Augment as Augment
from rcnn.config.images import Data as Data
from rcnn.config.images import Preprocess as Preprocess
from rcnn.config.network import MAX_COUNT, RPN, Anchors, Count, Fraction, Model, NonNegative, Positive, RoI, Section
from rcnn.config.network import LossKind as LossKind
from rcnn.errors import SettingsError

MAX_SIDE = 16_384
"""Maximum side of an image at the largest scale, pixels."""
MAX_WEIGHTS = 1_000_000_000
"""Maximum number of weights outside the backbone. The largest preset has an eighth of it."""
MAX_FAULTS, MAX_QUOTED = 20, 80
"""Maximum number of faults in a message, and of characters of a wrong value that it quotes."""
MIN_TILE = 64
"""Minimum side of a window of a large image, pixels."""
Tile = Annotated[int, Field(ge=MIN_TILE, le=MAX_SIDE)]
PerStage = Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000_000)], ...], Field(max_length=16)]
"""One number per stage of a training scheme, or one for all."""


SLIDING_WINDOWS = "sliding-windows"
"""The value of `train.proposals` for the unrefined anchors at every cell."""


class Train(Section):
    """Optimisation and checkpoints."""

    scheme: Literal["joint", "joint-full", "alternating", "fast-rcnn"] = "joint"
    """joint: both stages at once; joint-full: also with the gradient through the coordinates of the proposals;
    alternating: the paper's four stages; fast-rcnn: the second stage on `proposals`."""
    proposals: str | None = None
    """fast-rcnn: proposals of all images: a .json, .npz or .mat file, selective-search, selective-search-quality,
    edge-boxes, or sliding-windows: the unrefined anchors at every cell."""
    target_gradient: bool = False
    """joint-full: also with the gradient through the box targets."""
    init: str = "imagenet"
    """imagenet (torchvision's best ImageNet weights), imagenet-v1 (its first ones), none, blood-cells,
    torchvision/NAME, or a file of weights."""
    tile: Tile | None = None
    """Train on windows of this side, at the scale of the file, instead of whole images. Sets `preprocess.short` and
    `long` to the side, and `predict.tile` to auto."""
    tile_empty: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of windows without objects among the training windows, if there are any."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    """alternating: number of times that its stages are trained. From the second round on they start from the weights of
    the previous round."""
    epochs: Count | Literal["auto"] = 30
    """Passes over the training images in each stage of the scheme; auto: derived from the number of images when the
    run starts. Not used with `steps`."""
    steps: PerStage = ()
    """Steps instead of `epochs`: one number for all stages of the scheme, or one for each. Empty: `epochs` count."""
    batch: Count = 4
    """Images per step, over all processes."""
    batches: PerStage = ()
    """Images per step of each stage of the scheme, instead of `batch`. The learning rate of every stage is then `lr`,
    whatever its batch."""
    accumulate: Count = 1
    """Batches per step, whose gradients are averaged."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The optimiser."""
    lr: Positive = 2e-3
    """Learning rate at `lr_batch` images per step."""
    lr_batch: Count = 16
    """The learning rate is scaled by batch * accumulate / lr_batch."""
    momentum: Fraction = 0.9
    """SGD's momentum, AdamW's first beta."""
    weight_decay: NonNegative = 0.01
    """Weight decay; of biases and norms only with `bias_decay`."""
    bias_decay: bool = False
    """Apply weight decay to biases and norms as well."""
    bias_lr: Positive = 1.0
    """Factor of the learning rate for biases and norms."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate over time."""
    milestones: Annotated[tuple[Fraction, ...], Field(max_length=100)] = (0.67, 0.89)
    """Shares of all steps at which `schedule=step` divides the learning rate by 10."""
    step_milestones: Annotated[tuple[PerStage, ...], Field(max_length=16)] = ()
    """Steps at which `schedule=step` divides the learning rate by 10, instead of `milestones`: one list for all stages
    of the scheme, or one for each. Needs `steps`."""
    warmup: NonNegative = 1.0
    """Length of the linear warm-up, epochs (at most a fifth of all steps)."""
    clip: NonNegative | None = 10.0
    """Maximum norm of the gradient. None: no clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = 0.998
    """Decay of the averaged weights per step. None: off."""
    amp: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the convolutions; auto: bf16 if the hardware has it."""
    keep: Literal["best", "last"] = "best"
    """Weights that represent the run: those of the best epoch on the validation list, or the last ones. With last,
    nothing in the weights depends on the validation list."""
    patience: Count | None = None
    """Stop after this many epochs without a better AP. None: off."""
    checkpoint_minutes: Positive = 10.0
    """Time between checkpoints within an epoch, minutes."""
    timeout: Annotated[float, Field(ge=1, le=1_000_000)] = 300.0
    """With several processes: seconds of silence after which a process counts as lost, and the longest time that one
    may keep the others waiting in a step."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: CUDA if available, else cpu."""

    @property
    def epoch_count(self) -> int:
        """`epochs` as a number.

        Raises:
            SettingsError: it is auto, and the number of images is not known yet.
        """
        if self.epochs == "auto":
            raise SettingsError("train.epochs=auto is replaced by a number when a training starts: give a number here")
        return self.epochs

    @property
    def length(self) -> str:
        """The length of the stages, as text."""
        return f"{', '.join(f'{number:,}' for number in self.steps)} steps" if self.steps else f"{self.epochs} epochs"

    @field_validator("epochs", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: object) -> object:
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if value == "auto" or (not isinstance(value, bool) and text.isdecimal() and 1 <= int(text[:7]) <= MAX_COUNT):
            return value
        raise ValueError(f"auto, or an integer that is greater than or equal to 1 and at most {MAX_COUNT}")

    @field_validator("steps", "batches", mode="before")
    @classmethod
    def _one_number_for_all(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value

    @field_validator("step_milestones", mode="before")
    @classmethod
    def _one_list_for_all(cls, value: object) -> object:
        return (value,) if isinstance(value, list | tuple) and value and isinstance(value[0], int) else value

    @model_validator(mode="after")
    def _step_milestones_agree(self) -> Self:
        if not self.step_milestones:
            return self
        if not self.steps or self.schedule != "step":
            raise ValueError("train.step_milestones need train.steps and train.schedule=step")
        stages = max(len(self.steps), len(self.step_milestones))
        for steps, milestones in zip(
            self.steps * (stages if len(self.steps) == 1 else 1),
            self.step_milestones * (stages if len(self.step_milestones) == 1 else 1),
            strict=False,
        ):
            if list(milestones) != sorted(set(milestones)) or max(milestones, default=0) >= steps:
                raise ValueError(
                    f"train.step_milestones must ascend and lie below the steps of their stage: got {milestones} for "
                    f"{steps} steps"
                )
        return self


class Val(Section):
    """Validation during training and by `rcnn val`."""

    every: Count = 1
    """Epochs between validations."""
    batch: Count = 8
    """Images per batch."""
    voc_ap: Literal["area", "11-point"] = "area"
    """Rule for VOC's AP, which is reported beside COCO's; area: the area under the precision-recall curve, as since
    2010; 11-point: the mean precision at 11 recalls, as in VOC 2007. COCO's AP is not affected."""


class Predict(Section):
    """Prediction and the selection of its results."""

    score: Fraction | None = None
    """Boxes with a lower score are left out. None: the stored threshold."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=8)], ...], Field(min_length=1, max_length=16)] = (1.0,)
    """Factors of preprocess.short and long; the detections of all scales are merged (image pyramid)."""
    tile: Literal["off", "auto"] | Tile = "off"
    """Side of the windows in which large images are processed, pixels of the file; auto: images larger than the
    training images are processed in windows at the scale of training."""
    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.2
    """Overlap of neighbouring windows as a share of their side."""
    max_detections: Count | None = None
    """Maximum number of boxes of an image processed in windows. None: no limit (`roi.detections` per window)."""
    precision: Literal["float32", "bf16", "fp16", "auto"] = "float32"
    """Precision of convolutions and matrix products; boxes and scores stay float32. On a CPU without instructions for
    bf16, bf16 is slower than float32, and many times slower with AVX2 only. auto: bf16 on a GPU, or fp16 if it is older
    than Ampere; float32 on a CPU."""
    svd: Annotated[tuple[Count, ...], Field(max_length=16)] = ()
    """Ranks to which the fully connected layers of the second stage's head are truncated, one per layer: fc6 and fc7,
    or the one of conv-fc. Empty: no truncation."""
    compile: bool = False
    """Compile the network with torch.compile at the first batch of each shape, which takes a minute."""
    graphs: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of most recently used batch shapes that a GPU replays as CUDA graphs. 0: off."""
    graph_seconds: Annotated[float, Field(gt=0, le=100_000)] = 60
    """CPU seconds per megapixel that an exported file of unknown origin may take; see docs/deploy.md."""
    graph_memory: Annotated[int, Field(ge=1, le=1_000_000)] = 8000
    """Memory per megapixel, in MB, that an exported file of unknown origin may take on Linux, in addition to its
    weights."""

    @field_validator("tile", mode="before")
    @classmethod
    def _a_word_or_a_side(cls, value: object) -> object:
        if value is False:  # YAML reads `off` as False
            return "off"
        side = isinstance(value, int) and MIN_TILE <= value <= MAX_SIDE
        if value not in ("off", "auto") and not side:
            raise ValueError(f"off, auto, or the side of the windows in pixels, {MIN_TILE} to {MAX_SIDE}")
        return value


NETWORK_SECTIONS = ("preprocess", "model", "anchors", "rpn", "roi")
"""Sections of the settings that the network and its weights depend on."""


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

    @property
    def two_stage(self) -> bool:
        """True if the detector has a second stage."""
        return self.roi.head != "none"

    @property
    def predicts_classes(self) -> bool:
        """True if the detector predicts classes; False for an RPN alone, which only proposes."""
        return self.two_stage or self.rpn.classify == "classes"

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.roi.pool == "warp" and self.roi.sampling_ratio == 0:
            raise ValueError("roi.pool=warp needs roi.sampling_ratio of 1 or more")
        if self.rpn.classify == "classes" and self.roi.head != "none":
            raise ValueError(
                "rpn.classify=classes makes a one-stage detector, which has no second stage: set roi.head=none "
                f"(got {self.roi.head})"
            )
        if self.rpn.loss == "focal" and self.rpn.classify != "classes":
            raise ValueError("rpn.loss=focal is for one-stage detectors: set rpn.classify=classes and roi.head=none")
        if self.val.voc_ap != "area" and not self.predicts_classes:
            raise ValueError(
                f"val.voc_ap={self.val.voc_ap} is a rule for VOC's AP, but a model that only proposes (roi.head=none) "
                "is scored by recall alone: leave val.voc_ap out"
            )
        if self.train.keep == "last" and self.train.patience is not None:
            raise ValueError(
                f"train.patience={self.train.patience} stops a run by its scores on the validation list, but with "
                "train.keep=last nothing depends on these: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _images_stay_small(self) -> Self:
        side = max(self.predict.scales) * max(self.preprocess.short, self.preprocess.long)
        if side > MAX_SIDE:
            raise ValueError(
                f"predict.scales times preprocess.short and long give images with sides of up to {side:,.0f} pixels; "
                f"the maximum is {MAX_SIDE:,}"
            )
        return self

    @model_validator(mode="after")
    def _layers_stay_small(self) -> Self:
        model, rpn, roi = self.model, self.rpn, self.roi
        width = model.channels if model.neck == "fpn" else 2048  # no backbone is wider
        numbers = rpn.convs * max(width, rpn.channels or 0) ** 2 * sum(side**2 for side in rpn.kernels)
        if model.neck == "fpn":
            numbers += len(model.levels) * 9 * width**2
        if roi.head in ("fc", "conv-fc"):
            numbers += width * roi.size**2 * roi.hidden
            numbers += roi.hidden**2 if roi.head == "fc" else roi.convs * 9 * width**2
        if numbers > MAX_WEIGHTS:
            raise ValueError(
                "model.channels, rpn.channels, rpn.convs, rpn.kernel, roi.size, roi.convs and roi.hidden give layers "
                f"with about {numbers:,} weights, not counting the backbone; the maximum is {MAX_WEIGHTS:,}"
            )
        return self

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.model.levels) if self.model.neck == "fpn" else 1
        if len(self.anchors.sizes) != levels:
            raise ValueError(
                f"anchors.sizes has {len(self.anchors.sizes)} levels {self.anchors.sizes}, "
                f"but model.levels has {levels} {self.model.levels}; give one tuple of sizes per level"
            )
        if len({len(sizes) for sizes in self.anchors.sizes}) > 1:
            raise ValueError(f"anchors.sizes must have equally many sizes on every level, got {self.anchors.sizes}")
        self.rpn.see_sizes(self.anchors)
        available = self.model.levels  # not checked if there is one level, or for a custom backbone
        missing = [level for level in self.roi.levels if level not in available] if len(available) > 1 else []
        if missing and self.model.neck == "fpn" and self.model.backbone != "custom" and self.roi.head != "none":
            raise ValueError(
                f"roi.levels names {missing}, but the backbone's levels are {list(available)} (model.levels); "
                "leave these out"
            )
        return self


def keys() -> Iterator[str]:
    """Yield every `section.key`, in the order of declaration."""
    for section, values in Settings():
        for name, field in type(values).model_fields.items():
            yield f"{section}.{field.alias or name}"


def validate(tree: Mapping[str, Any]) -> Settings:
    """Return the settings of a plain tree of dictionaries.

    Raises:
        SettingsError: one line per fault, with the nearest known key where a key is unknown.
    """
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Return one line for each of the first faults, with the nearest known key if a key is unknown."""
    faults = error.errors(include_url=False, include_context=False)
    more = [f"and {len(faults) - MAX_FAULTS:,} more"] if len(faults) > MAX_FAULTS else []
    return "\n".join([*map(_fault, faults[:MAX_FAULTS]), *more])


def _fault(entry: Any) -> str:
    where = shorten(".".join(str(part) for part in entry["loc"]))
    if entry["type"] == "extra_forbidden":
        name = where.rsplit(".", 1)[-1]
        ours = [names[name] for names in (ALIASES, SUGGESTIONS) if name in names]
        near = ours or get_close_matches(where, [*keys(), *Settings.model_fields], n=1, cutoff=0.5)
        return f"unknown setting `{where}`" + (f"; did you mean `{near[0]}`?" if near else "")
    reason = entry["msg"].removeprefix("Value error, ")
    got = "" if isinstance(entry["input"], dict) else f" (got {shorten(repr(entry['input']))})"
    return f"`{where}`: {reason}{got}" if where else reason


def shorten(text: str) -> str:
    """Cut a text to the length that a message quotes."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def dump(settings: Settings) -> dict[str, Any]:
    """Return a plain tree (lists, strings, numbers) that `validate` reads back to the same settings."""
    return settings.model_dump(mode="json", by_alias=True)


def changed_keys(old: Settings, new: Settings, sections: Collection[str]) -> list[str]:
    """Return the settings of these sections that differ, as `section.key`."""
    before, after = dump(old), dump(new)
    return [
        f"{section}.{key}"
        for section in sections
        for key, value in before[section].items()
        if after[section][key] != value
    ]


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `changes` to `tree`: sections are merged, and settings are replaced, also those that are mappings."""
    merged = dict(tree)
    for section, values in changes.items():
        before = merged.get(section)
        both = isinstance(values, Mapping) and isinstance(before, Mapping)
        merged[section] = {**before, **values} if both else values
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Return the tree of a text `section.key=value`; the value is read as YAML, and `1e-3` as a number.

    Raises:
        SettingsError: no `=`, no `.`, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise SettingsError(f"`{shorten(text)}` is not of the form section.key=value")
    try:
        parsed = yaml_tree.load(value)
    except yaml_tree.MalformedYaml as error:
        raise SettingsError(f"`{shorten(text)}`: the value is not YAML ({error})") from None
    if value.strip()[:1] not in ("'", '"'):  # a quoted number is meant as text
        parsed = _number(parsed)
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _number(value: Any) -> Any:
    """Convert texts such as `1e-3`, which YAML 1.1 does not read as numbers, also inside lists."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def override(settings: Settings, changes: Sequence[str] | Mapping[str, Any]) -> Settings:
    """Apply `section.key=value` texts, or a tree, to settings and validate the result.

    The text `imgsz=320` sets `preprocess.short`, and changes `preprocess.long` by the same factor.
    """
    tree = dump(settings)
    for change in [changes] if isinstance(changes, Mapping) else changes:
        if isinstance(change, str):
            name, _, size = change.partition("=")
            sides = settings.preprocess.short, settings.preprocess.long
            change = {"preprocess": scaled(sides, size)} if name == IMAGE_SIZE else parse_override(change)
        tree = merge(tree, change)
    return validate(tree)


def read(path: Path) -> Settings:
    """Read the settings of a `config.yaml`.

    Raises:
        SettingsError: the file is missing, is not YAML or holds a wrong setting.
    """
    try:
        tree = yaml_tree.load(read_text(path, MB))
    except yaml_tree.MalformedYaml as error:
        raise SettingsError(f"{path}:{error.line}: can't be read as settings: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: can't be read as settings: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: expected sections such as `train:`, found {type(tree).__name__}")
    return validate(tree)


def to_yaml(settings: Settings) -> str:
    """Return the text of a `config.yaml` that `read` turns into the same settings."""
    return yaml.safe_dump(dump(settings), sort_keys=False, default_flow_style=None, width=120)
