"""Rules of pixels: how many an image may have, and how values of any type become uint8."""

from collections.abc import Iterable

import numpy as np

from rcnn.errors import ImageError

STRIP = 1 << 18
"""Values or pixels that are converted at a time."""

_WHITE_16_BIT = 65535


def limit(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image of more than `max_pixels`."""
    if height * width > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels; if the file is to be trusted, raise data.max_pixels"
        )


def to_uint8(array: np.ndarray, white: int | None) -> np.ndarray:
    """Scale integers in 0..white and floats in 0..1 to 0..255, and round."""
    if array.dtype.kind == "f":
        check_floats([array])
    return quantised(array, white)


def check_floats(parts: Iterable[np.ndarray]) -> None:
    """Refuse floats that are not finite or not in 0..1, given in parts."""
    low, high = np.inf, -np.inf
    for part in parts:
        if not np.isfinite(part).all():
            raise ImageError("there are pixels that are not finite numbers")
        low, high = min(low, part.min()), max(high, part.max())
    if not -0.5 <= low <= high <= 1.5:
        raise ImageError(f"floating-point pixels run from {low:g} to {high:g}; expected 0..1 (for 0..255 use uint8)")


def quantised(array: np.ndarray, white: int | None) -> np.ndarray:
    """Scale and round as `to_uint8` does, without looking at the range of floats."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind in "iu":
        scaled = array.astype(np.float32) * (255 / (white or _WHITE_16_BIT))
    elif array.dtype.kind == "f":
        scaled = array.astype(np.float32) * 255
    else:
        raise ImageError(other_type(array))
    return scaled.round().clip(0, 255).astype(np.uint8)


def other_type(array: np.ndarray) -> str:
    """Return the message for values that are no pixels."""
    return f"pixels of type {array.dtype!s:.80} can't be used; expected uint8, uint16 or floats in 0..1"


def other_channels(channels: int, in_channels: int) -> str:
    """Return the message for an image with other channels than the settings ask for."""
    return f"the image has {channels} channels; preprocess.in_channels is {in_channels}"
