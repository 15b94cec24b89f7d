"""Errors for users, each with the exit code of the command that raises it, and formatting of texts for users.

Messages are sentences for the person who can fix the problem: what is wrong, where, what was found, and what to do.
"""

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

_WHOLE = re.compile(r"`[^`]*`\S*|\brcnn [a-z].*|[a-z]+\.\w+=\S*(?: [a-z]+\.\w+=\S+)*|\S+")
"""Parts of a text that are kept on one line for copying: quoted texts, commands up to the line end, settings, words."""


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of range. The message has one line per fault."""

    exit_code = 2


class DataError(Exception):
    """The data is faulty or missing. The message addresses the person who labelled it.

    Attributes:
        faults: the `data.dataset.Fault`s that the message reports.
    """

    exit_code = 3

    def __init__(self, message: str, faults: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class ImageError(ValueError):
    """An image can't be used. The message names the file and the reason."""

    exit_code = 3


class StorageError(Exception):
    """A remote location can't be reached or may not be read, or the package that opens it is missing.

    The message names the location, without credentials. No reader takes it for damage of a file.
    """

    exit_code = 1


class WeightsError(ValueError):
    """A weights file is missing, damaged, of an unknown kind, or incompatible. The message names the file."""

    exit_code = 4


class UnavailableError(WeightsError):
    """Weights, or the package that runs them, are not available. The message says what to do."""


class TrainingError(RuntimeError):
    """Training can't continue, for example because of a non-finite loss or a full disk. The message says what to do."""

    exit_code = 1


class ExportError(RuntimeError):
    """An exported file gave different results from its detector, so it was not written."""

    exit_code = 1


class PredictionError(RuntimeError):
    """A prediction in shards is not complete, or can't continue, for example because of a full disk.

    The message says what to do.
    """

    exit_code = 1


class NonFiniteError(ArithmeticError):
    """The network returned NaN or infinity because its weights are damaged or its training diverged."""

    exit_code = 1


class Interrupted(Exception):
    """The user or the system stopped the training. The message contains the command that resumes it.

    Attributes:
        exit_code: 128 plus the signal number: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    exit_code = 130

    def __init__(self, message: str = "interrupted", exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def printable(text: str) -> str:
    """Escape characters that control a terminal or can't be printed, because texts may come from files.

    Control characters, writing direction marks, and lone surrogates (which Python uses for bytes in names that are not
    UTF-8) become escapes such as `\\x1b`. Newlines and tabs are kept.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def wrapped(text: str, width: int) -> str:
    """Break lines longer than `width` characters between words.

    Commands, settings, texts in backquotes, and words such as paths are never broken.
    """
    rows: list[str] = []
    for line in text.split("\n"):
        start = end = 0
        for part in _WHOLE.finditer(line) if len(line) > width else ():
            if part.end() - start > width and end > start:
                rows.append(line[start:end])
                start = part.start()
            end = part.end()
        rows.append(line[start:])
    return "\n".join(rows)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, kind: type = Real) -> None:
    """Check that an argument is a number in a range, including both ends.

    Args:
        name: name of the argument.
        value: value of the argument.
        low: smallest allowed value.
        high: largest allowed value.
        kind: `numbers.Real`, or `Integral` for an integer.

    Raises:
        SettingsError: the value is not such a number, or is outside the range.
    """
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:  # NaN is in no range
        what = "a whole number" if kind is Integral else "a number"
        bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise SettingsError(f"{name}={value!r}: give {what} {bounds}")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 fault`, `2 faults`, `3 boxes`, `4 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{ending}"


def cell(value: object, digits: int = 3) -> str:
    """Format a table cell: floats with `digits` decimals, NaN as a dash, integers with thousands separators."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
