"""Parse JSON files, with the places of their faults."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from rcnn.data.formats.draft import MAX_FAULTS, Kind
from rcnn.images.storage import Location, read_text

Pairs = list[tuple[str, Any]]
"""The keys and values of an object, in the order of the file."""


class MalformedJson(Exception):
    """A JSON file can't be parsed. The message gives the reason; `where` is the place, `file:line:column` if known."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(reason)
        self.where = where


def parse_json(path: Location, max_bytes: int, fields: Callable[[Pairs], Any]) -> Any:
    """Return the value in a JSON file.

    Args:
        path: the file.
        max_bytes: its maximum size, bytes.
        fields: makes a value of each object in it.

    Raises:
        MalformedJson: the file is not JSON, is nested too deeply, is too large or can't be read.
    """
    try:
        return json.loads(read_text(path, max_bytes), object_pairs_hook=fields)
    except json.JSONDecodeError as error:
        where, reason = f"{path}:{error.lineno}:{error.colno}", f"malformed json: {error.msg}"
    except UnicodeDecodeError as error:
        where, reason = f"{path}:{error.object.count(10, 0, error.start) + 1}", "this is not UTF-8 text"
    except (RecursionError, ValueError) as error:  # arrays nested too deeply, numbers with thousands of digits
        where, reason = str(path), f"malformed json: {error}"
    except (OSError, MemoryError) as error:
        where, reason = str(path), str(error) or "the file does not fit into the memory"
    raise MalformedJson(where, reason)


Repeated = list[tuple[str, Kind]]
"""Reasons and kinds of the faults of keys that occur twice."""


def parse_unique(path: Location, max_bytes: int) -> tuple[Any, Repeated]:
    """Return the value in a JSON file, and the faults of keys that occur twice in an object.

    Raises:
        MalformedJson: as for `parse_json`.
    """
    repeated: Repeated = []
    return parse_json(path, max_bytes, partial(_unique, repeated)), repeated


def _unique(repeated: Repeated, pairs: Pairs) -> dict[str, Any]:
    """Return an object of a file that is being parsed, and add the faults of its repeated keys."""
    fields = dict(pairs)
    first: dict[str, Any] = {}
    for key, value in pairs if len(fields) < len(pairs) else ():
        if key in first and len(repeated) < MAX_FAULTS:
            same = first[key] == value
            reason = f"the key `{key:.50}` occurs twice in an object"
            repeated.append((reason + ("" if same else "; keep one of the two"), "mendable" if same else "fatal"))
        first.setdefault(key, value)
    return fields
