"""Pictures of more than `data.max_pixels`: libvips reads windows of them (extra `large`)."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.images.batch import Size
from rcnn.images.decode import as_array, image_size, limit, named_errors, open_image
from rcnn.images.views import View

MAX_WHOLE_PIXELS = 400_000_000
"""Pixels of a picture whose format can only be decoded as a whole."""

_LOADERS = {"JPEG": "jpegload", "MPO": "jpegload", "PNG": "pngload", "TIFF": "tiffload", "WEBP": "webpload"}
_PLAIN = ("b-w", "srgb", "rgb", "grey16", "rgb16", "multiband")  # libvips's names of grey, RGB, and bands of any kind
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325  # tags of a TIFF


def large_size(path: Path, settings: Settings) -> Size | None:
    """The (height, width) of an image file that is to be read by windows; None: it is to be read as a whole.

    By windows are read, with `predict.tile`, images of more than `data.max_pixels`; arrays in .npy files are not.

    Raises:
        ImageError: as for `image_size`.
    """
    if settings.predict.tile == "off" or path.suffix.lower() == ".npy":
        return None
    height, width = image_size(path, max_pixels=sys.maxsize)
    return (height, width) if height * width > settings.data.max_pixels else None


def open_windows(path: Path, window: Size, settings: Settings) -> Callable[[View], np.ndarray]:
    """Open an image file of any size. Of a TIFF in tiles only windows are read, other files are decoded into memory.

    Args:
        path: the file.
        window: (height, width) of the largest window that will be asked for.
        settings: `data.white`, `data.max_pixels` and `preprocess.in_channels` are read.

    Returns:
        What reads the window of a view as (h, w, in_channels) uint8, upright, by the rules of `read_image`; it raises
        `ImageError`.

    Raises:
        ImageError: a window has more than `data.max_pixels`; the file is damaged, of a format that libvips does not
            read, or of one that can only be decoded as a whole and larger than `MAX_WHOLE_PIXELS`; libvips is missing.
    """
    with named_errors(path):
        limit(*window, settings.data.max_pixels)
        with open_image(path, sys.maxsize) as header:
            kind, (width, height) = header.format or "", header.size
            tags = header.tag_v2 if kind == "TIFF" else {}  # type: ignore[attr-defined]
            tiles = list(zip(tags.get(_TILE_OFFSETS, ()), tags.get(_TILE_BYTES, ()), strict=True))
        if kind not in _LOADERS:
            limit(height, width, settings.data.max_pixels)
        if not tiles and height * width > MAX_WHOLE_PIXELS:
            raise ImageError(
                f"{width}x{height} pixels are more than {MAX_WHOLE_PIXELS:,}, and only of a TIFF in tiles windows can "
                f"be read; convert it: pyvips.Image.new_from_file({path.name!r}).tiffsave('{path.stem}-tiled.tif', "
                "tile=True, bigtiff=True)"
            )
        if any(offset + length > path.stat().st_size for offset, length in tiles):
            raise ImageError("the file is cut off: tiles of it are missing")
        if tiles:
            limit(tags[_TILE_HEIGHT], tags[_TILE_WIDTH], settings.data.max_pixels)
        with _faults() as libvips:
            load = getattr(libvips.Image, _LOADERS[kind])
            image = load(str(path), access="random" if tiles else "sequential", fail_on="error", revalidate=True)
            image = image if tiles else image.copy_memory()
            image = (image if image.interpretation in _PLAIN else image.colourspace("srgb")).autorot()

    def read(view: View) -> np.ndarray:
        with named_errors(path):
            return _window(image, view, settings)

    return read


def _window(image: Any, view: View, settings: Settings) -> np.ndarray:
    """Read a window of an image of libvips as (h, w, in_channels) uint8."""
    with _faults() as libvips:  # a region of its own, since libvips would keep each cropped image for a while
        data = libvips.Region.new(image).fetch(view.left, view.top, view.width, view.height)
        array = np.frombuffer(data, libvips.vimage.FORMAT_TO_TYPESTR[image.format])
    array = array.reshape(view.height, view.width, image.bands)
    plain = array.dtype == np.uint8 and image.bands <= 4  # grey or RGB, perhaps transparent
    picture = Image.fromarray(array[..., 0] if image.bands == 1 else array) if plain else array
    return as_array(picture, settings.preprocess.in_channels, settings.data.white)


@contextmanager
def _faults() -> Iterator[Any]:
    """Provide pyvips, and raise what libvips says of a file. Of damaged tiles it only takes a note, and goes on."""
    try:
        libvips = importlib.import_module("pyvips")
    except (ImportError, OSError) as error:
        raise ImageError(
            "pictures of more than data.max_pixels are read by libvips, which can't be imported here "
            f"({error}); get it by: pip install 'rcnn[large]'"
        ) from None
    libvips.Error("")  # takes all notes, also old ones, out of their common place
    try:
        yield libvips
        notes = libvips.Error("").detail
    except libvips.Error as error:
        notes = error.detail or error.message
    if notes.strip():
        raise ImageError(f"the image can't be read: {notes.strip().splitlines()[0]}")
