"""Read windows of pictures of more than `data.max_pixels`, by libvips (extra `large`)."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcnn.config import Settings
from rcnn.config.files import MB
from rcnn.errors import ImageError
from rcnn.images.batch import Size
from rcnn.images.decode import as_array, check_size, image_size, named_errors, open_image
from rcnn.images.views import View
from rcnn.images.work import check_decoding

MAX_WHOLE_PIXELS = 400_000_000
"""Maximum number of pixels of a picture whose format can only be decoded completely."""

MAX_TILE_BYTES = 2_000 * MB
"""Maximum size of the tiles that libvips keeps, two rows of them, bytes. Those of slides take 100 to 600 MB."""

_LOADERS = {"JPEG": "jpegload", "MPO": "jpegload", "PNG": "pngload", "TIFF": "tiffload", "WEBP": "webpload"}
_PLAIN = ("b-w", "srgb", "rgb", "grey16", "rgb16", "multiband")  # libvips's names for grey, RGB and other bands
_BITS, _BANDS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 258, 277, 322, 323, 324, 325  # tags of a TIFF


def large_size(path: Path, settings: Settings) -> Size | None:
    """Return the (height, width) of an image file that is to be read in windows, or None if it is read completely.

    With `predict.tile`, images of more than `data.max_pixels` are read in windows, except arrays in .npy files.

    Raises:
        ImageError: as for `image_size`.
    """
    if settings.predict.tile == "off" or path.suffix.lower() == ".npy":
        return None
    height, width = image_size(path, max_pixels=sys.maxsize)
    return (height, width) if height * width > settings.data.max_pixels else None


def open_windows(path: Path, window: Size, settings: Settings) -> Callable[[View], np.ndarray]:
    """Open an image file of any size. Only windows of tiled TIFFs are read; other files are decoded into memory.

    Args:
        path: the file.
        window: (height, width) of the largest window that will be read.
        settings: `data` and `preprocess.in_channels` are read.

    Returns:
        A function that reads the window of a view as (h, w, in_channels) uint8, upright, by the rules of `read_image`.
        It raises `ImageError`.

    Raises:
        ImageError: a window has more than `data.max_pixels`; the file declares more than `data.max_pixels_per_byte`,
            is damaged, or is in a format that libvips does not read; its tiles take more than `MAX_TILE_BYTES`; it can
            only be decoded completely, and has more than `MAX_WHOLE_PIXELS`; libvips is missing.
    """
    with named_errors(path):
        check_size(*window, settings.data.max_pixels)
        with open_image(path, sys.maxsize) as header:
            check_decoding(header)
            kind, (width, height) = header.format or "", header.size
            tags = header.tag_v2 if kind == "TIFF" else {}  # type: ignore[attr-defined]
            tiles = (tags.get(_TILE_OFFSETS, ()), tags.get(_TILE_BYTES, ()))
        bytes_in_file = path.stat().st_size
        if kind not in _LOADERS:
            check_size(height, width, settings.data.max_pixels)
        if height * width > settings.data.max_pixels_per_byte * bytes_in_file:
            raise ImageError(
                f"the file declares {width}x{height} pixels in {bytes_in_file:,} bytes, which are more than "
                f"{settings.data.max_pixels_per_byte} pixels per byte; if you trust it, raise data.max_pixels_per_byte"
            )
        tiled = bool(tiles[0])
        if not tiled and height * width > MAX_WHOLE_PIXELS:
            raise ImageError(
                f"{width}x{height} pixels are more than {MAX_WHOLE_PIXELS:,}, and windows can only be read from a "
                f"tiled TIFF; convert it: pyvips.Image.new_from_file({path.name!r}).tiffsave('{path.stem}-tiled.tif', "
                "tile=True, bigtiff=True)"
            )
        if any(offset + length > bytes_in_file for offset, length in zip(*tiles, strict=True)):
            raise ImageError("the file is cut off: some of its tiles are missing")
        if tiled:
            check_size(tags[_TILE_HEIGHT], tags[_TILE_WIDTH], settings.data.max_pixels)
            _check_memory(tags, width)
        with _faults() as libvips:
            load = getattr(libvips.Image, _LOADERS[kind])
            image = load(str(path), access="random" if tiled else "sequential", fail_on="error", revalidate=True)
            image = image if tiled else image.copy_memory()
            image = (image if image.interpretation in _PLAIN else image.colourspace("srgb")).autorot()

    def read(view: View) -> np.ndarray:
        with named_errors(path):
            return _window(image, view, settings)

    return read


def _check_memory(tags: Mapping[int, Any], width: int) -> None:
    """Refuse a tiled TIFF whose two rows of tiles would fill the memory."""
    across = -(-width // tags[_TILE_WIDTH]) + 1
    pixel = tags.get(_BANDS, 1) * -(-max(tags.get(_BITS, (1,))) // 8)
    needed = 2 * across * tags[_TILE_WIDTH] * tags[_TILE_HEIGHT] * pixel
    if needed > MAX_TILE_BYTES:
        raise ImageError(
            f"two rows of tiles of {tags[_TILE_WIDTH]}x{tags[_TILE_HEIGHT]} pixels take {needed // MB:,} MB; at most "
            f"{MAX_TILE_BYTES // MB:,} MB are kept; convert the file to smaller tiles"
        )


def _window(image: Any, view: View, settings: Settings) -> np.ndarray:
    """Read a window of an image of libvips as (h, w, in_channels) uint8."""
    with _faults() as libvips:  # a new region, since libvips would keep each cropped image for a while
        data = libvips.Region.new(image).fetch(view.left, view.top, view.width, view.height)
        array = np.frombuffer(data, libvips.vimage.FORMAT_TO_TYPESTR[image.format])
    array = array.reshape(view.height, view.width, image.bands)
    plain = array.dtype == np.uint8 and image.bands <= 4  # grey or RGB, perhaps transparent
    picture = Image.fromarray(array[..., 0] if image.bands == 1 else array) if plain else array
    return as_array(picture, settings.preprocess.in_channels, settings.data.white)


@contextmanager
def _faults() -> Iterator[Any]:
    """Yield pyvips, and raise libvips's messages as errors. For damaged tiles it only logs a message and continues."""
    try:
        libvips = importlib.import_module("pyvips")
    except (ImportError, OSError) as error:
        raise ImageError(
            "pictures of more than data.max_pixels are read by libvips, which can't be imported here "
            f"({error}); get it by: pip install 'rcnn[large]'"
        ) from None
    libvips.Error("")  # empties the global log, which may hold old messages
    try:
        yield libvips
        messages = libvips.Error("").detail
    except libvips.Error as error:
        messages = error.detail or error.message
    if messages.strip():
        raise ImageError(f"the image can't be read: {messages.strip().splitlines()[0]}")
