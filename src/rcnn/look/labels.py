"""The page "Labels": suspected label errors, a person's verdict on each, and a corrected copy of the annotations.

A verdict `right` changes the copy. `wrong` and `skip` change nothing and are stored in a cache folder, in one file per
folder of images, so that they also hold for the corrected copy, which refers to the same images. A suggestion is
recognised by its picture, kind, class and box, so that another detector, whose boxes differ slightly, does not suggest
it again.
"""

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count
from os.path import abspath, commonpath, dirname
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rcnn.data.dataset import Records
from rcnn.data.formats.coco import as_json
from rcnn.diagnose.label_errors import KINDS, Suggestion, apply_suggestions, find_suggestions
from rcnn.errors import printable
from rcnn.look.album import Album
from rcnn.look.threads import FewThreads
from rcnn.metrics.overlap import box_iou
from rcnn.metrics.types import Truth
from rcnn.report.scores import IOU
from rcnn.weights.file import atomic_write

FORMAT = 1
STORED = ("wrong", "skip")
"""Verdicts that are stored in the cache folder; those of `right` are in the copy of the annotations."""

VERDICTS = ("right", *STORED)

MAX_BYTES = 1000
"""Largest verdict that a page may send."""

MAX_SENT = 20
"""Number of suggestions in an answer."""

SEARCH_SHARE = 20
"""While pictures are predicted, searching for suggestions takes at most one in this many parts of the time."""


class Key(NamedTuple):
    """The indices of the picture and the detection of a suggestion."""

    picture: int
    detection: int


class Verdict(NamedTuple):
    """A verdict on a suggestion, as it is stored.

    Attributes:
        picture: absolute path of the image.
        kind: a key of `SUGGESTIONS`.
        name: of the suggested class.
        box: in pixels of the file.
        verdict: one of `STORED`.
    """

    picture: str
    kind: str
    name: str
    box: tuple[float, ...]
    verdict: str

    @classmethod
    def read(cls, picture: Any, kind: Any, name: Any, box: Any, verdict: Any) -> "Verdict":
        """Return the verdict in an entry of a file.

        Raises:
            ValueError: it is not a verdict.
        """
        words = all(isinstance(word, str) for word in (picture, kind, name))
        numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
        if not (words and numbers and verdict in STORED):
            raise ValueError("not a verdict")
        return cls(picture, kind, name, tuple(float(side) for side in box), verdict)

    def is_on(self, path: str, suggestion: Suggestion, name: str) -> bool:
        """Return whether this is the verdict on a suggestion for the picture of this path."""
        same = (self.picture, self.kind, self.name) == (path, suggestion.kind, name)
        return same and bool(box_iou(np.array([self.box]), suggestion.box[None]) >= IOU)


class VerdictFile:
    """The verdicts on the images of a folder, in a file.

    Several servers may write it, so each change is applied to the current content of the file.

    Args:
        folder: of the file; it is created with the first verdict.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._damaged = self._unwritten = ""

    @property
    def note(self) -> str:
        """The problems with the file, as sentences; empty if there are none."""
        return " ".join(filter(None, (self._damaged, self._unwritten)))

    def open(self, pictures: Sequence[Path]) -> list[Verdict]:
        """Return the verdicts on these images, oldest first. A damaged file is renamed and mentioned in the note."""
        paths = [abspath(path) for path in pictures]
        home = commonpath({dirname(path) for path in paths})
        self._file = self._folder / f"{hashlib.sha256(home.encode(errors='surrogatepass')).hexdigest()}.json"
        try:
            verdicts = self._read(self._file)
        except OSError as error:
            self._damaged = printable(f"Earlier verdicts of wrong and skip can't be read: {error}.")
            return []
        known = set(paths) if verdicts else set[str]()
        return [verdict for verdict in verdicts if verdict.picture in known]

    def change(self, removed: Iterable[Verdict], added: Iterable[Verdict]) -> None:
        """Remove and add verdicts. An error in writing them is mentioned in the note."""
        assert self._file is not None
        try:
            verdicts = self._read(self._file)
            for verdict in removed:
                if verdict in verdicts:
                    verdicts.remove(verdict)
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            content = json.dumps({"format": FORMAT, "verdicts": [*verdicts, *added]})
            atomic_write(self._file, content.encode(), shared=True)
            self._unwritten = ""
        except OSError as error:
            self._unwritten = printable(f"Verdicts of wrong and skip can't be stored: {error}.")

    def _read(self, file: Path) -> list[Verdict]:
        """Return the verdicts in the file; a damaged file is renamed, so that nothing is lost.

        Raises:
            OSError: it can't be read.
        """
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return []
        try:
            tree = json.loads(content)
            if tree["format"] != FORMAT:
                raise ValueError("another format")
            return [Verdict.read(*entry) for entry in tree["verdicts"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            names = (file.with_name(f"{file.stem}.damaged-{number}.json") for number in count(1))
            renamed = next(name for name in names if not name.exists())
            file.rename(renamed)
            self._damaged = printable(
                "The file of earlier verdicts of wrong and skip is damaged, or of another version; their suggestions "
                f"appear again. It is now {renamed}."
            )
            return []


class LabelReview:
    """Suggestions for the labels of an album, the verdicts on them, and the corrected copy.

    Args:
        album: whose labels are reviewed.
        make_folder: creates the folder of the copy when the first suggestion is accepted.
        verdicts: stores the verdicts of wrong and skip.
    """

    def __init__(self, album: Album, make_folder: Callable[[], Path], verdicts: VerdictFile) -> None:
        self.album, self._make_folder, self._file = album, make_folder, verdicts
        self.folder: Path | None = None
        self._earlier_verdicts: list[Verdict] | None = None
        self._verdicts: dict[Key, tuple[str, Suggestion]] = {}
        """The verdicts since the start of the server and their suggestions, newest last."""
        self._found: dict[Key, Suggestion] = {}
        self._sent: dict[Key, Suggestion] = {}
        self._pictures_searched, self._next_search = -1, 0.0
        self._lock = threading.Lock()

    @property
    def fault(self) -> str:
        """The reason why there can be no suggestions; empty if there can."""
        album = self.album
        if album.detector is None:
            return "There is no model here. Start rcnn look with a model and labelled pictures."
        if album.finder is None:
            return "This model only proposes boxes. Checking labels takes a model that predicts classes."
        return "" if album.sets else "There are no labels here. Start rcnn look with a data set."

    def state(self, first: Key | None = None) -> dict[str, Any]:
        """Return the next suggestions, the numbers of verdicts, and the path of the copy.

        Args:
            first: the suggestion to put first, if it has no verdict.
        """
        with self._lock:
            waiting = self._unjudged()
            words = [word for word, _ in self._verdicts.values()] + [verdict.verdict for verdict in self._earlier()]
            order = sorted(list(waiting)[:MAX_SENT], key=lambda key: key != first)
            if first in waiting and first not in order:
                order = [first, *order]
            self._sent |= {key: waiting[key] for key in order}
            return {
                "fault": self.fault,
                "suggestions": [self._describe(key, waiting[key]) for key in order],
                "waiting": len(waiting),
                "verdicts": {word: words.count(word) for word in VERDICTS},
                "note": self._file.note,
                "folder": printable(str(self.folder)) if self.folder else "",
            }

    def judge(self, key: Key, verdict: str) -> None:
        """Store the verdict on a suggestion that was sent, and write an accepted suggestion to the copy.

        Raises:
            KeyError: there is no such suggestion.
            OSError: the copy can't be written, and the verdict is not stored.
        """
        with self._lock:
            suggestion, before = self._sent[key], dict(self._verdicts)
            self._verdicts.pop(key, None)
            self._verdicts[key] = verdict, suggestion
            self._save(before, key.picture)

    def undo(self) -> Key | None:
        """Undo the last verdict of this server, or if there is none the last stored verdict.

        Returns:
            The suggestion; None if the detector has not found it since the start of the server.

        Raises:
            LookupError: there is no verdict.
            OSError: the copy can't be written, and nothing is undone.
        """
        with self._lock:
            if not self._verdicts:
                verdict = self._earlier().pop()
                self._file.change([verdict], [])
                return next(
                    (key for key, found in self._find().items() if self._has_verdict(key, found, [verdict])), None
                )
            before = dict(self._verdicts)
            key, _ = self._verdicts.popitem()
            self._save(before, key.picture)
            return key

    def _find(self) -> dict[Key, Suggestion]:
        """Return all suggestions for the pictures that have been predicted, in display order."""
        album, now = self.album, time.monotonic()
        truths = {i: truth for i in sorted(album.judged) if (truth := album.pictures[i].truth) is not None}
        if len(truths) != self._pictures_searched and now >= self._next_search:
            score, pictures = album.detector.threshold if album.detector else 0.5, list(truths)
            predictions = [album.judged[index].prediction for index in pictures]
            found = find_suggestions([*truths.values()], predictions, len(album.names), score)
            self._found = {Key(pictures[error.image], error.detection): error for error in found}
            self._pictures_searched = len(truths)
            self._next_search = now + SEARCH_SHARE * (time.monotonic() - now)
        return self._found

    def _earlier(self) -> list[Verdict]:
        """Return the stored verdicts of earlier servers on the pictures with labels, oldest first."""
        if self._earlier_verdicts is None:
            paths = [picture.path for picture in self.album.pictures if picture.truth is not None]
            self._earlier_verdicts = self._file.open(paths) if paths else []
        return self._earlier_verdicts

    def _unjudged(self) -> dict[Key, Suggestion]:
        """Return the suggestions without a verdict, in display order."""
        earlier = defaultdict[str, list[Verdict]](list)
        for verdict in self._earlier():
            earlier[verdict.picture].append(verdict)
        return {
            key: suggestion
            for key, suggestion in self._find().items()
            if key not in self._verdicts and not self._has_verdict(key, suggestion, earlier[self._path(key)])
        }

    def _has_verdict(self, key: Key, suggestion: Suggestion, verdicts: Sequence[Verdict]) -> bool:
        """Return whether one of these verdicts is on a suggestion."""
        path, name = self._path(key), self.album.names[suggestion.label]
        return any(verdict.is_on(path, suggestion, name) for verdict in verdicts)

    def _path(self, key: Key) -> str:
        return abspath(self.album.pictures[key.picture].path)

    def _describe(self, key: Key, suggestion: Suggestion) -> dict[str, Any]:
        """Return a suggestion with its picture, and the labels of this picture in the copy."""
        picture = self.album.pictures[key.picture]
        assert picture.truth is not None
        assert picture.size is not None
        labels = apply_suggestions(picture.truth, self._accepted()[key.picture], picture.size)
        columns = zip(*(column.tolist() for column in labels), strict=True)
        return {
            **key._asdict(),
            "kind": suggestion.kind,
            "text": KINDS[suggestion.kind],
            "label": suggestion.label,
            "score": suggestion.score,
            "box": suggestion.box.tolist(),
            "object": suggestion.truth,
            "name": printable(picture.name),
            "size": picture.size,
            "labels": [{"box": box, "label": label, "ignore": ignore} for box, label, ignore in columns],
        }

    def _accepted(self) -> defaultdict[int, list[Suggestion]]:
        """Return index of a picture -> accepted suggestions."""
        accepted = defaultdict[int, list[Suggestion]](list)
        for key, (verdict, suggestion) in self._verdicts.items():
            if verdict == "right":
                accepted[key.picture].append(suggestion)
        return accepted

    def _save(self, before: dict[Key, tuple[str, Suggestion]], picture: int) -> None:
        """Write changed verdicts: the list of a picture in the copy (at first all lists), and those that are stored."""
        states = (before, self._verdicts)
        old, new = ([key for key, (verdict, _) in state.items() if verdict == "right"] for state in states)
        if old != new:
            try:
                folder = self.folder or self._make_folder()
                self._write_copy(folder, picture if self.folder else None)
            except BaseException:
                self._verdicts = before
                raise
            self.folder = folder
        removed, added = (
            {
                Verdict(self._path(key), found.kind, self.album.names[found.label], tuple(found.box.tolist()), verdict)
                for key, (verdict, found) in state.items()
                if verdict in STORED
            }
            for state in states
        )
        if removed != added:
            self._file.change(removed - added, added - removed)

    def _write_copy(self, folder: Path, picture: int | None) -> None:
        """Write the annotations of the list that a picture is in, or of all lists."""
        accepted, start = self._accepted(), 0
        for dataset in self.album.sets:
            indices = range(start, start + len(dataset))
            start = indices.stop
            if picture is not None and picture not in indices:
                continue
            records = list(dataset.records)
            for index in filter(indices.__contains__, accepted):
                record = records[index - indices.start]
                truth = Truth(record.boxes, record.labels, record.ignore)
                boxes, labels, ignore = apply_suggestions(truth, accepted[index], record.size)
                records[index - indices.start] = replace(record, boxes=boxes, labels=labels, ignore=ignore)
            names = {record.path: abspath(str(record.path)) for record in records}
            file = folder / "annotations" / f"{dataset.split}.json"
            file.parent.mkdir(exist_ok=True)
            atomic_write(file, as_json(replace(dataset, records=Records(records)), names).encode())


def routes(review: LabelReview) -> list[Route]:
    """Return the addresses of the page and their handlers, which answer with the state of a review."""

    threads = FewThreads(1)  # a review does one thing at a time

    def answer(act: Callable[[], Key | None]) -> Response:
        """Run an action and answer with the state, in which the suggestion that the action returns comes first."""
        if not review.album.ready:
            raise HTTPException(409, "The pictures are still being read.")
        try:
            first = act()
        except KeyError:
            raise HTTPException(404, "There is no such suggestion.") from None
        except LookupError:
            raise HTTPException(409, "There is nothing to undo.") from None
        except (OSError, UnicodeEncodeError) as error:
            text = f"The copy can't be written, so nothing has changed: {error}"
            raise HTTPException(507, printable(text)) from None
        return JSONResponse(review.state(first))

    def suggestions(request: Request) -> Response:
        words = [request.query_params.get(name, "") for name in Key._fields]
        numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 12]
        return answer(lambda: Key(*numbers) if len(numbers) == 2 else None)

    async def judge(request: Request) -> Response:
        """Store a verdict: {"picture": 0, "detection": 0, "verdict": "right"}."""
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_BYTES:
                raise HTTPException(413, "This is too long for a verdict.")
        try:
            tree = json.loads(content)
            key, verdict = Key(tree["picture"], tree["detection"]), tree["verdict"]
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            raise HTTPException(400, "A verdict has the keys picture, detection and verdict.") from None
        if type(key.picture) is not int or type(key.detection) is not int or verdict not in VERDICTS:
            raise HTTPException(
                400, f"A verdict is one of {', '.join(VERDICTS)}, with two integers: picture and detection."
            )
        return await threads.run(None, answer, lambda: review.judge(key, verdict))

    return [
        Route("/api/labels", threads.handler(suggestions)),
        Route("/api/labels", judge, methods=["POST"]),
        Route("/api/labels/undo", threads.handler(lambda _: answer(review.undo)), methods=["POST"]),
    ]
