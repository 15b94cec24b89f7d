"""Count the parts into which a JPEG 2000 file divides its picture (ISO/IEC 15444-1, annexes A, B and I).

A decoder allocates hundreds of bytes for each code-block and precinct before it reads a pixel, and visits each precinct
once per quality layer.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from rcnn.errors import ImageError

MAX_CODE_BLOCKS = 4_000_000
"""Maximum number of code-blocks of a picture. The default size gives one for 4,096 pixels of a channel."""
MAX_PACKETS = 20_000_000
"""Maximum number of packets: precincts times quality layers."""

_MAX_PARTS = 200_000  # boxes, marker segments and tile-parts
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SIZES = struct.Struct(">2x8IH")  # after the length: capabilities, grid and tiles, number of channels


class _Coding(NamedTuple):
    """How tiles are divided.

    Attributes:
        layers: number of quality layers; None for a channel, which has those of its tile.
        block: (width, height) of a code-block.
        precincts: (width, height) of a precinct of each resolution, the lowest first.
    """

    layers: int | None
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


def check_jpeg2000(file: BinaryIO, advice: str) -> None:
    """Refuse a file that divides its picture into too many parts. Any other damage is left to the decoder.

    Every tile is counted with the worst of all codings in the file.

    Args:
        file: the file, read from its beginning.
        advice: the end of the message.

    Raises:
        ImageError: there are too many parts.
    """
    try:
        start = _codestream(file)
        width, height, left, top, tile_width, tile_height, *_, channels = _sizes(file, start)
        codings = [*_codings(file, start, channels)]
    except (struct.error, IndexError):  # cut off
        return
    width, height = width - left, height - top
    layers = max((coding.layers or 1 for coding in codings), default=1)
    if min(width, height, tile_width, tile_height) < 1:
        return
    sides = min(width, tile_width), min(height, tile_height)
    tiles = -(-width // tile_width) * -(-height // tile_height) * channels
    blocks, precincts = map(max, zip((0, 0), *(_parts(sides, coding) for coding in codings), strict=True))
    if tiles * blocks > MAX_CODE_BLOCKS or tiles * precincts * layers > MAX_PACKETS:
        raise ImageError(f"the JPEG 2000 file divides {width}x{height} pixels into too many parts{advice}")


def _parts(sides: tuple[int, int], coding: _Coding) -> tuple[int, int]:
    """Return the number of code-blocks and of precincts of one channel of a tile."""
    blocks = precincts = 0
    for level, precinct in enumerate(reversed(coding.precincts)):
        across = [-(-side // (1 << level)) for side in sides]
        size = [min(part, max(1, whole // 2)) for part, whole in zip(coding.block, precinct, strict=True)]
        blocks += -(-across[0] // size[0]) * -(-across[1] // size[1])
        precincts += -(-across[0] // precinct[0]) * -(-across[1] // precinct[1])
    return blocks, precincts


def _codestream(file: BinaryIO) -> int:
    """Return where the codestream begins, in a file of boxes or alone."""
    place = 0
    if file.read(2) == b"\xff\x4f":
        return place
    for _ in range(_MAX_PARTS):
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if kind == b"jp2c":
            return file.tell()
        place += max(8, length)
    raise ImageError(f"the JPEG 2000 file has more than {_MAX_PARTS:,} boxes")


def _sizes(file: BinaryIO, start: int) -> tuple[int, ...]:
    file.seek(start + 2)
    kind, _ = struct.unpack(">HH", file.read(4))
    if kind != _SIZ:
        raise IndexError
    return _SIZES.unpack(file.read(_SIZES.size))


def _codings(file: BinaryIO, start: int, channels: int) -> Iterator[_Coding]:
    """Yield the codings in the header of the file and in those of its tile-parts."""
    place, end = start + 2, 0
    for _ in range(_MAX_PARTS):
        file.seek(place)
        head = file.read(4)
        if len(head) < 4:
            return
        kind, length = struct.unpack(">HH", head)
        if kind == _SOT:
            _, size = struct.unpack(">HI", file.read(6))
            end = place + size if size else 0
        elif kind in (_COD, _COC):
            yield _coding(kind, file.read(length - 2), 2 if channels > 256 else 1)
        if kind == _SOD:
            if not end:
                return
            place = end
        else:
            place += 2 + length
    raise ImageError(f"the JPEG 2000 file has more than {_MAX_PARTS:,} parts")


def _coding(kind: int, data: bytes, index_bytes: int) -> _Coding:
    if kind == _COC:
        data = data[index_bytes:]
    layers = int.from_bytes(data[2:4], "big") if kind == _COD else None
    values = data[5:] if kind == _COD else data[1:]
    levels, width, height = values[0], values[1], values[2]
    own = data[0] & 1
    sizes = [values[5 + level] if own else 0xFF for level in range(levels + 1)]
    precincts = tuple((1 << (size & 15), 1 << (size >> 4)) for size in sizes)
    return _Coding(layers, (1 << min(width + 2, 16), 1 << min(height + 2, 16)), precincts)
