"""The errors that users meet, each with the exit code of a command that ends with it.

Messages are sentences for the person who can mend the fault: what, where, what was found, what to do.
"""

import re
from collections.abc import Sequence
from typing import Any

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

_WHOLE = re.compile(r"`[^`]*`\S*|\brcnn [a-z].*|[a-z]+\.\w+=\S*(?: [a-z]+\.\w+=\S+)*|\S+")
"""What stays on one line, so that it can be copied: quoted texts, commands to the end, settings, and words."""


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of range. The message has one line per fault."""

    exit_code = 2


class DataError(Exception):
    """The data is faulty or missing. The message is for the person who labelled it.

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


class WeightsError(ValueError):
    """A file of weights is missing, damaged, foreign or does not fit. The message names the file."""

    exit_code = 4


class UnavailableError(WeightsError):
    """Weights, or the package that runs them, are not there: no network, none exist. The message says what to do."""


class TrainingError(RuntimeError):
    """Training can't go on: a loss that is not finite, a full disk. The message says what to do."""

    exit_code = 1


class ExportError(RuntimeError):
    """An exported file does not do what its detector does, so it was not kept."""

    exit_code = 1


class NonFiniteError(ArithmeticError):
    """The network gave NaN or infinity: its weights are damaged or its training diverged."""

    exit_code = 1


class Interrupted(Exception):
    """Training was stopped by the user. The message holds the command that goes on where it stopped."""

    exit_code = 130


def printable(text: str) -> str:
    """Return a text without what would steer a terminal or can't be printed: texts may come from files and their names.

    Control characters, marks that turn the direction of writing, and lone surrogates, with which Python reads the
    bytes of names that are not UTF-8, become escapes such as `\\x1b`. Line ends and tabs stay.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def wrapped(text: str, width: int) -> str:
    """Break the lines of a text that are longer than `width` characters between words, not where the terminal would.

    Commands, settings, texts in backquotes, and words such as paths stay whole, whatever their length.
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
