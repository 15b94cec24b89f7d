"""Read cells of text and numbers from a MATLAB file of version 5 to 7, the format of Selective Search's results.

SciPy's reader crashes on some damaged files. Tags and layout: "MAT-File Format", MathWorks.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.config.files import MB, check_regular

MAX_MAT_BYTES = 1500 * MB
"""Maximum size of a file, and of its unpacked contents, bytes."""

_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
    **{16: "u1", 17: "u2"},
}
"""Type of an element's data -> NumPy's name; 16 and 17 are UTF-8 and UTF-16."""
_PACKED, _MATRIX = 15, 14
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_COMPLEX = 0x0800


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the variables with these names: a cell as a list, text as str, numbers as an array.

    Raises:
        OSError: the file can't be read, or is too large.
        ValueError: it is damaged, or one of the variables has another type.
        NotImplementedError: it has version 7.3.
    """
    check_regular(path, MAX_MAT_BYTES)
    try:
        return _variables(memoryview(path.read_bytes()), names)  # slices share its memory, and so do the arrays
    except (LookupError, StopIteration, RecursionError, OverflowError, struct.error, zlib.error):
        raise ValueError("it is damaged or cut off") from None


def _variables(data: memoryview, names: tuple[str, ...]) -> dict[str, Any]:
    endian = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if endian is None:
        raise ValueError("it does not begin like a MATLAB file")
    if struct.unpack_from(endian + "H", data, 124)[0] >= 0x0200:
        raise NotImplementedError("version 7.3")
    variables: dict[str, Any] = {}
    for kind, content in _elements(data[128:], endian):
        if kind == _PACKED:
            unpacked = zlib.decompressobj()
            content = memoryview(unpacked.decompress(content, MAX_MAT_BYTES))
            if unpacked.unconsumed_tail or not unpacked.eof:
                raise ValueError("it is cut off, or too large when unpacked")
            (kind, content), *_ = _elements(content, endian)
        if kind == _MATRIX:
            name, value = _matrix(content, endian, names)
            variables[name] = value
    return {name: variables[name] for name in names if name in variables}


def _elements(data: memoryview, endian: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and data of consecutive elements."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(endian + "II", data, at)
        start, padding = at + 8, -size % 8 if kind != _PACKED else 0
        if kind >> 16:  # a small element: its size is in the upper half, its data in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            padding = 4 - size
        if padding < 0 or start + size > len(data):
            raise ValueError("it is damaged or cut off")
        yield kind, data[start : start + size]
        at = start + size + padding


def _matrix(data: memoryview, endian: str, names: tuple[str, ...] | None = None) -> tuple[str, Any]:
    """Return name and value of an array; None for the value if its name is not among `names`."""
    parts = _elements(data, endian)
    (_, flags), (_, dimensions), (_, name) = next(parts), next(parts), next(parts)
    title = bytes(name).decode("latin-1")
    if names is not None and title not in names:
        return title, None
    kind = int(np.frombuffer(flags, endian + "u4")[0])
    shape = np.frombuffer(dimensions, endian + "i4").tolist()
    count = math.prod(shape)
    if min(shape) < 0:
        raise ValueError(f"`{title}` has the shape {shape}")
    if kind & 0xFF == _CELL:
        cells = [_matrix(part, endian)[1] for part_kind, part in parts if part_kind == _MATRIX]
        if len(cells) != count:
            raise ValueError(f"expected {count} cells, found {len(cells)}")
        return title, cells
    if kind & 0xFF not in (_CHAR, *_NUMERIC) or kind & _COMPLEX:
        raise ValueError(f"`{title}` holds neither cells nor text nor real numbers")
    stored, raw = next(parts) if count else (2, memoryview(b""))
    values = np.frombuffer(raw, endian + _NUMBERS[stored])
    if kind & 0xFF == _CHAR:
        return title, bytes(values).decode("utf-8") if stored == 16 else "".join(map(chr, values.tolist()))
    return title, values.reshape(shape, order="F")
