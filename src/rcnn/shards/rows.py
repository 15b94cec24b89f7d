"""Rows of predictions, and the files that hold them: JSON lines and Parquet."""

import importlib
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.errors import DataError, ImageError, UnavailableError
from rcnn.images.sources import NamedImage
from rcnn.result import Result, as_utf8

Row = dict[str, Any]
"""A picture: `name`, `path`, `height`, `width`; lists of `boxes`, `scores`, `labels` and `names`; and `error`.

Boxes are [x1, y1, x2, y2] in pixels of the picture, best first. All numbers of boxes are exact float32. If the picture
can't be read, `error` is the reason, `height` and `width` are None, and the lists are empty.
"""

_GROUP_ROWS = 1000
"""Rows that are converted to Parquet together."""
_READ_ROWS = 64
"""Rows that are read from a Parquet file together."""

by_name: Callable[[Row], str] = itemgetter("name")


def row_of(result: Result) -> Row:
    """Return the row of a result."""
    height, width = result.size
    return {
        **_named(result.origin.name, result.path or ""),
        **{"height": height, "width": width},
        **result.to_columns(),
        "error": None,
    }


def row_of_error(image: NamedImage, error: ImageError) -> Row:
    """Return the row of a picture that can't be read."""
    nothing: dict[str, Any] = {"boxes": [], "scores": [], "labels": [], "names": []}
    return {
        **_named(image.name, str(image.image)),
        **{"height": None, "width": None},
        **nothing,
        "error": as_utf8(str(error)),
    }


def _named(name: str, path: str) -> dict[str, str]:
    return {"name": as_utf8(name), "path": as_utf8(path)}


class RowFormat(NamedTuple):
    """A format of files of rows.

    Attributes:
        suffix: of the files.
        encode: rows -> the content of a file, in pieces.
        decode: yields the rows of a file.
    """

    suffix: str
    encode: Callable[[Iterable[Row]], Iterator[bytes]]
    decode: Callable[[Path], Generator[Row, None, None]]


def _to_json_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _from_json_lines(path: Path) -> Generator[Row, None, None]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                row["name"] + ""
            except (ValueError, TypeError, KeyError, RecursionError):
                raise DataError(f"{path}, line {number}: not a row of a prediction; the file is damaged") from None
            yield row


def _to_parquet(rows: Iterable[Row]) -> Iterator[bytes]:
    arrow, parquet = pyarrow(), importlib.import_module("pyarrow.parquet")
    schema, pieces = arrow_schema(), _Pieces()
    rows = iter(rows)
    with parquet.ParquetWriter(arrow.PythonFile(pieces, mode="w"), schema) as writer:
        while group := [*islice(rows, _GROUP_ROWS)]:
            writer.write_table(arrow.Table.from_pylist(group, schema))
            yield pieces.take()
    yield pieces.take()


def _from_parquet(path: Path) -> Generator[Row, None, None]:
    arrow, parquet = pyarrow(), importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(arrow_schema()):
                raise DataError(f"{path}: the columns are not those of a prediction")
            for batch in file.iter_batches(_READ_ROWS):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: the file is damaged: {error}") from None


class _Pieces(io.RawIOBase):
    """A file object that keeps what is written until `take`."""

    def __init__(self) -> None:
        self._pieces, self._position = list[bytes](), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


FORMATS: Mapping[str, RowFormat] = {
    "jsonl": RowFormat(".jsonl", _to_json_lines, _from_json_lines),
    "parquet": RowFormat(".parquet", _to_parquet, _from_parquet),
}
"""Name -> format."""


def arrow_schema() -> Any:
    """Return the `pyarrow.Schema` of rows.

    Raises:
        UnavailableError: pyarrow is not installed.
    """
    arrow = pyarrow()
    many = arrow.list_
    columns = {
        **{"name": arrow.string(), "path": arrow.string(), "height": arrow.int32(), "width": arrow.int32()},
        **{"boxes": many(many(arrow.float32())), "scores": many(arrow.float32()), "labels": many(arrow.int64())},
        **{"names": many(arrow.string()), "error": arrow.string()},
    }
    return arrow.schema(list(columns.items()))


def pyarrow() -> Any:
    """Return the package `pyarrow`.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UnavailableError(
            f"the package pyarrow, which writes and reads Parquet, can't be imported ({error}); install it with: "
            "pip install 'rcnn[parquet]', or use --format jsonl"
        ) from None
