"""Random augmentation of a training image and its boxes: first drawn as a `Plan`, then applied.

The plan is drawn before the image is resized, so that pixels are resized only once, straight to the jittered size.
The canvas is the resized image without jitter. Nothing extends beyond it, so the image keeps its shape bucket.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn.config import Augment
from rcnn.images.batch import Size

YIQ_OF_RGB = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
RGB_OF_YIQ = np.linalg.inv(YIQ_OF_RGB)
GREY = torch.from_numpy(YIQ_OF_RGB[0]).float()
MIN_VISIBLE_SHARE = 0.3
"""An object of which a smaller share of the area is left becomes `ignore`, since too little of it is visible."""


class Plan(NamedTuple):
    """The changes of one image, in the order in which they are applied.

    Attributes:
        resized: size that the entire image is resized to.
        window: (top, left, height, width) of the part that is kept.
        flip: mirror left to right.
        vertical_flip: mirror top to bottom.
        transpose: swap rows and columns.
        brightness: factor.
        contrast: factor about the image's mean grey.
        saturation: factor about each pixel's grey.
        hue: rotation of the colour circle; 1 is a full turn.
    """

    resized: Size
    window: tuple[int, int, int, int]
    flip: bool
    vertical_flip: bool
    transpose: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float


class _Draws(NamedTuple):
    """The random numbers in [0, 1) behind a plan, in the order in which they are drawn."""

    flip: float
    vertical_flip: float
    scale: float
    crop: float
    crop_height: float
    crop_width: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    centred_box: float
    top: float
    left: float
    transpose: float
    rescale: float


def draw_plan(canvas: Size, boxes: np.ndarray, settings: Augment, generator: np.random.Generator) -> Plan:
    """Draw a plan for an image that fills `canvas`, with (n, 4) boxes in pixels of the canvas.

    The same numbers are drawn for all settings, so that changing one setting leaves the other draws unchanged.
    If an image of unequal sides is transposed, the part that fits into the canvas is kept.
    """
    draws = _Draws(*generator.random(len(_Draws._fields)))
    transpose = bool(draws.transpose < settings.transpose)
    room = canvas[::-1] if transpose else canvas
    low, high = settings.scale
    rescale = draws.rescale < settings.rescale
    factor = low * (high / low) ** draws.scale if rescale else 1.0  # log-uniform: half is as likely as double
    resized = _scaled(canvas, (factor, factor))
    crop = draws.crop < settings.crop
    shares = (0.5 + draws.crop_height / 2, 0.5 + draws.crop_width / 2) if crop else (1.0, 1.0)
    window = _scaled((min(resized[0], room[0]), min(resized[1], room[1])), shares)
    return Plan(
        resized,
        (*_position(window, resized, boxes * _factors(canvas, resized), draws), *window),
        flip=bool(draws.flip < settings.flip),
        vertical_flip=bool(draws.vertical_flip < settings.vertical_flip),
        transpose=transpose,
        brightness=max(0.0, 1 + (2 * draws.brightness - 1) * settings.brightness),
        contrast=max(0.0, 1 + (2 * draws.contrast - 1) * settings.contrast),
        saturation=max(0.0, 1 + (2 * draws.saturation - 1) * settings.saturation),
        hue=(2 * draws.hue - 1) * settings.hue,
    )


def _scaled(size: Size, factors: tuple[float, float]) -> Size:
    """Return the size times the factors, rounded to pixels and at least 1."""
    return max(1, int(size[0] * factors[0] + 0.5)), max(1, int(size[1] * factors[1] + 0.5))


def _factors(old: Size, new: Size) -> np.ndarray:
    """Return (4,): factors for boxes when an image of size `old` is resized to `new`."""
    return np.array([new[1] / old[1], new[0] / old[0]] * 2)


def _position(window: Size, resized: Size, boxes: np.ndarray, draws: _Draws) -> Size:
    """Draw top and left of a window. If there are boxes, the window contains the centre of one of them."""
    low, high = np.zeros(2), np.array(resized) - window
    if len(boxes):
        x1, y1, x2, y2 = boxes[int(draws.centred_box * len(boxes))]
        centre = np.array([(y1 + y2) / 2, (x1 + x2) / 2])
        low, high = np.clip(np.ceil(centre - window), low, high), np.clip(np.floor(centre), low, high)
    top, left = (low + np.floor(np.array([draws.top, draws.left]) * (high - low + 1))).astype(int).tolist()
    return top, left


def apply_to_picture(plan: Plan, picture: Image.Image) -> Image.Image:
    """Change an RGB picture of size `plan.resized` as `apply_to_image` does, in half the time and in one thread."""
    top, left, height, width = plan.window
    if (height, width) != plan.resized:
        picture = picture.crop((left, top, left + width, top + height))
    if plan.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if plan.vertical_flip:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if plan.transpose:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    if not _recolours(plan):
        return picture
    colour, weights = _colours(plan, 3)
    counts = np.array(picture.histogram()).reshape(3, 256)
    grey = plan.brightness * weights.numpy() @ (counts @ np.arange(256) / counts.sum(1))
    matrix = plan.brightness * plan.contrast * colour.numpy()
    rows = np.hstack((matrix, np.full((3, 1), (1 - plan.contrast) * grey)))  # (3, 4), the last column is added
    return picture.convert("RGB", tuple(rows.ravel().tolist()))


def apply_to_image(plan: Plan, image: Tensor) -> Tensor:
    """Turn (C, *plan.resized) in 0..255 into (C, *plan.window[2:]) of the same type; if transposed, (C, W, H)."""
    top, left, height, width = plan.window
    image = image[:, top : top + height, left : left + width]
    flips = [axis for axis, flip in ((2, plan.flip), (1, plan.vertical_flip)) if flip]
    image = image.flip(flips) if flips else image
    image = image.mT.contiguous() if plan.transpose else image
    if not _recolours(plan):
        return image
    colour, weights = _colours(plan, len(image))
    pixels = image.reshape(len(image), -1).float()
    grey = plan.brightness * weights @ pixels.mean(1)
    offset = ((1 - plan.contrast) * grey).expand(len(image), 1)
    pixels = torch.addmm(offset, plan.brightness * plan.contrast * colour, pixels).clamp_(0, 255)
    if not image.is_floating_point():
        pixels.round_()
    return pixels.to(image.dtype).reshape(image.shape)


def _recolours(plan: Plan) -> bool:
    return (plan.brightness, plan.contrast, plan.saturation, plan.hue) != (1, 1, 1, 0)


def _colours(plan: Plan, channels: int) -> tuple[Tensor, Tensor]:
    """Return the (C, C) matrix of saturation and hue, and (C,) the weights of the channels in grey.

    With a gain and an offset, they change brightness, contrast, saturation and hue in one step. torchvision applies
    these one by one to all pixels, and its hue, via HSV, takes longer than all other loading. Here hue rotates
    the chroma plane of YIQ by `hue` turns, saturation scales it, and grey is kept. Images without exactly 3 channels
    have no hue and saturation.
    """
    if channels != 3:
        return torch.eye(channels), torch.full((channels,), 1 / channels)
    angle = 2 * math.pi * plan.hue
    cos, sin = plan.saturation * math.cos(angle), plan.saturation * math.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return torch.from_numpy(RGB_OF_YIQ @ turn @ YIQ_OF_RGB).float(), GREY


def apply_to_boxes(plan: Plan, boxes: np.ndarray, canvas: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 4) boxes in the new image, clipped to it, and the (n,) visible share of their area.

    A visible share of 0 means that the object is gone; below `MIN_VISIBLE_SHARE` it should be ignored.

    Args:
        plan: as applied to the image.
        boxes: (n, 4) in pixels of the canvas.
        canvas: (height, width).
    """
    top, left, height, width = plan.window
    moved = boxes * _factors(canvas, plan.resized) - np.array([left, top, left, top])
    if plan.flip:
        moved[:, [0, 2]] = width - moved[:, [2, 0]]
    if plan.vertical_flip:
        moved[:, [1, 3]] = height - moved[:, [3, 1]]
    size = [width, height]
    if plan.transpose:
        moved, size = moved[:, [1, 0, 3, 2]], size[::-1]
    clipped = np.clip(moved, 0, size * 2)
    left, before = ((sides[:, 2:] - sides[:, :2]).prod(axis=1) for sides in (clipped, moved))  # (n,) areas
    return clipped, left / before
