"""The page "Labels": questions about suspected label errors, a person's verdicts, and the corrected copy.

The verdict `change` accepts a suggestion and changes the copy. `keep` changes nothing and is stored in a cache folder,
in one file per folder of images, so that it also holds for the corrected copy, which refers to the same images. A
suggestion is recognised by its picture, kind, class and box, so that another detector, whose boxes differ slightly,
does not suggest it again. `later` moves a suggestion behind the others, until the server ends.
"""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, count, zip_longest
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
from rcnn.diagnose.label_errors import Suggestion, apply_suggestions, find_suggestions, question
from rcnn.errors import printable
from rcnn.look.album import Album
from rcnn.look.threads import FewThreads
from rcnn.metrics.overlap import box_iou
from rcnn.metrics.types import Truth
from rcnn.report.scores import IOU
from rcnn.weights.file import atomic_write

FORMAT = 2
VERDICTS = ("change", "keep", "later")

ANSWERS = {
    "missing_label": ("Add {new}", "Add nothing"),
    "wrong_class": ("Change to {new}", "Keep {old}"),
    "bad_box": ("Use the new box", "Keep the box"),
    "spurious_label": ("Remove {old}", "Keep {old}"),
}
"""Kind of a suggestion -> what the verdicts `change` and `keep` do, with the suggested class and that of the label."""

MAX_NAME = 60
"""Number of characters of the name of a class in a question."""

MAX_BYTES = 100_000
"""Largest verdict that a page may send."""

MAX_SENT = 20
"""Number of suggestions in an answer; all of the first picture are sent in any case."""

INDEX = re.compile(r"-?\d{1,11}", re.ASCII)
"""An index in an address."""

SEARCH_SHARE = 20
"""While pictures are predicted, searching for suggestions takes at most one in this many parts of the time."""


class Key(NamedTuple):
    """The indices of the picture, detection and label of a suggestion; -1 for none."""

    picture: int
    detection: int
    object: int


class Verdict(NamedTuple):
    """A suggestion with the verdict `keep`, as it is stored.

    Attributes:
        picture: absolute path of the image.
        kind: of the suggestion.
        name: of the suggested class.
        box: in pixels of the file.
    """

    picture: str
    kind: str
    name: str
    box: tuple[float, ...]

    @classmethod
    def read(cls, picture: Any, kind: Any, name: Any, box: Any) -> "Verdict":
        """Return the verdict in an entry of a file.

        Raises:
            ValueError: it is not a verdict.
        """
        words = all(isinstance(word, str) for word in (picture, kind, name))
        numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
        if not (words and numbers):
            raise ValueError("not a verdict")
        return cls(picture, kind, name, tuple(float(side) for side in box))

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
            self._damaged = printable(f"The verdicts of earlier sessions can't be read: {error}.")
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
            self._unwritten = printable(f"Verdicts can't be stored, and hold until the server ends: {error}.")

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
                "The file with the verdicts of earlier sessions is damaged, or of another version; their suggestions "
                f"appear again. It is now {renamed}."
            )
            return []


class Answer(NamedTuple):
    """A verdict since the start of the server, and the suggestion that it is on."""

    verdict: str
    suggestion: Suggestion


class LabelReview:
    """Suggestions for the labels of an album, the verdicts on them, and the corrected copy.

    Args:
        album: whose labels are reviewed.
        make_folder: creates the folder of the copy when the first suggestion is accepted.
        verdicts: stores the verdicts `keep`.
    """

    def __init__(self, album: Album, make_folder: Callable[[], Path], verdicts: VerdictFile) -> None:
        self.album, self._make_folder, self._file = album, make_folder, verdicts
        self.folder: Path | None = None
        self._earlier_verdicts: list[Verdict] | None = None
        self._answers: dict[Key, Answer] = {}
        """The verdicts since the start of the server, newest last."""
        self._steps: list[dict[Key, Answer | None]] = []
        """For each step since the start of the server, newest last, the answers that it replaced."""
        self._found: dict[Key, Suggestion] = {}
        self._pictures_searched, self._next_search = -1, 0.0
        self._lock = threading.Lock()

    @property
    def fault(self) -> str:
        """The reason why there can be no suggestions; empty if there can."""
        album = self.album
        if album.finder is None and album.detector is None:
            return "There is no model here. Start rcnn look with a model and labelled pictures, or with an audit."
        if album.finder is None:
            return "This model only proposes boxes. Checking labels takes a model that predicts classes."
        return "" if album.sets else "There are no labels here. Start rcnn look with a data set."

    def state(self, first: Key | None = None) -> dict[str, Any]:
        """Return the next picture with its suggestions, the numbers of verdicts, and the path of the copy.

        Args:
            first: the suggestion to put first, if it is open. Its picture comes first in any case, if it has others.
        """
        with self._lock:
            waiting = self._open()
            queue = self._queue(waiting, first)
            here = [key for key in queue if self._is_beside(key, queue[0])]
            words = [answer.verdict for answer in self._answers.values()] + ["keep"] * len(self._earlier())
            sent = list(dict.fromkeys((*here, *queue)))[: max(MAX_SENT, len(here))]
            return {
                "fault": self.fault,
                "suggestions": [self._describe(key, waiting[key]) for key in sent],
                "picture": self._describe_picture(here, waiting) if here else None,
                "waiting": len(waiting),
                "verdicts": {word: words.count(word) for word in VERDICTS},
                "undo": bool(self._steps or self._earlier()),
                "note": self._file.note,
                "folder": printable(str(self.folder)) if self.folder else "",
            }

    def judge(self, keys: Sequence[Key], verdict: str) -> None:
        """Give suggestions of one picture the same verdict, and write what is accepted to the copy. It is one step.

        Raises:
            KeyError: there is no such suggestion.
            OSError: the copy can't be written, and the verdict is not stored.
        """
        with self._lock:
            found = self._find()
            self._steps.append(self._replace({key: Answer(verdict, found[key]) for key in keys}))

    def undo(self) -> Key | None:
        """Undo the last step of this server, or if there is none the last stored verdict.

        Returns:
            The first suggestion of the step; None if the detector has not found it since the start of the server.

        Raises:
            LookupError: there is no verdict.
            OSError: the copy can't be written, and nothing is undone.
        """
        with self._lock:
            if not self._steps:
                verdict = self._earlier().pop()
                self._file.change([verdict], [])
                return next(
                    (key for key, found in self._find().items() if self._has_verdict(key, found, [verdict])), None
                )
            step = self._steps[-1]
            self._replace(step)
            self._steps.pop()
            return next(iter(step))

    def _find(self) -> dict[Key, Suggestion]:
        """Return all suggestions for the pictures that have been predicted, the most likely first."""
        album, now = self.album, time.monotonic()
        truths = {i: truth for i in sorted(album.judged) if (truth := album.pictures[i].truth) is not None}
        if len(truths) != self._pictures_searched and now >= self._next_search:
            pictures = list(truths)
            predictions = [album.judged[index].prediction for index in pictures]
            found = find_suggestions([*truths.values()], predictions, len(album.names), album.threshold)
            self._found = {Key(pictures[one.image], one.detection, one.truth): one for one in found}
            self._pictures_searched = len(truths)
            self._next_search = now + SEARCH_SHARE * (time.monotonic() - now)
        return self._found

    def _earlier(self) -> list[Verdict]:
        """Return the stored verdicts of earlier servers on the pictures with labels, oldest first."""
        if self._earlier_verdicts is None:
            paths = [picture.path for picture in self.album.pictures if picture.truth is not None]
            self._earlier_verdicts = self._file.open(paths) if paths else []
        return self._earlier_verdicts

    def _open(self) -> dict[Key, Suggestion]:
        """Return the suggestions that are neither accepted nor declined, the most likely first."""
        earlier = defaultdict[str, list[Verdict]](list)
        for verdict in self._earlier():
            earlier[verdict.picture].append(verdict)
        return {
            key: suggestion
            for key, suggestion in self._find().items()
            if (key not in self._answers or self._is_postponed(key))
            and not self._has_verdict(key, suggestion, earlier[self._path(key)])
        }

    def _queue(self, waiting: Iterable[Key], first: Key | None) -> list[Key]:
        """Return open suggestions in display order: picture by picture, and then those that are postponed.

        Args:
            waiting: the open suggestions, the most likely first.
            first: as for `state`.
        """
        pictures = defaultdict[int, list[Key]](list)
        if first is not None:
            pictures[first.picture] = []
        for key in waiting:
            if not self._is_postponed(key):
                pictures[key.picture].append(key)
        known = {*waiting}
        queue = [*chain(*pictures.values()), *(key for key in self._answers if key in known)]
        return sorted(queue, key=lambda key: key != first)

    def _is_postponed(self, key: Key) -> bool:
        return key in self._answers and self._answers[key].verdict == "later"

    def _is_beside(self, key: Key, other: Key) -> bool:
        """Return whether two open suggestions are of the same picture, and both or neither of them postponed."""
        return key.picture == other.picture and self._is_postponed(key) == self._is_postponed(other)

    def _has_verdict(self, key: Key, suggestion: Suggestion, verdicts: Sequence[Verdict]) -> bool:
        """Return whether one of these verdicts is on a suggestion."""
        path, name = self._path(key), self.album.names[suggestion.label]
        return any(verdict.is_on(path, suggestion, name) for verdict in verdicts)

    def _path(self, key: Key) -> str:
        return abspath(self.album.pictures[key.picture].path)

    @cached_property
    def _names(self) -> list[str]:
        """Names of classes for questions."""
        names = map(printable, self.album.names)
        return [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in names]

    def _describe(self, key: Key, suggestion: Suggestion) -> dict[str, Any]:
        """Return a suggestion, its question, and what the verdicts do."""
        truth = self.album.pictures[key.picture].truth
        assert truth is not None
        old = self._names[truth.labels[key.object]] if key.object >= 0 else ""
        change, keep = (text.format(new=self._names[suggestion.label], old=old) for text in ANSWERS[suggestion.kind])
        return {
            **key._asdict(),
            "kind": suggestion.kind,
            "question": question(suggestion, truth, self._names),
            "change": change,
            "keep": keep,
            "label": suggestion.label,
            "score": suggestion.score,
            "box": suggestion.box.tolist(),
        }

    def _describe_picture(self, here: Sequence[Key], waiting: Iterable[Key]) -> dict[str, Any]:
        """Return the picture of suggestions, with its labels in the copy.

        Args:
            here: the suggestions that follow each other.
            waiting: all open suggestions.
        """
        index = here[0].picture
        picture, accepted = self.album.pictures[index], self._accepted()[index]
        assert picture.truth is not None
        assert picture.size is not None
        removed = {suggestion.truth for suggestion in accepted if suggestion.kind == "spurious_label"}
        left = [number for number in range(len(picture.truth.labels)) if number not in removed]
        after = apply_suggestions(picture.truth, accepted, picture.size)
        columns = zip_longest(*(column.tolist() for column in after), left, fillvalue=-1)
        known = {key for key in (*waiting, *self._answers) if key.picture == index}
        return {
            "index": index,
            "name": printable(picture.name),
            "size": picture.size,
            "labels": [
                {"box": box, "label": label, "ignore": ignore, "object": number}
                for box, label, ignore, number in columns
            ],
            "suggestions": len(known),
            "position": len(known) - len(here) + 1,
            "here": len(here),
        }

    def _accepted(self) -> defaultdict[int, list[Suggestion]]:
        """Return index of a picture -> accepted suggestions, in an order that is not that of the verdicts."""
        accepted = defaultdict[int, list[Suggestion]](list)
        for key, answer in sorted(self._answers.items(), key=lambda item: item[0]):
            if answer.verdict == "change":
                accepted[key.picture].append(answer.suggestion)
        return accepted

    def _replace(self, answers: Mapping[Key, Answer | None]) -> dict[Key, Answer | None]:
        """Replace or remove answers for one picture, and write its list in the copy (at first all lists) and the file.

        Returns:
            The answers that were replaced.

        Raises:
            OSError: the copy can't be written, and nothing is replaced.
        """
        before = dict(self._answers)
        for key, answer in answers.items():
            self._answers.pop(key, None)
            if answer is not None:
                self._answers[key] = answer
        states = (before, self._answers)
        old, new = ({key for key in answers if key in state and state[key].verdict == "change"} for state in states)
        if old != new:
            try:
                folder = self.folder or self._make_folder()
                self._write_copy(folder, next(iter(answers)).picture if self.folder else None)
            except BaseException:
                self._answers = before
                raise
            self.folder = folder
        removed, added = (
            [
                self._stored(key, state[key].suggestion)
                for key in answers
                if key in state and state[key].verdict == "keep"
            ]
            for state in states
        )
        if removed != added:
            self._file.change(removed, added)
        return {key: before.get(key) for key in answers}

    def _stored(self, key: Key, suggestion: Suggestion) -> Verdict:
        """Return the verdict `keep` on a suggestion as it is stored."""
        name, box = self.album.names[suggestion.label], tuple(suggestion.box.tolist())
        return Verdict(self._path(key), suggestion.kind, name, box)

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
        return answer(lambda: Key(*map(int, words)) if all(map(INDEX.fullmatch, words)) else None)

    async def judge(request: Request) -> Response:
        """Store the verdict on suggestions: {"verdict": "change", "keys": [[0, 3, -1], [0, -1, 2]]}."""
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_BYTES:
                raise HTTPException(413, "This is too long for a verdict.")
        keys, verdict = read_verdict(bytes(content))

        def act() -> Key:
            review.judge(keys, verdict)
            return Key(keys[0].picture, -1, -1)  # the other suggestions of the picture follow

        return await threads.run(None, answer, act)

    return [
        Route("/api/labels", threads.handler(suggestions)),
        Route("/api/labels", judge, methods=["POST"]),
        Route("/api/labels/undo", threads.handler(lambda _: answer(review.undo)), methods=["POST"]),
    ]


def read_verdict(content: bytes) -> tuple[list[Key], str]:
    """Return the suggestions and the verdict in the body of a request, or refuse it."""
    try:
        tree = json.loads(content)
        keys, verdict = [Key(*key) for key in tree["keys"]], tree["verdict"]
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        raise HTTPException(
            400, "A verdict has `verdict` and `keys`: lists of the indices of picture, detection and object."
        ) from None
    if verdict not in VERDICTS:
        raise HTTPException(400, f"A verdict is one of {', '.join(VERDICTS)}.")
    if not all(type(index) is int for key in keys for index in key) or len({key.picture for key in keys}) != 1:
        raise HTTPException(400, "The indices are integers, and those of the picture are the same in all `keys`.")
    return keys, verdict
