"""The pictures that `rcnn look` shows: of a data set or a folder, with truth and detections, and a choice of them."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.find import find_layout, open_dataset
from rcnn.detector import Detector
from rcnn.errors import DataError, SettingsError, printable
from rcnn.insight.funnel.kinds import ALARMS
from rcnn.metrics.overlap import area
from rcnn.metrics.proposals import SIZES
from rcnn.metrics.types import Prediction, Truth
from rcnn.page.finder import Finder, Found, judged
from rcnn.preprocess.sources import files, is_image

LISTS = ("train", "val", "test")
DROPPED = "dropped"
"""The list of pictures that were dropped on the page."""

MOST_FOUND = 5000
"""Pictures that are predicted without being asked for, the first ones."""

PAUSE = 1.0
"""Seconds that the prediction of the other pictures waits after somebody asked for one."""

KINDS = {kind: text for kind, text in ALARMS.items() if kind != "missing_label"}
MISTAKES = {"any": "any mistake", "lost": "lost objects", "wrong": "wrong detections", **KINDS, "none": "no mistake"}
"""Values of the filter by mistakes -> what they mean."""


class Picture(NamedTuple):
    """A picture: its file, the name that is shown, the list that it is in, and its truth, if that is known."""

    path: Path
    name: str
    list: str
    truth: Truth | None


class Choice(NamedTuple):
    """What is asked for; None is everything.

    Attributes:
        list: of the data set, or `DROPPED`.
        label: of an object or a detection.
        size: of `SIZES`, likewise.
        score: from this one on a detection counts.
        mistake: of `MISTAKES`.
    """

    list: str | None = None
    label: int | None = None
    size: str | None = None
    score: float = 0.5
    mistake: str | None = None


class Rows(NamedTuple):
    """Objects or detections of many pictures, n of them.

    Attributes:
        picture: (n,) index of the picture.
        label: (n,) class.
        area: (n,) px of the file.
        score: (n,) of the detection; of an object, of the detection that takes it, or -1.
        mark: (n,) of a detection its place in `KINDS` plus 1, 0 for a right one, -1 for one that does not count. Of an
            object, 0, and -1 for one that does not count.
    """

    picture: np.ndarray
    label: np.ndarray
    area: np.ndarray
    score: np.ndarray
    mark: np.ndarray

    def chosen(self, choice: Choice) -> np.ndarray:
        """(n,) bool: of this class and size."""
        low, high = SIZES[choice.size] if choice.size else (0.0, np.inf)
        of_size = (self.area >= low) & (self.area < high)
        return of_size if choice.label is None else of_size & (self.label == choice.label)


class Album:
    """Pictures, opened and predicted by a thread while others ask for them.

    Args:
        load: gives the detector; None for none.
        data: data set, folder or picture; None for none.
    """

    def __init__(self, load: Callable[[], Detector] | None, data: Path | None) -> None:
        self._load, self.data = load, data
        self.ready, self.failed, self.notes = False, "", list[str]()
        self.detector: Detector | None = None
        self.finder: Finder | None = None
        self.settings = Settings()
        self.names: tuple[str, ...] = ()
        self.pictures: list[Picture] = []
        self.found: dict[int, Found] = {}
        self.faults: dict[int, str] = {}
        self.asked = -PAUSE
        """When a picture was last looked at alone, by `time.monotonic`."""
        self.network = threading.Lock()
        """Held by the thread that runs the network."""
        self._objects: tuple[int, Rows] | None = None
        self._detections: tuple[int, Rows] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Open everything in a thread of its own, then predict."""
        self._thread.start()

    def stop(self) -> None:
        """End the prediction, since the process can't end well while the network runs in a thread."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _work(self) -> None:
        try:
            self.open()
        except Exception as error:  # the page says so in its place
            self.failed = printable(str(error) or type(error).__name__)
            return
        for place in range(min(len(self.pictures), MOST_FOUND) if self.finder else 0):
            self.find(place)
            self._ending.wait(0.005)  # for those who wait for the detector
            while time.monotonic() - self.asked < PAUSE and not self._ending.is_set():
                self._ending.wait(0.05)
            if self._ending.is_set():
                return

    def open(self) -> None:
        """Load the detector and read the data.

        Raises:
            WeightsError, DataError, ImageError: as `rcnn.load`, `open_dataset` and `files` do.
        """
        if self._load is not None:
            self.detector = self._load()
            self.settings, self.names = self.detector.settings, self.detector.names
            try:
                self.finder = Finder(self.detector, self.network)
            except SettingsError as error:
                self.notes.append(f"No detections: {error}")
        if self.data is not None:
            self.pictures = self._read(self.data)
        self.ready = True

    def _read(self, data: Path) -> list[Picture]:
        """The pictures of a data set in all its lists, or of a folder."""
        names = self.names if self.detector else None
        try:
            lists = find_layout(data).lists
        except DataError:
            if not data.exists() or not (data.is_dir() or is_image(data.name)):
                raise
            top = data if data.is_dir() else data.parent
            start = len(str(top / "a")) - 1  # `relative_to` takes seconds for 100,000 files
            return [Picture(file, str(file)[start:], "all", None) for file in files(data)]
        settings = self.settings.data.model_copy(update={"on_fault": "skip"})
        sets: list[Dataset] = []
        try:
            there = [name for name in LISTS if name in lists or (name != "test" and {"trainval", "all"} & {*lists})]
            sets = [open_dataset(data, name, settings, names, decode=False) for name in there or ["all"]]  # type: ignore[arg-type]
        except DataError:  # a single picture can't be divided
            sets = [open_dataset(data, "all", settings, names, decode=False)]
        self.names = self.names or sets[0].names
        self.notes += dict.fromkeys(note for one in sets for note in one.notes)
        if left_out := len({fault for one in sets for fault in one.faults}):
            self.notes.append(
                f"Faults in the data that were mended or left out: {left_out:,}. rcnn data check lists them."
            )
        return [
            Picture(record.path, record.name, one.split, Truth(record.boxes, record.labels, record.ignore))
            for one in sets
            for record in one.records
        ]

    def find(self, place: int) -> Found | None:
        """The detections of a picture; None if there is no detector, or the picture can't be read (see `faults`)."""
        if self.finder is None or place in self.faults:
            return None
        if place not in self.found:
            picture = self.pictures[place]
            try:
                result = self.finder.find(picture.path, keep=False)
            except Exception as error:  # one picture costs no other
                self.faults[place] = self.told(place, error)
                return None
            self.found[place] = judged(Prediction(result.boxes, result.scores, result.labels), picture.truth)
        return self.found[place]

    def told(self, place: int, error: Exception) -> str:
        """Why a picture can't be shown, without the folders of this machine."""
        picture = self.pictures[place]
        return printable(str(error) or type(error).__name__).replace(printable(str(picture.path)), picture.name)

    def add(self, path: Path, name: str) -> int:
        """Add a picture that was dropped on the page."""
        with self._lock:
            self.pictures.append(Picture(path, name, DROPPED, None))
            return len(self.pictures) - 1

    def choose(self, choice: Choice) -> list[int]:
        """The pictures that have what is asked for, in order.

        With a mistake, only pictures that are predicted and have a truth are chosen.
        """
        objects, detections = self.objects(), self.detections()
        pictures = list(self.pictures)  # after the rows: meanwhile one may be dropped on the page
        number = len(pictures)
        kept = np.ones(number, bool)
        if choice.list is not None:
            kept &= np.array([picture.list == choice.list for picture in pictures], bool)
        these, those = objects.chosen(choice), detections.chosen(choice)
        those &= detections.score >= np.float32(choice.score)
        lost = these & (objects.mark == 0) & (objects.score < np.float32(choice.score))
        wrong = those & (detections.mark > 0)
        if choice.mistake is None:
            if choice.label is not None or choice.size is not None:
                kept &= _has(number, objects.picture[these], detections.picture[those])
            return np.flatnonzero(kept).tolist()
        compared = np.zeros(number, bool)
        done = [place for place in list(self.found) if place < number and pictures[place].truth is not None]
        compared[done] = True
        if choice.mistake in KINDS:
            wrong &= detections.mark == 1 + list(KINDS).index(choice.mistake)
        any_lost = _has(number, objects.picture[lost])
        any_wrong = _has(number, detections.picture[wrong])
        if choice.mistake == "none":
            mistaken = ~(any_lost | any_wrong)
        else:
            parts = {"any": any_lost | any_wrong, "lost": any_lost}
            mistaken = parts.get(choice.mistake, any_wrong)
        return np.flatnonzero(kept & compared & mistaken).tolist()

    def counts(self, place: int, score: float) -> dict[str, Any]:
        """Of one picture: objects that count, and, as far as it is predicted, right, wrong and lost ones at a score."""
        truth, found = self.pictures[place].truth, self.found.get(place)
        told: dict[str, Any] = {"objects": None if truth is None else int((~truth.ignore).sum())}
        if found is not None:
            sure = found.prediction.scores >= np.float32(score)
            told["detections"] = int((sure & ~found.ignored).sum())
            if truth is not None:
                told["right"] = int((sure & (found.matched >= 0)).sum())
                told["wrong"] = told["detections"] - told["right"]
                told["lost"] = told["objects"] - told["right"]
        return told

    def objects(self) -> Rows:
        """All objects, with the scores of the detections that take them."""
        with self._lock:
            done = len(self.found)
            if self._objects is None or self._objects[0] != done:
                found = dict(self.found)
                parts = [
                    _rows(
                        place,
                        truth.boxes,
                        truth.labels,
                        found[place].scores_of(len(truth.labels))
                        if place in found
                        else np.full(len(truth.labels), -1.0),
                        np.where(truth.ignore, -1, 0),
                    )
                    for place, (_, _, _, truth) in enumerate(self.pictures)
                    if truth is not None and len(truth.labels)
                ]
                self._objects = done, _joined(parts)
            return self._objects[1]

    def detections(self) -> Rows:
        """All detections."""
        with self._lock:
            done = len(self.found)
            if self._detections is None or self._detections[0] != done:
                marks = {kind: place for place, kind in enumerate(("", *KINDS))}
                parts = [
                    _rows(
                        place,
                        found.prediction.boxes,
                        found.prediction.labels,
                        found.prediction.scores,
                        np.where(found.ignored, -1, np.array([marks[kind] for kind in found.kinds], np.int64)),
                    )
                    for place, found in list(self.found.items())
                ]
                self._detections = done, _joined(parts)
            return self._detections[1]


def _rows(place: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, marks: np.ndarray) -> Rows:
    where = np.full(len(labels), place)
    return Rows(where, labels, area(boxes.astype(np.float64)), scores.astype(np.float32), marks)


def _joined(parts: Iterable[Rows]) -> Rows:
    empty = np.zeros(0, np.int64)
    none = Rows(empty, empty, np.zeros(0), np.zeros(0, np.float32), empty)
    return Rows(*(np.concatenate(columns) for columns in zip(none, *parts, strict=True)))


def _has(number: int, *places: np.ndarray) -> np.ndarray:
    """(number,) bool: the pictures that are among the places."""
    there = np.zeros(number, bool)
    for those in places:
        there[those] = True
    return there
