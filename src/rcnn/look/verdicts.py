"""What was said of doubtful labels and changes none, "wrong" and "skip", kept from day to day.

It lies in a cache folder, in one file for the folder that the images lie in: so it also holds for a corrected copy of
the annotations, whose images are where they were. A suggestion is known again by its picture, kind, class and box, so
that another detector, whose boxes lie a little elsewhere, does not ask again either.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import count
from os.path import abspath, commonpath, dirname
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.diagnose.labels import Doubt
from rcnn.errors import printable
from rcnn.metrics.overlap import box_iou
from rcnn.report.scores import IOU
from rcnn.weights.file import atomic_write

FORMAT = 1
KEPT = ("wrong", "skip")
"""Verdicts that are kept here; what is right is in the copy of the annotations."""


class Verdict(NamedTuple):
    """What was said of a suggestion.

    Attributes:
        picture: absolute path of the image.
        kind: of `DOUBTS`.
        name: of the class that is suggested.
        box: in pixels of the file.
        verdict: of `KEPT`.
    """

    picture: str
    kind: str
    name: str
    box: tuple[float, ...]
    verdict: str

    def settles(self, doubt: Doubt, name: str) -> bool:
        """Is a doubt of the same picture the one that this was said of?"""
        same = (self.kind, self.name) == (doubt.kind, name)
        return same and bool(box_iou(np.array([self.box]), doubt.box[None]) >= IOU)


class Verdicts:
    """The verdicts on the images of a folder, in a file.

    Several servers may write it: each verdict is added to what the file holds then.

    Args:
        folder: that the file lies in; it is made with the first verdict.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._damaged = self._unwritten = ""

    @property
    def note(self) -> str:
        """What went wrong with the file, in sentences; empty if nothing did."""
        return " ".join(filter(None, (self._damaged, self._unwritten)))

    def open(self, pictures: Sequence[Path]) -> list[Verdict]:
        """The verdicts on these images, oldest first. A file that is damaged is set aside, and the note says so."""
        paths = [abspath(path) for path in pictures]
        home = commonpath({dirname(path) for path in paths})
        self._file = self._folder / f"{hashlib.sha256(home.encode(errors='surrogatepass')).hexdigest()}.json"
        try:
            kept = self._read(self._file)
        except OSError as error:
            self._damaged = printable(f"What was wrong or skipped on other days can't be read: {error}.")
            return []
        known = set(paths) if kept else set[str]()
        return [verdict for verdict in kept if verdict.picture in known]

    def change(self, gone: Iterable[Verdict], new: Iterable[Verdict]) -> None:
        """Take verdicts back and add others. If they can't be written, the note says so."""
        assert self._file is not None
        try:
            kept = self._read(self._file)
            for verdict in gone:
                if verdict in kept:
                    kept.remove(verdict)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            content = json.dumps({"format": FORMAT, "verdicts": [*kept, *new]})
            atomic_write(self._file, content.encode(), shared=True)
            self._unwritten = ""
        except OSError as error:
            self._unwritten = printable(f"What is wrong or skipped is not kept for another day: {error}.")

    def _read(self, file: Path) -> list[Verdict]:
        """What the file holds; one that is damaged gets another name, and nothing is lost.

        Raises:
            OSError: it can't be read.
        """
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return []
        try:
            told = json.loads(content)
            if told["format"] != FORMAT:
                raise ValueError("another format")
            return [_verdict(*entry) for entry in told["verdicts"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            names = (file.with_name(f"{file.stem}.damaged-{number}.json") for number in count(1))
            aside = next(name for name in names if not name.exists())
            file.rename(aside)
            self._damaged = printable(
                "What was wrong or skipped on other days is asked again: its file is damaged, or of another version, "
                f"and is now {aside}."
            )
            return []


def _verdict(picture: Any, kind: Any, name: Any, box: Any, verdict: Any) -> Verdict:
    """An entry of the file.

    Raises:
        ValueError: it is none.
    """
    words = all(isinstance(word, str) for word in (picture, kind, name))
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not (words and numbers and verdict in KEPT):
        raise ValueError("no verdict")
    return Verdict(picture, kind, name, tuple(float(side) for side in box), verdict)
