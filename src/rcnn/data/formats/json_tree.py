"""Read json, and files with a json value per line, which may be large, damaged or hostile."""

import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeGuard

from rcnn.data.dataset import Fault
from rcnn.data.formats.draft import MAX_FAULTS
from rcnn.images.storage import Location, open_text, read_text

MAX_LINE_CHARS = 50_000_000
"""Maximum length of a json value on one line."""


class MalformedJson(ValueError):
    """A file is not json, or can't be read. The message gives the reason; `where` is the place, `file:line:column`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(reason)
        self.where = where


def load_json(
    path: Location, max_bytes: int, faults: list[Fault], reduce: Callable[[dict[str, Any]], None] | None = None
) -> Any:
    """Return the value in a json file.

    Args:
        path: the file.
        max_bytes: its maximum size.
        faults: receives the keys that occur twice in an object.
        reduce: called with each object as soon as it is parsed, which it may change: to drop polygons, for example,
            which are most of a file.

    Raises:
        MalformedJson: it is malformed, too large, or can't be read.
    """
    try:
        return json.loads(read_text(path, max_bytes), object_pairs_hook=partial(_fields, path, faults, reduce))
    except json.JSONDecodeError as error:
        where, reason = f"{path}:{error.lineno}:{error.colno}", f"malformed json: {error.msg}"
    except UnicodeDecodeError as error:
        where, reason = f"{path}:{error.object.count(10, 0, error.start) + 1}", "this is not UTF-8 text"
    except (RecursionError, ValueError) as error:  # arrays nested too deeply, numbers with thousands of digits
        where, reason = str(path), f"malformed json: {error}"
    except (OSError, MemoryError) as error:
        where, reason = str(path), str(error) or "the file does not fit into the memory"
    raise MalformedJson(where, reason)


def json_lines(
    path: Location, max_bytes: int, max_lines: int, faults: list[Fault], fault: Callable[[str, str], None]
) -> Iterator[tuple[str, Any]]:
    """Yield the place, `file:line`, and the value of each line that is not empty, without holding the file in memory.

    Args:
        path: the file.
        max_bytes, max_lines: the most that are read.
        faults: receives the keys that occur twice in an object.
        fault: called with the place and the reason for a line that can't be read.

    Raises:
        OSError, UnicodeDecodeError: the file is too large or not text.
    """
    with open_text(path, max_bytes) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_CHARS), ""), start=1):
            where = f"{path}:{number}"
            if number > max_lines or len(line) == MAX_LINE_CHARS:
                most = f"{max_lines:,} lines of {MAX_LINE_CHARS:,} characters"
                return fault(where, f"the file continues here, but only {most} are read")
            if not line.strip():
                continue
            try:
                value = json.loads(line, object_pairs_hook=partial(_fields, path, faults, None))
            except json.JSONDecodeError as error:
                fault(where, f"malformed json: {error.msg} (column {error.colno})")
            except (RecursionError, ValueError) as error:
                fault(where, f"malformed json: {error}")
            else:
                yield where, value


def _fields(
    path: Location,
    faults: list[Fault],
    reduce: Callable[[dict[str, Any]], None] | None,
    pairs: list[tuple[str, Any]],
) -> dict[str, Any]:
    """Return an object of a file that is being parsed, and add repeated keys to the faults of the file."""
    fields = dict(pairs)
    first: dict[str, Any] = {}
    for key, value in pairs if len(fields) < len(pairs) else ():
        if key in first and len(faults) < MAX_FAULTS:
            owner = f" of the object with id {first['id']!r:.50}" if "id" in first else ""
            reason = f"the key `{key:.50}`{owner} occurs twice, as {first[key]!r:.50} and as {value!r:.50}"
            same = first[key] == value
            reason += "" if same else "; keep one of the two"
            faults.append(Fault(str(path), reason, "mendable" if same else "fatal"))
        first.setdefault(key, value)
    if reduce is not None:
        reduce(fields)
    return fields


def is_list(head: bytes) -> bool:
    """Return whether a json file that begins with `head` contains a list rather than an object."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_numbers(value: object) -> TypeGuard[list[float]]:
    """Return whether a value is a list of numbers."""
    return isinstance(value, list) and {*map(type, value)} <= {int, float}


def floats(numbers: list[float]) -> Sequence[float]:
    """Return numbers as floats; integers that are too large for a float become infinite."""
    try:
        return array("d", numbers)
    except OverflowError:
        return [math.inf if abs(number) > 1e308 else number for number in numbers]
