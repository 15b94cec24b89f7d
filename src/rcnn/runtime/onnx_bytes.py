"""Bound the parts of an ONNX file before protobuf parses it, since an empty message of two bytes becomes a hundred."""

from collections.abc import Iterator

from rcnn.config.files import MB

MAX_PARTS = 200_000
"""Maximum number of fields of the model, its graph and its initializers, of which the largest preset has 2,700."""
MAX_OTHER_BYTES = 16 * MB
"""Maximum size of everything but weights. The largest preset has 1.1 MB."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of fields: the graph of a model, a tensor of a graph, and the bytes of a tensor."""
_SIZES = {1: 8, 5: 4}
"""Wire type -> bytes of a number of fixed length."""
_VARINT, _BYTES = 0, 2


def check_parts(data: bytes) -> None:
    """Check the number of parts of a serialised `onnx.ModelProto`, and their size without weights.

    Raises:
        ValueError: there are too many, they are too large, or the bytes are no protobuf message.
    """
    weights = parts = 0
    for field, start, end in _fields(data, 0, len(data)):
        parts += 1
        for inner, first, last in _fields(data, start, end) if field == _GRAPH else ():
            parts += 1
            for innermost, begin, stop in _fields(data, first, last) if inner == _INITIALIZER else ():
                parts += 1
                weights += stop - begin if innermost == _RAW_DATA else 0
            if parts > MAX_PARTS:
                raise ValueError(f"its graph has over {MAX_PARTS:,} parts")
        if parts > MAX_PARTS:
            raise ValueError(f"it has over {MAX_PARTS:,} parts")
    if len(data) - weights > MAX_OTHER_BYTES:
        raise ValueError(f"it has over {MAX_OTHER_BYTES // MB} MB besides weights")


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start of its content, end) of each field of a message."""
    while start < end:
        key, start = _varint(data, start)
        kind = key & 7
        if kind == _VARINT:
            stop = _varint(data, start)[1]
        elif kind == _BYTES:
            length, start = _varint(data, start)
            stop = start + length
        elif kind in _SIZES:
            stop = start + _SIZES[kind]
        else:
            raise ValueError("its fields are no protobuf")
        if stop > end:
            raise ValueError("it ends early")
        yield key >> 3, start, stop
        start = stop


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= len(data):
            raise ValueError("it ends early")
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise ValueError("its fields are no protobuf")
