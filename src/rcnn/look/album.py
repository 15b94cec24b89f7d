"""The pictures that `rcnn look` shows: of a data set or a folder, with truth and detections, and a choice of them."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import find_layout, layout_at, open_dataset
from rcnn.detector import Detector
from rcnn.errors import DataError, SettingsError, printable
from rcnn.images.sources import files, is_image
from rcnn.look.choice import KINDS, Choice, Rows, among, joined, rows_of
from rcnn.look.finder import Finder, Found, judged
from rcnn.look.index import indexed
from rcnn.metrics.types import Prediction, Truth

LISTS = ("train", "val", "test")
DROPPED = "dropped"
"""The list of pictures that were dropped on the page."""

MOST_FOUND = 5000
"""Pictures that are predicted without being asked for, the first ones."""

PAUSE = 1.0
"""Seconds that the prediction of the other pictures waits after somebody asked for one."""


class Picture(NamedTuple):
    """A picture: its file, the name that is shown, the list that it is in, and its truth, if that is known."""

    path: Path
    name: str
    list: str
    truth: Truth | None


class Album:
    """Pictures, opened and predicted by a thread while others ask for them.

    Args:
        load: gives the detector; None for none.
        data: data set, folder or picture; None for none.
        cache: folder that labels which were read are kept in; None: they are not.
    """

    def __init__(self, load: Callable[[], Detector] | None, data: Path | None, cache: Path | None = None) -> None:
        self._load, self.data, self._cache = load, data, cache
        self.read = 0, 0
        """Images whose labels have been read, of how many, while a list is being read."""
        self.ready, self.failed, self.notes = False, "", list[str]()
        self.detector: Detector | None = None
        self.finder: Finder | None = None
        self.settings = Settings()
        self.names: tuple[str, ...] = ()
        self.pictures: list[Picture] = []
        self.sets: list[Dataset] = []
        """The lists of the data set, whose images are the first pictures, in order; empty for a folder."""
        self.found: dict[int, Found] = {}
        self.faults: dict[int, str] = {}
        self.asked = -PAUSE
        """When a picture was last looked at alone, by `time.monotonic`."""
        self.network = ThreadPoolExecutor(1, "network")
        """The thread that runs the network, and no other one does."""
        self._objects: tuple[int, Rows] | None = None
        self._detections: tuple[int, Rows] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def given(self) -> bool:
        """Is there a model or data?"""
        return self._load is not None or self.data is not None

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
        gc.freeze()
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
            collects_garbage = gc.isenabled()
            gc.disable()  # it would search the pictures again and again while they become more: half of the time
            try:
                self.pictures = self._read(self.data)
            finally:
                if collects_garbage:
                    gc.enable()
        self.ready = True

    def _read(self, data: Path) -> list[Picture]:
        """The pictures of a data set in all its lists, or of a folder."""
        names = self.names if self.detector else None
        alone = data.is_dir() or (is_image(data.name) and data.exists())  # may be pictures without labels
        try:
            layout = layout_at(data) if alone else find_layout(data)
        except DataError:
            if not alone:
                raise
            layout = None
        if layout is None:
            top = data if data.is_dir() else data.parent
            start = len(str(top / "a")) - 1  # `relative_to` takes seconds for 100,000 files
            return [Picture(file, str(file)[start:], "all", None) for file in files(data)]
        settings = self.settings.data.model_copy(update={"on_fault": "skip"})

        def opened(split: str) -> Dataset:
            return open_dataset(data, split, settings, names, decode=False, progress=self._progress)  # type: ignore[arg-type]

        def read() -> list[Dataset]:
            divided = {"trainval", "all"} & {*layout.lists}
            there = [name for name in LISTS if name in layout.lists or (name != "test" and divided)]
            try:
                return [opened(name) for name in there or ["all"]]
            except DataError:  # a single picture can't be divided
                return [opened("all")]

        words = (settings.model_dump_json(), repr(names))
        sets = read() if self._cache is None else indexed(self._cache, data, layout.root, words, read)
        self.names, self.sets = self.names or sets[0].names, sets
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

    def _progress(self, done: int, images: int) -> None:
        self.read = done, images

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
        if choice == Choice(choice.list, score=choice.score):
            names = enumerate(list(self.pictures))
            return [place for place, picture in names if choice.list in (None, picture.list)]
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
                kept &= among(number, objects.picture[these], detections.picture[those])
            return np.flatnonzero(kept).tolist()
        compared = np.zeros(number, bool)
        done = [place for place in list(self.found) if place < number and pictures[place].truth is not None]
        compared[done] = True
        if choice.mistake in KINDS:
            wrong &= detections.mark == 1 + list(KINDS).index(choice.mistake)
        any_lost = among(number, objects.picture[lost])
        any_wrong = among(number, detections.picture[wrong])
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
                    rows_of(
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
                self._objects = done, joined(parts)
            return self._objects[1]

    def detections(self) -> Rows:
        """All detections."""
        with self._lock:
            done = len(self.found)
            if self._detections is None or self._detections[0] != done:
                marks = {kind: place for place, kind in enumerate(("", *KINDS))}
                parts = [
                    rows_of(
                        place,
                        found.prediction.boxes,
                        found.prediction.labels,
                        found.prediction.scores,
                        np.where(found.ignored, -1, np.array([marks[kind] for kind in found.kinds], np.int64)),
                    )
                    for place, found in list(self.found.items())
                ]
                self._detections = done, joined(parts)
            return self._detections[1]
