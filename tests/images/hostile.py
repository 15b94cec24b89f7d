"""Write well-formed image files that declare or repeat far more work than their size suggests."""

import struct
import zlib
from collections.abc import Mapping, Sequence

Size = tuple[int, int]
Entry = tuple[int, Sequence[int]]
"""Type of the values of a TIFF's tag (3: 16 bits, 4: 32, 16: 64), and the values."""

_CODES = {3: "H", 4: "I", 16: "Q"}


def jpeg_segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(
    size: Size,
    scans: int,
    *,
    components: int = 3,
    progressive: bool = True,
    refine: bool = True,
    interval: int = 0,
    before: bytes = b"",
    between: bytes = b"",
) -> bytes:
    """Return a black JPEG.

    Args:
        size: (height, width), pixels.
        scans: number of scans. In a progressive file, all but the first contain nothing but runs of empty blocks.
        components: number of colour channels.
        progressive: whether the later scans are progressive; otherwise the file has one scan per component, repeated.
        refine: whether the later scans refine coefficients, which takes longer than their first bits do.
        interval: blocks between restart markers; 0: there are none.
        before: segments before the frame, such as a thumbnail.
        between: segments before each later scan.
    """
    height, width = size
    blocks = -(-height // 8) * -(-width // 8)
    channels = range(1, components + 1)
    frame = struct.pack(">BHHB", 8, height, width, components) + b"".join(bytes((n, 0x11, 0)) for n in channels)
    tables = jpeg_segment(0xDB, bytes(1) + b"\x10" * 64)
    tables += jpeg_segment(0xC4, bytes((0x00, 1, *[0] * 15, 0)))  # DC: the code 0 is no difference
    tables += jpeg_segment(
        0xC4, bytes((0x10, 1, 1, *[0] * 14, 0xE0 if progressive else 0, 0))
    )  # AC: 0 ends 16384 blocks
    head = b"\xff\xd8" + before + jpeg_segment(0xC2 if progressive else 0xC0, frame) + tables
    head += jpeg_segment(0xDD, struct.pack(">H", interval)) if interval else b""

    def scan(chosen: Sequence[int], start: int, end: int, approximation: int, bits: int) -> bytes:
        """Return a scan whose blocks have so many zero bits in total, apart from those of restart intervals."""
        header = bytes((len(chosen), *(byte for n in chosen for byte in (n, 0)), start, end, approximation))
        pieces = -(-blocks // interval) if interval else 1
        content = [bytes(-(-bits // (8 * pieces)) or 1)] * pieces
        restarts = [bytes((0xFF, 0xD0 + n % 8)) for n in range(pieces - 1)]
        joined = b"".join(part for pair in zip(content, [*restarts, b""], strict=True) for part in pair)
        return jpeg_segment(0xDA, header) + joined

    if not progressive:
        every = [scan([1 + n % components], 0, 63, 0, 2 * blocks) for n in range(scans)]
        return head + between.join(every) + b"\xff\xd9"
    first = scan(channels, 0, 0, 0, blocks * components)
    later = scan([1], 1, 63, 0x10 if refine else 0, 15 * -(-blocks // (1 << 14)))
    return head + first + (between + later) * (scans - 1) + b"\xff\xd9"


def tiff(
    directories: Sequence[Mapping[int, Entry]],
    content: bytes,
    *,
    big: bool = False,
    order: str = "<",
    following: int | None = None,
) -> bytes:
    """Return a TIFF of directories, each tag -> its type and values; `content` follows the header.

    Args:
        directories: the pages.
        content: begins at byte 16.
        big: whether it is a BigTIFF, with offsets of 64 bits.
        order: of the bytes, `<` or `>`.
        following: offset after the last directory, 0 unless given.
    """
    offset, count, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    room = struct.calcsize(f"={offset}")
    magic = b"II" if order == "<" else b"MM"
    starts, parts = list[int](), bytearray(content)
    for tags in directories:
        blobs: dict[int, bytes] = {}
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
            if len(data) > room:
                parts += bytes(len(parts) % 2)
                data, where = struct.pack(f"{order}{offset}", 16 + len(parts)), data
                parts += where
            blobs[tag] = data.ljust(room, b"\0")
        parts += bytes(len(parts) % 2)
        starts.append(16 + len(parts))
        parts += struct.pack(f"{order}{count}", len(tags))
        for tag, (kind, values) in sorted(tags.items()):
            parts += struct.pack(f"{order}{entry}", tag, kind, len(values)) + blobs[tag]
        parts += bytes(room)
    for number, start in enumerate(starts):  # links to the next directory
        length = len(directories[number]) * struct.calcsize(f"={entry}{room}s") + struct.calcsize(f"={count}")
        following_start = starts[number + 1] if number + 1 < len(starts) else following or 0
        struct.pack_into(f"{order}{offset}", parts, start - 16 + length, following_start)
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, starts[0]) if big else struct.pack(f"{order}HI", 42, starts[0])
    return (magic + header).ljust(16, b"\0") + bytes(parts)


def tile_tags(
    size: Size, tile: Size, *, bands: int = 3, big: bool = False, length: int, count: int
) -> dict[int, Entry]:
    """Return the tags of a picture whose `count` tiles are one shared block of `length` bytes, packed by deflate."""
    kind = 16 if big else 4
    return {
        256: (4, [size[1]]),
        257: (4, [size[0]]),
        258: (3, [8] * bands),
        259: (3, [8]),
        262: (3, [2 if bands == 3 else 1]),
        277: (3, [bands]),
        284: (3, [1]),
        322: (4, [tile[1]]),
        323: (4, [tile[0]]),
        324: (kind, [16] * count),
        325: (kind, [length] * count),
    }


def tiled(size: Size, tile: Size, *, bands: int = 3, big: bool = False) -> bytes:
    """Return a TIFF whose tiles are one shared black block."""
    block = zlib.compress(bytes(tile[0] * tile[1] * bands), 9)
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    return tiff([tile_tags(size, tile, bands=bands, big=big, length=len(block), count=count)], block, big=big)
