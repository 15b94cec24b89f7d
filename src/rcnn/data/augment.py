"""Random changes of a training image with its boxes in step: first drawn as a `Plan`, then carried out.

The plan is drawn before the image is resized, so that a file's pixels are resized once, straight to the jittered size.
The canvas is the resized image without jitter: nothing ever leaves it, and so the shape bucket stays the image's own.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.config import Augment
from rcnn.metrics.overlap import area
from rcnn.preprocess.batch import Size

GREY = torch.tensor([0.299, 0.587, 0.114])
LEAST_VISIBLE = 0.3
"""An object of which a smaller share of its area is left becomes `ignore`: it is there, but too little of it."""


class Plan(NamedTuple):
    """What happens to one image, in this order.

    Attributes:
        resized: size that the whole image is resized to.
        window: (top, left, height, width) of what is kept of it.
        flip: left becomes right.
        vertical_flip: top becomes bottom.
        transpose: rows become columns.
        brightness: factor.
        contrast: factor about the image's mean grey.
        saturation: factor about each pixel's grey.
        hue: turn of the colour circle, 1 = full.
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
    """Numbers in [0, 1) that decide a plan, in the order in which they are drawn."""

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
    """A plan for an image that fills `canvas`, with its (n, 4) boxes in pixels of the canvas.

    As many numbers are drawn whatever the settings, so that changing one changes nothing that is drawn for another.
    Of a transposed image of unequal sides is kept what fits into the canvas.
    """
    draws = _Draws(*generator.random(len(_Draws._fields)))
    transpose = bool(draws.transpose < settings.transpose)
    room = canvas[::-1] if transpose else canvas
    low, high = settings.scale
    rescale = draws.rescale < settings.rescale
    factor = low * (high / low) ** draws.scale if rescale else 1.0  # half as often as double
    resized = _scaled(canvas, (factor, factor))
    crop = draws.crop < settings.crop
    shares = (0.5 + draws.crop_height / 2, 0.5 + draws.crop_width / 2) if crop else (1.0, 1.0)
    kept = _scaled((min(resized[0], room[0]), min(resized[1], room[1])), shares)
    return Plan(
        resized,
        (*_place(kept, resized, boxes * _factors(canvas, resized), draws), *kept),
        flip=bool(draws.flip < settings.flip),
        vertical_flip=bool(draws.vertical_flip < settings.vertical_flip),
        transpose=transpose,
        brightness=max(0.0, 1 + (2 * draws.brightness - 1) * settings.brightness),
        contrast=max(0.0, 1 + (2 * draws.contrast - 1) * settings.contrast),
        saturation=max(0.0, 1 + (2 * draws.saturation - 1) * settings.saturation),
        hue=(2 * draws.hue - 1) * settings.hue,
    )


def _scaled(size: Size, factors: tuple[float, float]) -> Size:
    """Size times factors, whole pixels, 1 at least."""
    return max(1, int(size[0] * factors[0] + 0.5)), max(1, int(size[1] * factors[1] + 0.5))


def _factors(old: Size, new: Size) -> np.ndarray:
    """(4,) what boxes in an image of `old` size are multiplied by when it gets a `new` one."""
    return np.array([new[1] / old[1], new[0] / old[0]] * 2)


def _place(kept: Size, resized: Size, boxes: np.ndarray, draws: _Draws) -> Size:
    """Top and left of a window at random; where there are boxes it holds the centre of one of them."""
    low, high = np.zeros(2), np.array(resized) - kept
    if len(boxes):
        x1, y1, x2, y2 = boxes[int(draws.centred_box * len(boxes))]
        centre = np.array([(y1 + y2) / 2, (x1 + x2) / 2])
        low, high = np.clip(np.ceil(centre - kept), low, high), np.clip(np.floor(centre), low, high)
    top, left = (low + np.floor(np.array([draws.top, draws.left]) * (high - low + 1))).astype(int).tolist()
    return top, left


def apply_to_image(plan: Plan, image: Tensor) -> Tensor:
    """(C, *plan.resized) in 0..255 -> (C, *plan.window[2:]), of the same type; transposed (C, W, H)."""
    top, left, height, width = plan.window
    image = image[:, top : top + height, left : left + width]
    flips = [axis for axis, flip in ((2, plan.flip), (1, plan.vertical_flip)) if flip]
    image = image.flip(flips) if flips else image
    return _jitter(image.mT.contiguous() if plan.transpose else image, plan)


def _jitter(image: Tensor, plan: Plan) -> Tensor:
    """Brightness, contrast, saturation and hue as one 3x3 matrix and an offset.

    torchvision's go one after another over all pixels, and its hue by way of HSV alone takes longer than all the rest
    of loading. Here hue turns the chroma plane of YIQ. Images of other than 3 channels have no hue and saturation.
    """
    if (plan.brightness, plan.contrast, plan.saturation, plan.hue) == (1, 1, 1, 0):
        return image
    channels = image.shape[0]
    pixels = image.reshape(channels, -1).float()
    weights = GREY if channels == 3 else torch.full((channels,), 1 / channels)
    grey = plan.brightness * weights @ pixels.mean(1)
    colour = _colour_matrix(plan.saturation, plan.hue) if channels == 3 else torch.eye(channels)
    offset = ((1 - plan.contrast) * grey).expand(channels, 1)
    pixels = torch.addmm(offset, plan.brightness * plan.contrast * colour, pixels).clamp_(0, 255)
    if not image.is_floating_point():
        pixels.round_()
    return pixels.to(image.dtype).reshape(image.shape)


def _colour_matrix(saturation: float, hue: float) -> Tensor:
    """(3, 3) on RGB: scales the chroma plane of YIQ by `saturation`, turns it by `hue` circles, and keeps the grey."""
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
    cos, sin = saturation * math.cos(2 * math.pi * hue), saturation * math.sin(2 * math.pi * hue)
    turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)
    return (torch.linalg.inv(yiq) @ turn @ yiq).float()


def apply_to_boxes(plan: Plan, boxes: np.ndarray, canvas: Size) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) boxes in pixels of the canvas -> (n, 4) in the new image, clipped to it, and (n,) visible share of area.

    A visible share of 0 means that the object is gone; under `LEAST_VISIBLE` it should be ignored.
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
    return clipped, area(clipped) / area(moved)
