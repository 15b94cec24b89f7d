"""Read .npy files without holding more of them in memory than is needed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rcnn.config.files import check_regular
from rcnn.errors import ImageError
from rcnn.images.values import STRIP, check_floats, limit, other_channels, other_type, quantised

MAGIC = b"\x93NUMPY"
"""The beginning of every .npy file."""

_LONGEST_HEADER = 10_000


def open_array(path: Path, max_pixels: int, in_channels: int | None = None) -> np.memmap:
    """Map a .npy file into memory, and check its shape and type, before any value is read."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(MAGIC):
        raise ImageError("this is not an array as numpy.save writes it" if head else "the file is empty")
    if head[6] > 1 and int.from_bytes(head[8:12], "little") > _LONGEST_HEADER:
        raise ImageError("the header of the array is too long")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"the array has shape {array.shape}; expected (height, width) or (height, width, channels)")
    limit(array.shape[0], array.shape[1], max_pixels)
    channels = array.shape[2] if array.ndim == 3 else 1
    if in_channels is not None and channels not in (in_channels, 1):
        raise ImageError(other_channels(channels, in_channels))
    if array.size > 4 * max_pixels:
        raise ImageError(
            f"{array.size:,} values in {channels:,} channels are more than 4 times {max_pixels} pixels; if the file "
            "is to be trusted, raise data.max_pixels"
        )
    if array.dtype.kind not in "buif":
        raise ImageError(other_type(array))
    return array


def read_array(array: np.memmap, white: int | None) -> np.ndarray:
    """Read a mapped array as uint8."""
    if array.dtype.kind == "f":
        check_floats(pieces(array))
    pixels = np.empty(array.size, np.uint8)
    start = 0
    for piece in pieces(array):
        pixels[start : start + len(piece)] = quantised(piece, white)
        start += len(piece)
    return pixels.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")


def pieces(array: np.memmap) -> Iterator[np.ndarray]:
    """Yield the values of a mapped array in the order of the file. They are read: mapped pages would stay in memory."""
    with open(str(array.filename), "rb") as file:
        file.seek(array.offset)
        for start in range(0, array.size, STRIP):
            yield np.fromfile(file, array.dtype, min(STRIP, array.size - start))
