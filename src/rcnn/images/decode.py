"""Decode image files of any mode that Pillow opens to (H, W, C) uint8 arrays, with EXIF rotation applied."""

import errno
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO, FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from rcnn.config.files import MB, UnfitFile, check_regular, unfit_name
from rcnn.errors import ImageError, StorageError
from rcnn.images.storage import Location, RemotePath, image_location, local_copy, read_bytes, read_start
from rcnn.images.work import MAX_PIXELS, MeteredFile, check_decoding, check_header

STRIP = 1 << 18
"""Number of values or pixels that are converted at a time."""

_WHITE_16_BIT = 65535


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image of more than `max_pixels`."""
    if height * width > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than {max_pixels} pixels; if you trust the file, raise data.max_pixels"
        )


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
    """Scale integers in 0..white and floats in 0..1 to 0..255, and round. The range of floats is not checked."""
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
    """Return the message for values of a type that pixels can't have."""
    return f"pixels of type {array.dtype!s:.80} can't be used; expected uint8, uint16 or floats in 0..1"


def other_channels(channels: int, in_channels: int) -> str:
    """Return the message for an image whose number of channels differs from the setting."""
    return f"the image has {channels} channels; preprocess.in_channels is {in_channels}"


NPY_MAGIC = b"\x93NUMPY"
"""The beginning of every .npy file."""

_MAX_HEADER_BYTES = 10_000


def open_array(path: Path, max_pixels: int, in_channels: int | None = None) -> np.memmap:
    """Map a .npy file into memory, and check its shape and type before any value is read."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(NPY_MAGIC):
        raise ImageError("this is not an array as numpy.save writes it" if head else "the file is empty")
    if head[6] > 1 and int.from_bytes(head[8:12], "little") > _MAX_HEADER_BYTES:
        raise ImageError("the header of the array is too long")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"the array has shape {array.shape}; expected (height, width) or (height, width, channels)")
    check_size(array.shape[0], array.shape[1], max_pixels)
    channels = array.shape[2] if array.ndim == 3 else 1
    if in_channels is not None and channels not in (in_channels, 1):
        raise ImageError(other_channels(channels, in_channels))
    if array.size > 4 * max_pixels:
        raise ImageError(
            f"{array.size:,} values in {channels:,} channels are more than 4 times {max_pixels} pixels; "
            "if you trust the file, raise data.max_pixels"
        )
    if array.dtype.kind not in "buif":
        raise ImageError(other_type(array))
    return array


def read_array(array: np.memmap, white: int | None) -> np.ndarray:
    """Read a mapped array as uint8."""
    if array.dtype.kind == "f":
        check_floats(read_pieces(array))
    pixels = np.empty(array.size, np.uint8)
    for start, piece in zip(range(0, array.size, STRIP), read_pieces(array), strict=True):
        pixels[start : start + STRIP] = quantised(piece, white)
    return pixels.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")


def read_pieces(array: np.memmap) -> Iterator[np.ndarray]:
    """Yield the values of a mapped array in the order of the file. They are read: mapped pages would stay in memory."""
    with open(str(array.filename), "rb") as file:
        file.seek(array.offset)
        for start in range(0, array.size, STRIP):
            yield np.fromfile(file, array.dtype, min(STRIP, array.size - start))


IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".jp2", ".avif", ".npy"),
)
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Formats that Pillow may read (JPEG includes MPO). For some other formats, such as EPS, it would start programs."""

MAX_FILE_BYTES = 8_000 * MB
"""Maximum size of an image file, bytes."""

MAX_WHOLE_BYTES = 500 * MB
"""Maximum size of an image file that is read into memory completely, as remote ones are, bytes."""

_HEAD_BYTES = 1 << 16  # contain the headers of most images
_JPEG = b"\xff\xd8"
_STREAMED = ("TIFF", "PNG", "BMP", "PPM")  # files of other formats may be read into memory completely
_FOREIGN = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"icns": "ICNS",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"<svg": "SVG",
    b"\x89HDF": "HDF5",
    b"SIMPLE": "FITS",
    b"\xd7\xcd\xc6\x9a": "WMF",
    NPY_MAGIC: "NPY, whose name must end in .npy",
}
_ORIENTATION = 0x0112
_TURNS = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: array[::-1].swapaxes(0, 1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: array[:, ::-1].swapaxes(0, 1),
}
_open_lock = threading.Lock()


class Look(NamedTuple):
    """Properties of an image that only decoding shows.

    Attributes:
        largest: the largest value if values are integers of more than 8 bits, else None.
        transparent: whether any pixel is not opaque.
    """

    largest: int | None = None
    transparent: bool = False


def read_image(
    path: str | Location, *, white: int | None = None, max_pixels: int = MAX_PIXELS, in_channels: int | None = 3
) -> np.ndarray:
    """Read an image file, turned upright, as (H, W, in_channels) uint8.

    Transparent pixels get a white background. 16-bit values are divided by `white` (None: 65535); floats must lie in
    0..1. `in_channels` 1 is grey, 3 is RGB; other numbers need .npy arrays, images with as many bands, or TIFFs with
    as many grey pages. None leaves arrays unchanged and reads everything else as RGB, to draw the data.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, over `max_pixels`, or has other channels.
        OSError: there are no file handles left. All functions that read images raise it.
        StorageError: a remote location can't be reached, or may not be read, or a package that opens it is missing. All
            functions that read image files raise it.
    """
    path = image_location(path)
    with named_errors(path):
        if path.suffix.lower() == ".npy":
            with local_copy(path, MAX_WHOLE_BYTES) as file:
                return _channels(read_array(open_array(file, max_pixels, in_channels), white), in_channels)
        return _read(path, white, max_pixels, in_channels or 3)


def read_encoded(
    data: bytes | bytearray | memoryview,
    *,
    white: int | None = None,
    max_pixels: int = MAX_PIXELS,
    in_channels: int = 3,
) -> np.ndarray:
    """Read the bytes of an image file as `read_image` reads the file. Arrays of numpy are not read.

    Raises:
        ImageError: as for `read_image`; the message names no file.
    """
    content = bytes(data)
    with explained_errors(content):
        return _read(content, white, max_pixels, in_channels)


def _read(file: Location | bytes, white: int | None, max_pixels: int, in_channels: int) -> np.ndarray:
    with open_image(file, max_pixels, pages=in_channels + 1) as image:
        if in_channels not in (1, 3) and _has_pages(image, in_channels):
            return np.stack([_page(image, index, max_pixels, white) for index in range(in_channels)], axis=-1)
        array, orientation = _pixels(image, in_channels, white), _orientation(image)
    del image  # before its pixels are copied once more
    return _upright(array, orientation)


def read_rgb(path: str | Location, *, white: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file as `read_image` does for 3 channels, as a Pillow image; most need no copy of their pixels.

    Raises:
        ImageError, OSError, StorageError: as for `read_image`.
    """
    path = image_location(path)
    if path.suffix.lower() != ".npy":
        with named_errors(path), open_image(path, max_pixels) as image:
            if image.mode == "RGB" and not image.has_transparency_data and _orientation(image) == 1:
                load(image)
                return image
    return Image.fromarray(read_image(path, white=white, max_pixels=max_pixels))


def as_array(
    image: np.ndarray | Image.Image | torch.Tensor, in_channels: int = 3, white: int | None = None
) -> np.ndarray:
    """Convert an image in memory to (H, W, in_channels) uint8, by the rules of `read_image`.

    Accepts (H, W) and (H, W, C) arrays, (H, W) and (C, H, W) tensors, and Pillow images, which are turned upright.

    Raises:
        ImageError: the shape, values or channels can't be used.
    """
    if isinstance(image, Image.Image):
        if not min(image.size):
            raise ImageError(f"the image is empty: {image.width} x {image.height} pixels")
        with explained_errors():  # its file is read now, and may be damaged
            return _from_pillow(image, in_channels, white)
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = image
    if not array.size:
        raise ImageError(f"the image is empty: its shape is {tuple(image.shape)}")
    if array.ndim not in (2, 3):
        raise ImageError(f"the image has shape {tuple(image.shape)}; expected height, width and channels")
    if array.dtype.kind == "f":
        check_floats([array])
    return _channels(quantised(array, white), in_channels)


def _from_pillow(image: Image.Image, in_channels: int, white: int | None) -> np.ndarray:
    """Load an image as (H, W, in_channels) uint8, rotated according to its EXIF data."""
    return _upright(_pixels(image, in_channels, white), _orientation(image))


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) pixels according to an EXIF orientation, 1..8."""
    return array if orientation == 1 else np.ascontiguousarray(_TURNS[orientation](array))


def _pixels(image: Image.Image, in_channels: int, white: int | None) -> np.ndarray:
    """Load an image as (H, W, in_channels) uint8, without rotating it. Strip by strip, which saves memory."""
    load(image)  # rotates a TIFF and drops its orientation tag
    deep = _is_deep(image)
    if image.mode == "F":
        check_floats(np.array(strip) for strip in _strips(image))
    array, top = np.empty((image.height, image.width, in_channels), np.uint8), 0
    for strip in _strips(image):
        if deep:
            part = _channels(quantised(np.array(strip), white), in_channels)
        elif in_channels not in (1, 3):
            part = _channels(np.array(strip), in_channels)
        else:
            if strip.has_transparency_data:
                strip = strip.convert("RGBA")
                strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
            mode = "L" if in_channels == 1 else "RGB"
            part = _channels(np.array(strip if strip.mode == mode else strip.convert(mode)), in_channels)
        if len(part) == image.height:
            return part
        array[top : top + len(part)] = part
        top += len(part)
    return array


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image in strips of rows, from top to bottom, or a small one in one piece, which takes less time."""
    rows = max(1, STRIP // image.width)
    if 4 * rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def image_size(path: str | Location, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (height, width) of an image file after EXIF rotation, from its header alone.

    Of a remote file, only the first part is read if that is enough.

    Raises:
        ImageError: the file is missing, empty, not an image or over `max_pixels`.
    """
    path = image_location(path)
    with named_errors(path):
        if path.suffix.lower() == ".npy":
            with local_copy(path, MAX_WHOLE_BYTES) as file:
                height, width = open_array(file, max_pixels).shape[:2]
                return height, width
        if isinstance(path, RemotePath):
            head = read_start(path, _HEAD_BYTES)
            if len(head) < _HEAD_BYTES:
                with explained_errors(head):
                    return _size_of_image(head, max_pixels)
            # The marker that ends the header of a JPEG is read before its size is known. A TIFF or PNG may have its
            # orientation after the pixels.
            if head.startswith(_JPEG):
                with suppress(Exception):
                    return _size_of_image(head, max_pixels)
        return _size_of_image(path, max_pixels)


def _size_of_image(file: Location | bytes, max_pixels: int) -> tuple[int, int]:
    with open_image(file, max_pixels) as image:
        width, height = image.size
        # Pillow rotates TIFFs itself and reports their rotated size.
        turned = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if turned else (height, width)


def verify_image(path: str | Location, *, max_pixels: int = MAX_PIXELS) -> Look:
    """Decode an image file completely.

    Raises:
        ImageError: as for `read_image`, but with any number of channels.
    """
    path = image_location(path)
    with named_errors(path):
        if path.suffix.lower() == ".npy":
            with local_copy(path, MAX_WHOLE_BYTES) as file:
                array = open_array(file, max_pixels)
                if array.dtype.kind == "f":
                    check_floats(read_pieces(array))
                deep = array.dtype.kind in "iu" and array.dtype.itemsize > 1
                return Look(max(int(piece.max()) for piece in read_pieces(array)) if deep else None)
        with open_image(path, max_pixels) as image:
            load(image)
            if not _is_deep(image):
                return Look(transparent=any(map(_is_transparent, _strips(image))))
            if image.mode == "F":
                check_floats(np.array(strip) for strip in _strips(image))
                return Look()
            return Look(max(int(np.array(strip).max()) for strip in _strips(image)))


@contextmanager
def named_errors(path: Location) -> Iterator[None]:
    """Turn any error with a file into an `ImageError` that names the file."""
    if reason := next(filter(None, map(unfit_name, path.parts)), None):
        raise ImageError(f"{path}: this name {reason}; rename the file or folder")
    try:
        with explained_errors(path if isinstance(path, Path) else None):
            yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


@contextmanager
def explained_errors(file: Path | bytes | None = None) -> Iterator[None]:
    """Turn any error with an image into an `ImageError` that gives the reason. `file` is what is read, if it is known.

    Raises:
        OSError: there are no file handles left.
        StorageError: of a remote location.
    """
    try:
        with warnings.catch_warnings():  # Pillow warns of damage, such as in EXIF data, without naming the file
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except (ImageError, StorageError):
        raise
    except UnfitFile as error:
        raise ImageError(f"{error}") from None
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(_not_an_image(file) if file is not None else "this is not an image") from None
    except MemoryError:
        raise ImageError("the image does not fit into the memory") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # the image may be sound
            limit = "`ulimit -n` sets the limit" if error.errno == errno.EMFILE else "the system has no more"
            name = str(file) if isinstance(file, Path) else None
            raise OSError(error.errno, f"{error.strerror}; {limit}", name) from None
        raise ImageError(f"the image can't be read: {error}") from None
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        raise ImageError(f"the image can't be read: {error or type(error).__name__}") from None


def _not_an_image(file: Path | bytes) -> str:
    """Return why Pillow can't read a file."""
    with file.open("rb") if isinstance(file, Path) else BytesIO(file[:32]) as content:
        head = content.read(32)
    if not head:
        return "the file is empty"
    if _size_of(file) > MAX_WHOLE_BYTES:
        return f"this is not an image; above {MAX_WHOLE_BYTES // MB} MB, only {', '.join(_STREAMED)} are read"
    name = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        name = "HEIC, a video, or an AVIF that is damaged"
    return f"this is {name}: convert it to PNG or JPEG" if name else "this is not an image"


def _size_of(file: Path | bytes) -> int:
    """Return the size of a file, bytes.

    Raises:
        UnfitFile: as for `check_regular`.
    """
    return check_regular(file, MAX_FILE_BYTES).st_size if isinstance(file, Path) else len(file)


@contextmanager
def open_image(file: Location | bytes, max_pixels: int, pages: int = 1) -> Iterator[Image.Image]:
    """Open an image of at most `max_pixels`, reading only its header. `load` reads its pixels, within the context.

    A remote file is read completely.

    Args:
        file: the file, or its content.
        max_pixels: the limit.
        pages: number of pages of a TIFF that will be read.
    """
    if isinstance(file, RemotePath):
        content = read_bytes(file, MAX_WHOLE_BYTES)
        with explained_errors(content), open_image(content, max_pixels, pages) as image:
            yield image
        return
    size = _size_of(file)
    with MeteredFile(FileIO(file) if isinstance(file, Path) else BytesIO(file), size) as metered:
        check_header(metered, pages)
        with _open_lock:  # Pillow's own limit is global; ours is an argument
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(metered, formats=PILLOW_FORMATS if size <= MAX_WHOLE_BYTES else _STREAMED)
            finally:
                Image.MAX_IMAGE_PIXELS = before
        if isinstance(file, Path):  # lets Pillow map pixels that are not compressed
            image.filename = str(file)  # pyrefly: ignore[missing-attribute]
        metered.end_header()
        check_size(image.height, image.width, max_pixels)
        yield image


def load(image: Image.Image) -> None:
    """Decode an opened image, whose work is limited as `rcnn.images.work` describes.

    Raises:
        ImageError: it would take too much work.
    """
    check_decoding(image)
    image.load()


def _is_deep(image: Image.Image) -> bool:
    """Return whether pixels have more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is not opaque; many files have an alpha channel without effect."""
    return image.has_transparency_data and bool((np.array(image.convert("RGBA").getchannel("A")) < 255).any())


def _has_pages(image: Image.Image, count: int) -> bool:
    """Return whether a file is a TIFF of exactly so many pages. More are not counted, since there may be millions."""
    if image.format != "TIFF":
        return False
    try:
        image.seek(count - 1)
        image.seek(count)
    except EOFError:
        return image.tell() == count - 1
    finally:
        image.seek(0)
    return False


def _page(image: Image.Image, index: int, max_pixels: int, white: int | None) -> np.ndarray:
    """Read one page of a TIFF as (H, W) uint8."""
    image.seek(index)
    check_size(image.height, image.width, max_pixels)
    return _from_pillow(image, 1, white)[..., 0]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 if it is missing or damaged."""
    if image.format == "PNG":
        check_decoding(image)  # Pillow may decode it, since the orientation may follow the pixels
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data is no reason to refuse good pixels
        return 1
    return value if value in _TURNS else 1


def _channels(array: np.ndarray, in_channels: int | None) -> np.ndarray:
    """Turn (H, W) or (H, W, C) into (H, W, in_channels), or (H, W, C) if None; grey is repeated for RGB."""
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1 and in_channels == 3:
        array = array.repeat(3, axis=2)
    if array.shape[2] != (in_channels or array.shape[2]):
        raise ImageError(other_channels(array.shape[2], in_channels or 0))
    return np.ascontiguousarray(array)
