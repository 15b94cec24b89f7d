"""What the readers of tables share: the first rows, by which they are recognised, and the rows one by one."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from io import StringIO
from itertools import islice

from rcnn.data.formats.draft import Reading
from rcnn.images.storage import Location, open_text, read_start

HEAD_BYTES, HEAD_ROWS = 16_384, 20
"""Number of bytes and of rows at the start of a table that are inspected to recognise it."""

MAX_LINE_CHARS = 1_000_000
"""Maximum length of a line that is read as one; the module csv refuses a cell that is longer than 131,072."""


def first_rows(path: Location, delimiter: str = ",") -> list[list[str]]:
    """Return the cells of the first rows of a table that are not empty; none if it is not a table."""
    head = read_start(path, HEAD_BYTES)
    text = head.decode("utf-8-sig", errors="replace")
    if len(head) == HEAD_BYTES and (end := max(text.rfind("\n"), text.rfind("\r"))) > 0:
        text = text[:end]  # the last row may be cut off
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        return [[cell.strip() for cell in cells] for cells in islice(filter(None, reader), HEAD_ROWS)]
    except csv.Error:
        return []


def rows(
    source: Location,
    reading: Reading,
    max_bytes: int,
    max_lines: int,
    delimiter: str = ",",
    *,
    has_header: bool = False,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each row that is not empty, without holding the table in memory.

    What can't be read becomes a fault of the reading.

    Args:
        source: the table.
        reading: receives the faults.
        max_bytes, max_lines: the most that are read, without the header.
        delimiter: between cells.
        has_header: leave out the first row.

    Raises:
        OSError, UnicodeDecodeError: the file is too large or not text.
    """
    with open_text(source, max_bytes) as file:
        lines = iter(partial(file.readline, MAX_LINE_CHARS), "")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        try:
            if has_header:
                next(filter(None, reader), None)
            for cells in reader:
                if reader.line_num > max_lines + has_header:
                    reason = f"the table continues here, but only {max_lines:,} lines are read"
                    return reading.fault(f"{source}:{reader.line_num}", reason)
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            reading.fault(f"{source}:{reader.line_num}", f"malformed csv: {error}")


def wrong_length(cells: Sequence[str], expected: str) -> str:
    """Return the reason of the fault that a row does not have the columns that are `expected`, a noun phrase."""
    return f"expected {expected}, found {len(cells)}: {', '.join(cells):.200}"
