"""Decode image files of any mode that Pillow opens to (H, W, C) uint8 arrays, with EXIF rotation applied."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from rcnn.errors import ImageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".avif", ".npy"),
)
MAX_PIXELS = 178_956_970
_WHITE_16_BIT = 65535
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_open_lock = threading.Lock()


class Look(NamedTuple):
    """Properties of an image that only decoding shows.

    Attributes:
        largest: the largest value, if values are integers of more than 8 bits, else None.
        transparent: whether any pixel is not opaque.
    """

    largest: int | None = None
    transparent: bool = False


def read_image(
    path: str | Path, *, white: int | None = None, max_pixels: int = MAX_PIXELS, in_channels: int | None = 3
) -> np.ndarray:
    """Read an image file, turned upright, as (H, W, in_channels) uint8.

    Transparent pixels get a white background. 16-bit values are divided by `white` (None: 65535); floats must lie in
    0..1. `in_channels` 1 is grey, 3 is RGB; other numbers need .npy arrays, images with as many bands, or TIFFs with
    as many grey pages. None leaves arrays unchanged and reads everything else as RGB, to draw the data.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, over `max_pixels`, or has other channels.
    """
    path = Path(path)
    with _named(path):
        if path.suffix.lower() == ".npy":
            return _channels(_to_uint8(np.array(_open_array(path, max_pixels)), white), in_channels)
        in_channels = in_channels or 3
        with _open(path, max_pixels) as image:
            if in_channels not in (1, 3) and getattr(image, "n_frames", 1) == in_channels:
                return np.stack([_page(image, index, max_pixels, white) for index in range(in_channels)], axis=-1)
            return _from_pillow(image, in_channels, white)


def as_array(
    image: np.ndarray | Image.Image | torch.Tensor, in_channels: int = 3, white: int | None = None
) -> np.ndarray:
    """Convert an image in memory to (H, W, in_channels) uint8, by the rules of `read_image`.

    Accepts (H, W) and (H, W, C) arrays, (H, W) and (C, H, W) tensors, and Pillow images, which are turned upright.

    Raises:
        ImageError: the shape, values or channels can't be used.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image, in_channels, white)
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = image
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"the image has shape {tuple(image.shape)}; expected height, width and channels")
    return _channels(_to_uint8(array, white), in_channels)


def _from_pillow(image: Image.Image, in_channels: int, white: int | None) -> np.ndarray:
    """Load an image as (H, W, in_channels) uint8, rotated according to its EXIF data."""
    image.load()  # rotates a TIFF and drops its orientation tag
    orientation = _orientation(image)
    if orientation != 1:
        image = image.transpose(_TURNS[orientation])
    if _is_deep(image):
        return _channels(_to_uint8(np.array(image), white), in_channels)
    if in_channels not in (1, 3):
        return _channels(np.array(image), in_channels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _channels(np.array(image.convert("L" if in_channels == 1 else "RGB")), in_channels)


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (height, width) of an image file after EXIF rotation, from its header alone.

    Raises:
        ImageError: the file is missing, empty, no image or over `max_pixels`.
    """
    path = Path(path)
    with _named(path):
        if path.suffix.lower() == ".npy":
            height, width = _open_array(path, max_pixels).shape[:2]
            return height, width
        with _open(path, max_pixels) as image:
            width, height = image.size
            # Pillow rotates TIFFs itself and reports their rotated size.
            turned = image.format != "TIFF" and _orientation(image) >= 5
            return (width, height) if turned else (height, width)


def verify_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Look:
    """Decode an image file completely.

    Raises:
        ImageError: as for `read_image`, whatever the number of channels.
    """
    path = Path(path)
    with _named(path):
        if path.suffix.lower() == ".npy":
            array = np.array(_open_array(path, max_pixels))
        else:
            with _open(path, max_pixels) as image:
                image.load()
                if not _is_deep(image):
                    return Look(transparent=_is_transparent(image))
                array = np.array(image)
        _to_uint8(array, None)
        return Look(int(array.max()) if array.dtype.kind in "iu" and array.dtype.itemsize > 1 else None)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn any error with a file into an `ImageError` that names the file."""
    try:
        with warnings.catch_warnings():  # Pillow warns of damage, such as in EXIF data, without naming the file
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise ImageError(f"{path}: " + ("the file is empty" if empty else "this is not an image")) from None
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        raise ImageError(f"{path}: the image can't be read: {error or type(error).__name__}") from None


def _open(path: Path, max_pixels: int) -> Image.Image:
    """Open an image of at most `max_pixels`, reading only its header."""
    with _open_lock:  # Pillow's own limit is global; ours is an argument
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    try:
        _limit(image.height, image.width, max_pixels)
    except ImageError:
        image.close()
        raise
    return image


def _open_array(path: Path, max_pixels: int) -> np.ndarray:
    """Map a .npy file into memory, and check its shape."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"the array has shape {array.shape}; expected (height, width) or (height, width, channels)")
    _limit(array.shape[0], array.shape[1], max_pixels)
    return array


def _is_deep(image: Image.Image) -> bool:
    """Whether pixels are wider than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque; many files have an alpha channel without effect."""
    return image.has_transparency_data and bool((np.array(image.convert("RGBA").getchannel("A")) < 255).any())


def _limit(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels; if the file is to be trusted, raise data.max_pixels"
        )


def _page(image: Image.Image, index: int, max_pixels: int, white: int | None) -> np.ndarray:
    """Read one page of a TIFF as (H, W) uint8."""
    image.seek(index)
    _limit(image.height, image.width, max_pixels)
    return _from_pillow(image, 1, white)[..., 0]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 if it is missing or damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse good pixels
        return 1
    return value if value in _TURNS else 1


def _to_uint8(array: np.ndarray, white: int | None) -> np.ndarray:
    """Scale integers in 0..white and floats in 0..1 to 0..255, and round."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind in "iu":
        scaled = array.astype(np.float32) * (255 / (white or _WHITE_16_BIT))
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError("there are pixels that are not finite numbers")
        if not -0.5 <= array.min() <= array.max() <= 1.5:
            raise ImageError(
                f"floating-point pixels run from {array.min():g} to {array.max():g}; "
                "expected 0..1 (for 0..255 use uint8)"
            )
        scaled = array.astype(np.float32) * 255
    else:
        raise ImageError(f"pixels of type {array.dtype} can't be used; expected uint8, uint16 or floats in 0..1")
    return scaled.round().clip(0, 255).astype(np.uint8)


def _channels(array: np.ndarray, in_channels: int | None) -> np.ndarray:
    """Turn (H, W) or (H, W, C) into (H, W, in_channels), or (H, W, C) if None; grey is repeated for RGB."""
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1 and in_channels == 3:
        array = array.repeat(3, axis=2)
    if array.shape[2] != (in_channels or array.shape[2]):
        raise ImageError(f"the image has {array.shape[2]} channels; preprocess.in_channels is {in_channels}")
    return np.ascontiguousarray(array)
