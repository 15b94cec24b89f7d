"""The pictures of `rcnn look`: those of a data set or a folder, with truth and detections, and filters of them."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, find_layout, layout_at, open_several
from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import ALARMS
from rcnn.errors import DataError, SettingsError, printable
from rcnn.images.sources import files, is_image
from rcnn.images.storage import local_path
from rcnn.look.finder import Finder, JudgedDetections, KnownDetections, judge_detections
from rcnn.metrics.curves import best_threshold, precision_recall
from rcnn.metrics.overlap import area
from rcnn.metrics.proposal_recall import SIZES
from rcnn.metrics.types import Prediction, Truth

DROPPED = "dropped"
"""Name of the list of pictures that were dropped on the page."""

MAX_PREDICTED = 5000
"""Number of pictures that are predicted before they are opened, the first ones."""

PAUSE = 1.0
"""Seconds for which the prediction of the other pictures pauses after a picture was opened."""

KINDS = {kind: text for kind, text in ALARMS.items() if kind != "missing_label"}
MISTAKES = {"any": "any mistake", "lost": "lost objects", "wrong": "wrong detections", **KINDS, "none": "no mistake"}
"""Values of the filter by mistakes -> their description."""


class AlbumImage(NamedTuple):
    """A picture.

    Attributes:
        path: its file.
        name: that is shown.
        list: of the data set, "all" for a folder, or `DROPPED`.
        truth: None if it has no labels.
        size: (height, width) of a picture of a data set.
    """

    path: Path
    name: str
    list: str
    truth: Truth | None
    size: tuple[int, int] | None = None


class Filters(NamedTuple):
    """Conditions by which pictures are chosen; None allows any.

    Attributes:
        list: as `AlbumImage.list`.
        label: class of an object or a detection in the picture.
        size: of an object or a detection in the picture, a key of `SIZES`.
        score: lowest score of a detection that counts.
        mistake: a key of `MISTAKES`.
    """

    list: str | None = None
    label: int | None = None
    size: str | None = None
    score: float = 0.5
    mistake: str | None = None


class BoxTable(NamedTuple):
    """Columns of the objects or detections of many pictures, n of them.

    Attributes:
        picture: (n,) index of the picture.
        label: (n,) class.
        area: (n,) px of the file.
        score: (n,) of the detection; of an object, that of the detection that matches it, or -1.
        mark: (n,) of a detection 0 if it is right, else 1 + the index of its kind in `KINDS`; of an object 0; -1 if
            the detection or object is ignored.
    """

    picture: np.ndarray
    label: np.ndarray
    area: np.ndarray
    score: np.ndarray
    mark: np.ndarray

    @classmethod
    def of(cls, parts: list[tuple[int, Prediction, np.ndarray]]) -> "BoxTable":
        """Return the table of several pictures from (index of the picture, boxes with scores and labels, marks)."""
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.float32), np.zeros(0, int))
        rows = [
            (np.full(len(labels), index), labels, area(boxes.astype(np.float64)), scores.astype(np.float32), marks)
            for index, (boxes, scores, labels), marks in parts
        ]
        return cls(*(np.concatenate(columns) for columns in zip(empty, *rows, strict=True)))

    def matches(self, filters: Filters) -> np.ndarray:
        """Return (n,) bool, whether class and size match the filters."""
        low, high = SIZES[filters.size] if filters.size else (0.0, np.inf)
        of_size = (self.area >= low) & (self.area < high)
        return of_size if filters.label is None else of_size & (self.label == filters.label)


class Album:
    """Pictures that a thread reads and predicts, while other threads use those that are ready.

    Args:
        load: loads the detector, or detections that were made before; None for pictures alone.
        data: data set, folder or picture; None for a detector alone.
    """

    def __init__(self, load: Callable[[], Detector | KnownDetections] | None, data: Path | None) -> None:
        self._load, self.data = load, data
        self.has_subject = load is not None or data is not None
        """Whether there is a model or data."""
        self.read = 0, 0
        """Number of images whose labels have been read, and of all images, while a list is being read."""
        self.ready, self.failed, self.notes = False, "", list[str]()
        self.detector: Detector | None = None
        self.finder: Finder | KnownDetections | None = None
        self.threshold = 0.5
        """Score from which detections count unless the user chooses another."""
        self.settings = Settings()
        self.names: tuple[str, ...] = ()
        self.pictures: list[AlbumImage] = []
        self.sets: list[Dataset] = []
        """The lists of the data set, with the images of the first pictures in the same order; empty for a folder."""
        self.judged: dict[int, JudgedDetections] = {}
        """Index of a predicted picture -> its detections."""
        self.faults: dict[int, str] = {}
        """Index of a picture that can't be predicted -> the reason."""
        self.opened_at = -PAUSE
        """Time at which a picture was last opened, by `time.monotonic`."""
        self.network = ThreadPoolExecutor(1, "network")
        """The only thread that runs the network."""
        self._tables: tuple[int, BoxTable, BoxTable] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start a thread that opens and predicts the pictures."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, since the process can't exit cleanly while the network runs."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _work(self) -> None:
        try:
            self.open()
        except Exception as error:  # shown on the page
            self.failed = printable(str(error) or type(error).__name__)
            return
        gc.freeze()
        for index in range(min(len(self.pictures), MAX_PREDICTED) if self.finder else 0):
            self.predict(index)
            self._ending.wait(0.005)  # so that other threads can use the detector
            while time.monotonic() - self.opened_at < PAUSE and not self._ending.is_set():
                self._ending.wait(0.05)
            if self._ending.is_set():
                return

    def open(self) -> None:
        """Load the detector and read the data.

        Raises:
            WeightsError, DataError, ImageError: as `rcnn.load`, `open_dataset` and `files` do.
        """
        if self._load is not None:
            self._take(self._load())
        if self.data is not None:
            collects_garbage = gc.isenabled()
            gc.disable()  # repeated collections of the growing list would take half of the time
            try:
                self.pictures = self._read(self.data)
            finally:
                if collects_garbage:
                    gc.enable()
        if isinstance(self.finder, KnownDetections):
            self._judge_known()
        self.ready = True

    def _take(self, loaded: Detector | KnownDetections) -> None:
        """Use a detector, or known detections."""
        self.settings, self.names = loaded.settings, loaded.names
        if isinstance(loaded, KnownDetections):
            self.finder = loaded
            return
        self.detector, self.threshold = loaded, loaded.threshold
        try:
            self.finder = Finder(loaded, self.network)
        except SettingsError as error:
            self.notes.append(f"No detections: {error}")

    def _judge_known(self) -> None:
        """Judge the known detections of all pictures, and choose the threshold of the best mean F1.

        Raises:
            DataError: none of the pictures has any.
        """
        for index in range(len(self.pictures)):
            self.predict(index)
        if not self.judged:
            raise DataError(f"{self.data}: no detections are known of these pictures")
        if self.faults:
            self.notes.append(f"Pictures of which no detections are known: {len(self.faults):,}.")
        pairs = [
            (truth, self.judged[index].prediction)
            for index, picture in enumerate(self.pictures)
            if index in self.judged and (truth := picture.truth) is not None
        ]
        truths, predictions = zip(*pairs, strict=True) if pairs else ((), ())
        self.threshold = best_threshold(precision_recall(truths, predictions, len(self.names)))

    def _read(self, data: Path) -> list[AlbumImage]:
        """Return the pictures of all lists of a data set, or of a folder."""
        names = self.names or None
        may_lack_labels = data.is_dir() or (is_image(data.name) and data.exists())
        try:
            layout = layout_at(data) if may_lack_labels else find_layout(data)
        except DataError:
            if not may_lack_labels:
                raise
            layout = None
        if layout is None:
            top = data if data.is_dir() else data.parent
            start = len(str(top / "a")) - 1  # `relative_to` takes seconds for 100,000 files
            return [AlbumImage(local_path(file), str(file)[start:], "all", None) for file in files(data)]
        settings = self.settings.data.model_copy(update={"on_fault": "skip"})
        splits: tuple[Split, ...] = ("train", "val", "test")
        divided = {"train", "trainval", "all"} & {*layout.lists}
        lists = [name for name in splits if name in layout.lists or (name != "test" and divided)]
        opened = partial(open_several, data, settings=settings, names=names, decode=False, progress=self._progress)
        try:
            sets = opened(lists or ["all"])
        except DataError:  # a single picture can't be divided
            sets = opened(["all"])
        self.names, self.sets = self.names or sets[0].names, sets
        self.notes += dict.fromkeys(note for dataset in sets for note in dataset.notes)
        if faults := len({fault for dataset in sets for fault in dataset.faults}):
            self.notes.append(
                f"Faults in the data that were mended or left out: {faults:,}. rcnn data check lists them."
            )
        return [
            AlbumImage(
                local_path(image.path),
                image.name,
                dataset.split,
                Truth(image.boxes, image.labels, image.ignore),
                image.size,
            )
            for dataset in sets
            for image in dataset.records
        ]

    def _progress(self, done: int, images: int) -> None:
        self.read = done, images

    def predict(self, index: int) -> JudgedDetections | None:
        """Return the detections of a picture; None without a detector, or if it can't be predicted (see `faults`)."""
        if self.finder is None or index in self.faults:
            return None
        if index not in self.judged:
            picture = self.pictures[index]
            try:
                prediction = self.finder.find(picture.path, keep=False)
            except Exception as error:  # one picture must not stop the others
                self.faults[index] = self.fault_of(index, error)
                return None
            self.judged[index] = judge_detections(prediction, picture.truth)
        return self.judged[index]

    def fault_of(self, index: int, error: Exception) -> str:
        """Return the reason why a picture can't be shown, without the folders of this machine."""
        picture = self.pictures[index]
        return printable(str(error) or type(error).__name__).replace(printable(str(picture.path)), picture.name)

    def add(self, path: Path, name: str) -> int:
        """Add a picture that was dropped on the page; return its index."""
        with self._lock:
            self.pictures.append(AlbumImage(path, name, DROPPED, None))
            return len(self.pictures) - 1

    def choose(self, filters: Filters) -> list[int]:
        """Return the indices of the pictures that match the filters, in order.

        A filter by mistakes chooses only pictures that have a truth and have been predicted.
        """
        if filters == Filters(filters.list, score=filters.score):
            pictures = enumerate(list(self.pictures))
            return [index for index, picture in pictures if filters.list in (None, picture.list)]
        objects, detections = self._box_tables()
        pictures = list(self.pictures)  # after the tables, since a picture may be dropped on the page meanwhile

        def holding(*indices: np.ndarray) -> np.ndarray:
            """Return (pictures,) bool, True at the indices."""
            mask = np.zeros(len(pictures), bool)
            mask[np.concatenate(indices)] = True
            return mask

        chosen = np.ones(len(pictures), bool)
        if filters.list is not None:
            chosen &= np.array([picture.list == filters.list for picture in pictures], bool)
        own_objects, own_detections = objects.matches(filters), detections.matches(filters)
        own_detections &= detections.score >= np.float32(filters.score)
        if filters.mistake is None:
            if filters.label is not None or filters.size is not None:
                chosen &= holding(objects.picture[own_objects], detections.picture[own_detections])
            return np.flatnonzero(chosen).tolist()
        wrong = own_detections & (detections.mark > 0)
        if filters.mistake in KINDS:
            wrong &= detections.mark == 1 + list(KINDS).index(filters.mistake)
        any_wrong = holding(detections.picture[wrong])
        any_lost = holding(
            objects.picture[own_objects & (objects.mark == 0) & (objects.score < np.float32(filters.score))]
        )
        by_mistake = {"none": ~(any_lost | any_wrong), "any": any_lost | any_wrong, "lost": any_lost}
        compared = [i for i in list(self.judged) if i < len(pictures) and pictures[i].truth is not None]
        chosen &= holding(np.array(compared, np.int64)) & by_mistake.get(filters.mistake, any_wrong)
        return np.flatnonzero(chosen).tolist()

    def counts(self, index: int, score: float) -> dict[str, Any]:
        """Return the counts of one picture at a score: objects, and once it is predicted right, wrong and lost."""
        truth, judged = self.pictures[index].truth, self.judged.get(index)
        counts: dict[str, Any] = {"objects": None if truth is None else int((~truth.ignore).sum())}
        if judged is not None:
            sure = judged.prediction.scores >= np.float32(score)
            counts["detections"] = int((sure & ~judged.ignored).sum())
            if truth is not None:
                counts["right"] = int((sure & (judged.matched >= 0)).sum())
                counts["wrong"] = counts["detections"] - counts["right"]
                counts["lost"] = counts["objects"] - counts["right"]
        return counts

    def _box_tables(self) -> tuple[BoxTable, BoxTable]:
        """Return all objects, with the scores of the detections that match them, and all detections."""
        with self._lock:
            if self._tables is None or self._tables[0] != len(self.judged):
                judged = dict(self.judged)
                marks = {kind: mark for mark, kind in enumerate(("", *KINDS))}
                objects = []
                for index, picture in enumerate(self.pictures):
                    if (truth := picture.truth) is not None and (count := len(truth.labels)):
                        scores = judged[index].scores_of(count) if index in judged else np.full(count, -1.0)
                        boxes = Prediction(truth.boxes, scores, truth.labels)
                        objects.append((index, boxes, np.where(truth.ignore, -1, 0)))
                detections = [
                    (index, own.prediction, np.where(own.ignored, -1, np.array([marks[k] for k in own.kinds], int)))
                    for index, own in judged.items()
                ]
                self._tables = len(judged), BoxTable.of(objects), BoxTable.of(detections)
            return self._tables[1:]
