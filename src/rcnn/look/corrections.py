"""Doubtful labels, what a person says of each, and the new copy of the annotations."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import abspath
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.data.dataset import Record
from rcnn.data.formats.coco import as_json
from rcnn.diagnose.labels import DOUBTS, Doubt, corrected, find_doubts
from rcnn.errors import printable
from rcnn.look.album import Album
from rcnn.look.verdicts import KEPT, Verdict, Verdicts
from rcnn.metrics.types import Truth
from rcnn.weights.file import atomic_write

VERDICTS = ("right", *KEPT)
"""What may be said of a doubt: only a right one changes the copy."""

MOST = 20
"""Doubts that are told at once."""

REST = 20
"""While pictures are predicted, doubts are looked for during one part in so many of the time."""


class Key(NamedTuple):
    """A doubt by the places of its picture and its detection."""

    place: int
    detection: int


Said = dict[Key, tuple[str, Doubt]]
"""Verdicts and what they were said of, newest last."""


class Corrections:
    """What was said of the doubts of an album, newest last.

    Args:
        album: whose labels are doubted.
        make: makes the folder of the copy, when the first doubt is found right.
        verdicts: keeps what is wrong or skipped.
    """

    def __init__(self, album: Album, make: Callable[[], Path], verdicts: Verdicts) -> None:
        self.album, self._make, self._verdicts = album, make, verdicts
        self.folder: Path | None = None
        self._earlier: list[Verdict] | None = None
        self._said: Said = {}
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
            waiting = self._waiting()
            words = [*(verdict for verdict, _ in self._said.values()), *(one.verdict for one in self._before())]
            order = sorted(list(waiting)[:MOST], key=lambda key: key != first)
            if first in waiting and first not in order:
                order = [first, *order]
            self._told |= {key: waiting[key] for key in order}
            return {
                "fault": self.fault,
                "doubts": [self._doubt(key, waiting[key]) for key in order],
                "waiting": len(waiting),
                "said": {word: words.count(word) for word in VERDICTS},
                "note": self._verdicts.note,
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
        """Take back what was said last, in the copy too, and when all of today is, what was wrong or skipped before.

        Returns:
            The doubt; None if the detector has not come to it today.

        Raises:
            LookupError: nothing was said.
            OSError: the copy can't be written; then nothing is taken back.
        """
        with self._lock:
            if not self._said:
                verdict = self._before().pop()
                self._verdicts.change([verdict], [])
                return next((key for key, doubt in self._find().items() if self._settled(key, doubt, [verdict])), None)
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

    def _before(self) -> list[Verdict]:
        """What was said on other days of the pictures with labels, oldest first."""
        if self._earlier is None:
            paths = [picture.path for picture in self.album.pictures if picture.truth is not None]
            self._earlier = self._verdicts.open(paths) if paths else []
        return self._earlier

    def _waiting(self) -> dict[Key, Doubt]:
        """The doubts that nothing was said of, in the order in which they are told."""
        before = defaultdict[str, list[Verdict]](list)
        for verdict in self._before():
            before[verdict.picture].append(verdict)
        found = {key: doubt for key, doubt in self._find().items() if key not in self._said}
        if not before:
            return found
        return {key: doubt for key, doubt in found.items() if not self._settled(key, doubt, before[self._path(key)])}

    def _settled(self, key: Key, doubt: Doubt, verdicts: Sequence[Verdict]) -> bool:
        """Was one of these verdicts said of a doubt?"""
        path, name = self._path(key), self.album.names[doubt.label]
        return any(verdict.picture == path and verdict.settles(doubt, name) for verdict in verdicts)

    def _path(self, key: Key) -> str:
        return abspath(self.album.pictures[key.place].path)

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

    def _keep(self, before: Said, place: int) -> None:
        """Write what differs from before: the list of a picture, and at first all others, and the other verdicts."""
        right = [[key for key, (verdict, _) in said.items() if verdict == "right"] for said in (before, self._said)]
        if right[0] != right[1]:
            try:
                folder = self.folder or self._make()
                self._write(folder, place if self.folder else None)
            except BaseException:
                self._said = before
                raise
            self.folder = folder
        was, now = dict.fromkeys(self._others(before)), dict.fromkeys(self._others(self._said))
        if was != now:
            self._verdicts.change([one for one in was if one not in now], [one for one in now if one not in was])

    def _others(self, said: Said) -> list[Verdict]:
        """What is wrong or skipped, as it is kept."""
        names = self.album.names
        return [
            Verdict(self._path(key), doubt.kind, names[doubt.label], tuple(doubt.box.tolist()), verdict)
            for key, (verdict, doubt) in said.items()
            if verdict in KEPT
        ]

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
