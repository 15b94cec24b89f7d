"""Doubtful labels, what a person says of each, and the new copy of the annotations."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import abspath
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.data.coco import as_json
from rcnn.data.dataset import Record
from rcnn.errors import printable
from rcnn.insight.labels import DOUBTS, Doubt, corrected, find_doubts
from rcnn.metrics.types import Truth
from rcnn.page.album import Album
from rcnn.weights.file import atomic_write

VERDICTS = ("right", "wrong", "skip")
"""What may be said of a doubt: only a right one changes the copy."""

MOST = 20
"""Doubts that are told at once."""

REST = 20
"""While pictures are predicted, doubts are looked for during one part in so many of the time."""


class Key(NamedTuple):
    """A doubt by the places of its picture and its detection."""

    place: int
    detection: int


class Corrections:
    """What was said of the doubts of an album, newest last.

    Args:
        album: whose labels are doubted.
        make: makes the folder of the copy, when the first doubt is found right.
    """

    def __init__(self, album: Album, make: Callable[[], Path]) -> None:
        self.album, self._make = album, make
        self.folder: Path | None = None
        self._said: dict[Key, tuple[str, Doubt]] = {}
        self._found: dict[Key, Doubt] = {}
        self._told: dict[Key, Doubt] = {}
        self._done, self._again = -1, 0.0
        self._lock = threading.Lock()

    @property
    def fault(self) -> str:
        """Why there is nothing to doubt; empty if there is."""
        album = self.album
        if album.detector is None:
            return "There is no model here; start rcnn look with one and with labelled pictures."
        if album.finder is None:
            return "This model only proposes boxes; it takes one that tells classes to doubt labels."
        if not album.sets:
            return "There are no labels here; start rcnn look with a data set."
        return ""

    def told(self, first: Key | None = None) -> dict[str, Any]:
        """The next doubts, what was said of the others, and where the copy is.

        Args:
            first: told first, if it is among them.
        """
        with self._lock:
            waiting = {key: doubt for key, doubt in self._find().items() if key not in self._said}
            order = sorted(list(waiting)[:MOST], key=lambda key: key != first)
            if first in waiting and first not in order:
                order = [first, *order]
            self._told |= {key: waiting[key] for key in order}
            return {
                "fault": self.fault,
                "doubts": [self._doubt(key, waiting[key]) for key in order],
                "waiting": len(waiting),
                "said": {word: sum(verdict == word for verdict, _ in self._said.values()) for word in VERDICTS},
                "folder": printable(str(self.folder)) if self.folder else "",
            }

    def say(self, key: Key, verdict: str) -> None:
        """Judge a doubt that was told; a right one is written to the copy.

        Raises:
            KeyError: there is no such doubt.
            OSError: the copy can't be written; then nothing is said.
        """
        with self._lock:
            doubt, before = self._told[key], dict(self._said)
            self._said.pop(key, None)
            self._said[key] = verdict, doubt
            self._keep(before, key.place)

    def undo(self) -> Key | None:
        """Take back what was said last, in the copy too; None if nothing was said.

        Raises:
            OSError: the copy can't be written; then nothing is taken back.
        """
        with self._lock:
            if not self._said:
                return None
            before = dict(self._said)
            key, _ = self._said.popitem()
            self._keep(before, key.place)
            return key

    def _find(self) -> dict[Key, Doubt]:
        """All doubts so far, in the order in which they are told; more come while pictures are predicted."""
        album, now = self.album, time.monotonic()
        places = [place for place in sorted(album.found) if album.pictures[place].truth is not None]
        if len(places) != self._done and now >= self._again:
            truths = [truth for place in places if (truth := album.pictures[place].truth) is not None]
            score = album.detector.threshold if album.detector else 0.5
            doubts = find_doubts(truths, [album.found[place].prediction for place in places], score=score)
            self._found = {Key(places[doubt.image], doubt.detection): doubt for doubt in doubts}
            self._done, self._again = len(places), now + REST * (time.monotonic() - now)
        return self._found

    def _doubt(self, key: Key, doubt: Doubt) -> dict[str, Any]:
        """A doubt with its picture, and the labels of that as they are in the copy."""
        picture, record = self.album.pictures[key.place], self._record(key.place)
        columns = zip(*(column.tolist() for column in self._labels(record, self._right()[key.place])), strict=True)
        return {
            "place": key.place,
            "detection": key.detection,
            "kind": doubt.kind,
            "says": DOUBTS[doubt.kind],
            "label": doubt.label,
            "score": doubt.score,
            "box": doubt.box.tolist(),
            "object": doubt.truth,
            "picture": printable(picture.name),
            "size": record.size,
            "labels": [{"box": box, "label": label, "ignore": ignore} for box, label, ignore in columns],
        }

    def _record(self, place: int) -> Record:
        for dataset in self.album.sets:
            if place < len(dataset):
                return dataset.records[place]
            place -= len(dataset)
        raise IndexError(place)

    def _right(self) -> defaultdict[int, list[Doubt]]:
        """The doubts that were found right, by the places of their pictures."""
        right = defaultdict[int, list[Doubt]](list)
        for key, (verdict, doubt) in self._said.items():
            if verdict == "right":
                right[key.place].append(doubt)
        return right

    def _labels(self, record: Record, right: Sequence[Doubt]) -> Truth:
        return corrected(Truth(record.boxes, record.labels, record.ignore), right, record.size)

    def _keep(self, before: dict[Key, tuple[str, Doubt]], place: int) -> None:
        """Write the list of a picture, and at first all others, if what is right differs from before."""
        changed = [[key for key, (verdict, _) in said.items() if verdict == "right"] for said in (before, self._said)]
        if changed[0] == changed[1]:
            return
        try:
            folder = self.folder or self._make()
            self._write(folder, place if self.folder else None)
        except BaseException:
            self._said = before
            raise
        self.folder = folder

    def _write(self, folder: Path, place: int | None) -> None:
        """Write the annotations of the list that a picture is in, or of all lists."""
        right, start = self._right(), 0
        for dataset in self.album.sets:
            places = range(start, start + len(dataset))
            start = places.stop
            if place is not None and place not in places:
                continue
            records = list(dataset.records)
            for at in filter(places.__contains__, right):
                record = records[at - places.start]
                boxes, labels, ignore = self._labels(record, right[at])
                records[at - places.start] = replace(record, boxes=boxes, labels=labels, ignore=ignore)
            names = {record.path: abspath(record.path) for record in records}
            text = as_json(replace(dataset, records=tuple(records)), names)
            file = folder / "annotations" / f"{dataset.split}.json"
            file.parent.mkdir(exist_ok=True)
            atomic_write(file, text.encode())
