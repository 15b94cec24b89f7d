"""Limit the time and memory that opening and decoding an image file can take, whatever its content.

`data.max_pixels` limits pixels. Some files take work that is out of proportion to their pixels and bytes: JPEGs with
thousands of scans, headers of millions of parts, tags that all stand for the same megabytes. The limits here are
generous: no program writes such files for a picture.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, BinaryIO, cast

from PIL import Image

from rcnn.config.files import MB
from rcnn.errors import ImageError
from rcnn.images.jpeg2000 import check_jpeg2000

MAX_PIXELS = 178_956_970
"""Maximum number of pixels of an image by default."""
MAX_SCANS = 64
"""Number of scans that a JPEG of any size may have. Encoders write about ten."""
MAX_SCANNED_PIXELS = MAX_SCANS * MAX_PIXELS
"""Maximum number of pixels in all scans of a JPEG with more scans than that."""
MAX_READS = 200_000
"""Number of pieces that Pillow may read from a file of any size; a piece is a tag or a byte between two tags."""
MAX_CHUNKS = 1_000
"""Maximum number of chunks of a PNG besides those of its pixels. Pillow unpacks up to a megabyte from each of them."""
MAX_BLOCKS = 4_000_000
"""Maximum number of strips or tiles of a TIFF. Pillow keeps about 250 bytes for each of them."""
MAX_COMMENTS = 1_000
"""Maximum number of comments in a PPM of decimal numbers. Pillow copies a megabyte for each of them."""

_MIN_SCAN = 128 * 128  # pixels that are decoded while the header of a scan is
_SAMPLED = 32  # maximum side of the units in which a scan is coded, pixels
_JPEG_HEAD = 1 << 18  # bytes that contain most headers
_MAX_TAGS = 1 << 16
_BYTES_A_READ = 128  # a file may be read in pieces of this average length
_CONVERT = "; if you trust the file, convert it with another program"

_SOS = re.compile(rb"\xff\xda")
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not a restart marker, stuffed zero or filling
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_PIXEL_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")
_BLOCK_TAGS = (273, 324)  # offsets of strips, and of tiles


class MeteredFile(io.BufferedReader):
    """A file that fails if its reader takes far more pieces, or far more bytes, than the file holds.

    Pillow parses headers in Python, piece by piece, and reads each tag of a TIFF into memory.

    Args:
        raw: the file.
        size: its size, bytes.
    """

    def __init__(self, raw: io.FileIO | io.BytesIO, size: int) -> None:
        super().__init__(cast(io.RawIOBase, raw))
        self._reads = MAX_READS + size // _BYTES_A_READ
        self._bytes: int | None = 2 * size + MB

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes.

        Raises:
            ImageError: too many pieces or bytes have been read.
        """
        data = super().read(size)
        self._reads -= 1
        if self._bytes is not None:
            self._bytes -= len(data)
        if self._reads < 0 or (self._bytes is not None and self._bytes < 0):
            raise ImageError(f"the file has far more parts than a picture needs{_CONVERT}")
        return data

    def end_header(self) -> None:
        """Stop counting bytes: strips and tiles may share them, as blank ones do."""
        self._bytes = None


def check_header(file: MeteredFile, pages: int = 1) -> None:
    """Refuse a PNG or TIFF whose header alone would take Pillow too long or too much memory.

    Args:
        file: the image; its position is not changed.
        pages: number of pages of a TIFF that will be read.

    Raises:
        ImageError: it has more chunks before its pixels than `MAX_CHUNKS`, or more strips or tiles than `MAX_BLOCKS`.
    """
    head = file.peek(8)
    with _raw(file) as raw:
        if head.startswith(b"\x89PNG"):
            _check_chunks(raw, until=b"IDAT")
        elif head.startswith((b"II", b"MM")):
            _check_blocks(raw, pages)


def check_decoding(image: Image.Image) -> None:
    """Refuse an opened image whose decoding would take Pillow minutes.

    Each scan of a progressive JPEG passes over the entire picture, even one of ten bytes.

    Raises:
        ImageError: it is a JPEG with more than `MAX_SCANS` scans that cover more than `MAX_SCANNED_PIXELS`, a PNG with
            more than `MAX_CHUNKS` chunks besides those of its pixels, a PPM with more than `MAX_COMMENTS` comments, or
            a JPEG 2000 file of too many parts.
    """
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None):  # decoded already
        return
    with _raw(file) as raw:
        if image.format in ("JPEG", "MPO"):
            _check_scans(raw, *image.size)
        elif image.format == "PNG":
            _check_chunks(raw, until=b"IEND")
        elif image.format == "JPEG2000":
            check_jpeg2000(raw, _CONVERT)
        elif image.format == "PPM" and raw.read(2) in (b"P1", b"P2", b"P3"):
            _check_comments(raw)


@contextmanager
def _raw(file: Any) -> Iterator[BinaryIO]:
    """Yield a file without its buffer, from its beginning, and restore its position.

    The file is read, not mapped into memory: a process that reads a mapped file while another one shortens it is
    killed.
    """
    raw = getattr(file, "raw", file)
    place = raw.tell()
    raw.seek(0)
    try:
        yield raw
    finally:
        raw.seek(place)


def _check_scans(file: BinaryIO, width: int, height: int) -> None:
    """Refuse a JPEG with too many scans."""
    data = file.read(_JPEG_HEAD)
    several = _has_several_scans(data)
    if several is None:
        data += file.read()
        several = _has_several_scans(data)
    elif several:
        data += file.read()
    covered = -(-width // _SAMPLED) * -(-height // _SAMPLED) * _SAMPLED**2
    limit = max(MAX_SCANS, MAX_SCANNED_PIXELS // max(covered, _MIN_SCAN))
    # The number of its bytes is an upper limit, found quickly: thumbnails and later pictures have scans too.
    if not several or sum(1 for _ in islice(_SOS.finditer(data), limit + 1)) <= limit:
        return
    if sum(1 for _ in islice((kind for kind, _ in _markers(data) if kind == 0xDA), limit + 1)) > limit:
        raise ImageError(
            f"the JPEG has more than {limit:,} scans, each of which passes over {width}x{height} pixels{_CONVERT}"
        )


def _has_several_scans(data: bytes) -> bool | None:
    """Return whether a JPEG may have several scans: it is progressive, or its first one lacks a colour channel.

    None: no scan begins in `data`.
    """
    channels = 0
    for kind, place in _markers(data):
        if kind in _FRAMES:
            channels = int.from_bytes(data[place + 9 : place + 10], "big")
        if kind in _PROGRESSIVE:
            return True
        if kind == 0xDA:
            return int.from_bytes(data[place + 4 : place + 5], "big") < channels
    return None


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the kind and the place of each marker of a JPEG until its picture ends, as libjpeg finds them."""
    place = 2
    while match := _MARKER.search(data, place):
        place = match.start()
        kind = data[place + 1]
        if kind == 0xD9:
            return
        yield kind, place
        length = int.from_bytes(data[place + 2 : place + 4], "big") if kind != 0xD8 else 0
        place += 2 + length


def _check_chunks(file: BinaryIO, until: bytes) -> None:
    """Refuse a PNG with too many chunks before the first one of a kind."""
    place, count, kind = 8, 0, b""
    while kind != until:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        place += 12 + length
        count += kind not in _PIXEL_CHUNKS
        if count > MAX_CHUNKS:
            raise ImageError(f"the PNG has more than {MAX_CHUNKS:,} chunks besides its pixels{_CONVERT}")


def _check_comments(file: BinaryIO) -> None:
    """Refuse a PPM of decimal numbers with too many comments."""
    count = 0
    while piece := file.read(MB):
        count += piece.count(b"#")
        if count > MAX_COMMENTS:
            raise ImageError(f"the file has more than {MAX_COMMENTS:,} comments{_CONVERT}")


def _check_blocks(file: BinaryIO, pages: int) -> None:
    """Refuse a TIFF with too many strips or tiles on its first pages."""
    head = file.read(16)
    order, big = "<>"[head[:2] == b"MM"], 43 in head[2:4]
    number, offset, entry = (
        struct.Struct(order + code) for code in (("Q", "Q", "HHQQ") if big else ("H", "I", "HHII"))
    )
    place = 8 if big else 4
    with suppress(struct.error, OverflowError, OSError):  # cut off, which Pillow finds too
        for _ in range(pages):
            file.seek(place)
            file.seek(*offset.unpack(file.read(offset.size)))
            (count,) = number.unpack(file.read(number.size))
            place = file.tell() + count * entry.size
            for tag, _, values, _ in entry.iter_unpack(file.read(min(count, _MAX_TAGS) * entry.size)):
                if tag in _BLOCK_TAGS and values > MAX_BLOCKS:
                    raise ImageError(f"the TIFF has {values:,} strips or tiles; at most {MAX_BLOCKS:,} can be read")
