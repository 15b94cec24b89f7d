"""Settings of images: reading, preprocessing and augmentation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rcnn.config.class_names import Classes
from rcnn.config.network import Fraction, NonNegative, Number, Pixels, Positive, Section

Span = tuple[Positive, Positive]


class Data(Section):
    """The data to read, and the treatment of faulty images."""

    path: str | None = None
    """Folder, COCO json, data.yaml or csv, or the address of one. None: the command's argument."""
    on_fault: Literal["damaged", "stop", "skip"] = "damaged"
    """Images to leave out; damaged: those that can't be decoded; skip: those with any fatal fault; stop: none."""
    train: str = "train"
    """Name of the list to train on, such as trainval."""
    val: str = "val"
    """Name of the list to validate on."""
    classes: Classes | None = None
    """Classes to read, as a list, or their new names, as a mapping; see docs/data.md. None: all, with their names."""
    holdout: Fraction = 0.1
    """Share of images held out for validation if there is no validation list."""
    group: str | None = None
    """Regular expression with a group in parentheses: images for which it matches the same text stay together when
    images are held out, or divided into the folds of an audit. None: each image by itself."""
    voc_origin: Literal["auto", 0, 1] = "auto"
    """Coordinate of the first pixel in VOC boxes; auto: 1 unless a 0 occurs."""
    class_attribute: str | None = None
    """Attribute of VIA's regions that is the class. None: the only one that has values."""
    white: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Pixel value of white in 16-bit images. None: 65535."""
    max_pixels: Annotated[int, Field(ge=1, le=1_000_000_000)] = 178_956_970
    """Images with more pixels are refused, or read window by window (see `predict.tile`)."""
    max_pixels_per_byte: Annotated[int, Field(ge=1, le=1_000_000_000)] = 2_000
    """Images read window by window that declare more pixels per byte of their file are refused."""
    outside: Literal["allow", "refuse"] = "allow"
    """Images that the data names outside its own folder: read them, or report a fault."""
    edge_model: str | None = None
    """edge-boxes: OpenCV's edge model, model.yml.gz; see docs/predict.md."""
    cache: str | None = None
    """Folder in which decoded images are kept for later epochs and runs; see docs/data.md. None: off."""
    cache_gb: Annotated[float, Field(ge=0.001, le=1_000_000)] = 50
    """Maximum size of the folder `cache`, GB. The images that have not been used for longest are deleted first."""
    licence: str | None = None
    """Licence of the data, stored with the weights; free text."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Loader processes, or threads where processes can't be forked. None: chosen automatically."""


class Preprocess(Section):
    """From a file's pixels to the network's input."""

    short: Pixels = 448
    """Shorter side after resizing, pixels."""
    long: Pixels = 768
    """Maximum longer side, pixels; takes precedence over `short`."""
    multiple: Annotated[int, Field(ge=1, le=1024)] = 32
    """Resized sides are padded up to a multiple of this, pixels."""
    resize: Literal["pillow", "interpolate"] = "pillow"
    """Bilinear resizing; pillow: with antialiasing; interpolate: without."""
    round: Literal["nearest", "floor", "short-first"] = "nearest"
    """Rounding of resized sides; short-first: to nearest as well, scaled to `short`, then to `long`."""
    in_channels: Literal[1, 3] | Annotated[int, Field(ge=1, le=1024)] = 3
    """Channels of the images: 1 for grey, 3 for colour, n for arrays."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the network's colour channels."""
    mean: Annotated[tuple[Number, ...], Field(max_length=1024)] = (0.485, 0.456, 0.406)
    """Subtracted from pixels in 0..1."""
    std: Annotated[tuple[Positive, ...], Field(max_length=1024)] = (0.229, 0.224, 0.225)
    """Divides pixels, after `mean`."""

    @model_validator(mode="after")
    def _one_mean_a_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.in_channels):
                count, channels = len(getattr(self, name)), self.in_channels
                expected = f"{channels} channels; give 1 or {channels}" if channels > 1 else "1 channel; give 1"
                raise ValueError(f"{name} has {count} numbers for {expected}")
        return self


class Augment(Section):
    """Random changes of training images and their boxes."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Fraction = 0.0
    """Probability of a vertical flip."""
    transpose: Fraction = 0.0
    """Probability that rows and columns are exchanged; with both flips, all eight orientations occur. If the sides
    differ, what does not fit is cropped."""
    rescale: Fraction = 1.0
    """Probability that the image's scale changes."""
    scale: Span = (0.8, 1.25)
    """Range of the scale factor; above 1 the image is cropped."""
    crop: Fraction = 0.0
    """Probability of a random crop that keeps the centre of at least one object."""
    brightness: NonNegative = 0.2
    """Range of the factor: 1 - this to 1 + this."""
    contrast: NonNegative = 0.2
    """Range of the factor: 1 - this to 1 + this."""
    saturation: NonNegative = 0.2
    """Range of the factor: 1 - this to 1 + this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Range of the rotation of the colour circle: -this to this, 1 being a full turn."""
