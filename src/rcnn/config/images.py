"""Settings of images: which are read, how they become the network's input, and how they vary in training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rcnn.config.network import Fraction, NonNegative, Number, Pixels, Positive, Section

Span = tuple[Positive, Positive]


class Data(Section):
    """Which data is read, and how faulty images are treated."""

    path: str | None = Field(
        default=None, description="Folder, COCO json, data.yaml or csv; None: as the command says."
    )
    on_fault: Literal["damaged", "stop", "skip"] = Field(
        default="damaged",
        description="Images left out; damaged: that can't be decoded; skip: with any fatal fault; stop: none.",
    )
    train: str = Field(default="train", description="Name of the list to train on, such as trainval.")
    val: str = Field(default="val", description="Name of the list to validate on.")
    holdout: Fraction = Field(default=0.1, description="Share of images held out where there is no validation list.")
    voc_origin: Literal["auto", 0, 1] = Field(
        default="auto", description="First pixel of VOC boxes; auto: 1 unless a 0 occurs."
    )
    white: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="White of 16-bit images. None: 65535."
    )
    max_pixels: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        default=178_956_970,
        description="Larger images are refused, or read window by window (see `predict.tile`), pixels.",
    )
    outside: Literal["allow", "refuse"] = Field(
        default="allow", description="Images that the data names outside its own folder: read them, or call it a fault."
    )
    edge_model: str | None = Field(
        default=None, description="edge-boxes: OpenCV's model of edges, model.yml.gz; see docs/predict.md."
    )
    licence: str | None = Field(default=None, description="Licence of the data, noted in the weights; free text.")
    workers: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="Loader processes, or threads where no process can be forked. None: what pays."
    )


class Preprocess(Section):
    """From a file's pixels to the network's input."""

    short: Pixels = Field(default=448, description="Shorter side after resizing, pixels.")
    long: Pixels = Field(default=768, description="Longer side at most, pixels; wins over `short`.")
    multiple: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="Resized sides are padded up to a multiple of this, pixels."
    )
    resize: Literal["pillow", "interpolate"] = Field(
        default="pillow", description="Bilinear: pillow with antialiasing, interpolate without."
    )
    round: Literal["nearest", "floor", "short-first"] = Field(
        default="nearest",
        description="How resized sides become integers; short-first: nearest too, scaled to `short`, then to `long`.",
    )
    in_channels: Literal[1, 3] | Annotated[int, Field(ge=1, le=1024)] = Field(
        default=3, description="Channels: 1 grey, 3 colour, n as in arrays."
    )
    order: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of the network's colour channels.")
    mean: Annotated[tuple[Number, ...], Field(max_length=1024)] = Field(
        default=(0.485, 0.456, 0.406), description="Subtracted from pixels in 0..1."
    )
    std: Annotated[tuple[Positive, ...], Field(max_length=1024)] = Field(
        default=(0.229, 0.224, 0.225), description="Divides pixels, after `mean`."
    )

    @model_validator(mode="after")
    def _one_mean_a_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.in_channels):
                given, wanted = len(getattr(self, name)), self.in_channels
                many = f"{wanted} channels; give 1 or {wanted}" if wanted > 1 else "1 channel; give 1"
                raise ValueError(f"{name} has {given} numbers for {many}")
        return self


class Augment(Section):
    """Random changes of training images and their boxes."""

    flip: Fraction = Field(default=0.5, description="Probability of a horizontal flip.")
    vertical_flip: Fraction = Field(default=0.0, description="Probability of a vertical flip.")
    transpose: Fraction = Field(
        default=0.0,
        description="Probability that rows and columns are exchanged; with both flips: all eight orientations. If the "
        "sides are unequal, what does not fit is cropped.",
    )
    rescale: Fraction = Field(default=1.0, description="Probability that the image's scale changes.")
    scale: Span = Field(default=(0.8, 1.25), description="Range of the scale factor; above 1 the image is cropped.")
    crop: Fraction = Field(default=0.0, description="Probability of a random crop that keeps some object's centre.")
    brightness: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    contrast: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    saturation: NonNegative = Field(default=0.2, description="Factor drawn from 1 -+ this.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.02, description="Turn of the colour circle drawn from -+ this."
    )
