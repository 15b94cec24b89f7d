"""A data set as its reader returns it: images with their boxes, and the faults of the data."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np

from rcnn.images.sources import NamedImage
from rcnn.images.storage import Location, stored
from rcnn.images.views import View


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the data.

    Attributes:
        where: place of the fault: `file:line`, in json `file: annotations[index] (id number)`, or the image file.
        reason: what is wrong, and what to do about it.
        kind: `mendable`: the box is dropped or clipped, and training continues; `damaged`: the image can't be decoded,
            and is left out or stops training; `fatal`: training stops, or leaves the image out.
        image: file name of the image concerned; None if the fault concerns the entire set.
    """

    where: str
    reason: str
    kind: Literal["mendable", "damaged", "fatal"]
    image: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}".replace("\n", "\\n")  # one line, even if a name in it has several


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its boxes.

    Attributes:
        path: the image file, perhaps a remote one.
        name: path relative to the data set's folder, with forward slashes; unique, and used to seed random changes.
        id: the data set's own image id (COCO), else the name without its suffix.
        size: (height, width) after EXIF rotation.
        boxes: (n, 4) float64, continuous xyxy in pixels of the file, inside the image.
        labels: (n,) int64, 0..K-1.
        ignore: (n,) bool: crowd or difficult.
        view: the window of the file that is used as the image, with its size after resizing; size and boxes are those
            of the window. None: the entire file, resized by the settings.
        file_size: (height, width) of the file if there is a `view`.
    """

    path: Location
    name: str
    id: int | str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    view: View | None = None
    file_size: tuple[int, int] | None = None


class Records(Sequence[Record]):
    """Records in flat arrays, which make a `Record` at each access.

    Loader processes share the memory of the process that forks them until one of them writes to it. Python counts the
    references to an object in the object itself, so reading a list of records copies all of it into each process. These
    arrays contain no objects. A slice shares the arrays.

    Args:
        records: the records to copy.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        texts = [part for record in records for part in _texts(record)]
        views = [_window(record) for record in records]
        counts = [len(record.labels) for record in records]
        flags = [(isinstance(record.id, int), record.view is not None) for record in records]
        columns = (
            np.cumsum([len(text) for text in texts], dtype=np.int64).reshape(-1, 3),
            np.cumsum(counts, dtype=np.int64)[:, None],
            np.array([record.size for record in records], np.int64).reshape(-1, 2),
            np.array(flags, np.int64).reshape(-1, 2),
            np.array(views, np.int64).reshape(-1, 8),
        )
        # A row ends the texts and boxes of its record, and begins those of the next.
        self._table = np.pad(np.concatenate(columns, axis=1), ((1, 0), (0, 0)))
        self._texts = np.frombuffer(bytearray(b"".join(texts)), np.uint8)
        self._boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)], dtype=np.float64)
        self._labels = np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)], dtype=np.int64)
        self._ignore = np.concatenate([np.zeros(0, bool), *(record.ignore for record in records)], dtype=bool)
        self._rows = np.arange(len(records))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Records":
        """Return the records in the arrays of `arrays`, which may be mapped from a file. They are not copied.

        Raises:
            ValueError: the arrays do not describe records.
        """
        records = cls(())
        for name, empty in records.arrays().items():
            array = arrays[name]
            if array.dtype != empty.dtype or array.shape[1:] != empty.shape[1:] or array.ndim != empty.ndim:
                raise ValueError(f"`{name}` has type {array.dtype} and shape {array.shape}")
            setattr(records, f"_{name}", array)
        records._check()
        return records

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that hold the records, for `from_arrays`."""
        return {name: getattr(self, f"_{name}") for name in ("table", "texts", "boxes", "labels", "ignore", "rows")}

    def _check(self) -> None:
        """Check that every index is inside its array, every text can be decoded and every number can be used.

        Raises:
            ValueError: the arrays do not describe records.
        """
        table, counts = self._table, {len(self._boxes), len(self._labels), len(self._ignore)}
        ends = table[:, :3].ravel()
        sound = (
            len(table) > 0
            and not table[0].any()
            and (table[:, :4] >= 0).all()
            and (np.diff(ends) >= 0).all()
            and ends[-1] == len(self._texts)
            and (np.diff(table[:, 3]) >= 0).all()
            and counts == {int(table[-1, 3])}
            and (table[1:, 4:6] > 0).all()
            and ((self._rows >= 0) & (self._rows < len(table) - 1)).all()
            and np.isfinite(self._boxes).all()
            and (self._labels >= 0).all()
            and not (self._texts[ends[ends < len(self._texts)]] & 0xC0 == 0x80).any()  # inside a letter
        )
        if not sound:
            raise ValueError("the arrays contradict each other")
        str(self._texts.data, "utf-8", "surrogatepass")
        for start, end in table[np.flatnonzero(table[:, 6])][:, 1:3].tolist():
            int(self._text(start, end))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.select(index)
        rows = self._rows[index]
        return self._record(*self._table[rows : rows + 2].tolist())

    def __iter__(self) -> Iterator[Record]:
        for first in range(0, len(self), MADE_TOGETHER):
            rows = self._rows[first : first + MADE_TOGETHER]
            yield from map(self._record, self._table[rows].tolist(), self._table[rows + 1].tolist())

    def __repr__(self) -> str:
        return f"Records({len(self)} images)"

    def select(self, chosen: np.ndarray | slice) -> "Records":
        """Return the records of a slice, at some indices, or for which an (N,) bool array is true.

        They share the arrays.
        """
        some = copy.copy(self)
        some._rows = self._rows[chosen]
        return some

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int64, (height, width) of each image."""
        return self._table[self._rows + 1, 4:6]

    @property
    def counts(self) -> np.ndarray:
        """(N,) int64, number of boxes of each image."""
        return self._table[self._rows + 1, 3] - self._table[self._rows, 3]

    @property
    def resized(self) -> np.ndarray:
        """(N, 2) int64, (height, width) of each window after resizing; 0 for an entire file."""
        return self._table[self._rows + 1, 12:14]

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, the labels of all boxes, image by image."""
        return self._labels[self._own]

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) float64, all boxes, image by image."""
        return self._boxes[self._own]

    @property
    def ignore(self) -> np.ndarray:
        """(n,) bool, which boxes are crowd or difficult, image by image."""
        return self._ignore[self._own]

    def names(self) -> Iterator[str]:
        """Yield the name of each image, in less than half of the time that the records would take."""
        for start, end in self._table[self._rows + 1, :2].tolist():
            yield self._text(start, end)

    def paths(self) -> Iterator[str]:
        """Yield the path of each image file."""
        starts, ends = self._table[self._rows, 2].tolist(), self._table[self._rows + 1, 0].tolist()
        yield from map(self._text, starts, ends)

    @property
    def _own(self) -> np.ndarray | slice:
        """The index of the boxes of the chosen records."""
        if np.array_equal(self._rows, np.arange(len(self._table) - 1)):
            return slice(None)
        counts = self.counts
        return np.repeat(self._table[self._rows, 3] - counts.cumsum() + counts, counts) + np.arange(counts.sum())

    def _record(self, begin: list[int], row: list[int]) -> Record:
        path, name, key, end, height, width, number, seen = row[:8]
        top, left, rows, columns, *resized = row[8:14]
        own = slice(begin[3], end)
        text = self._text(name, key)
        return Record(
            stored(self._text(begin[2], path)),
            self._text(path, name),
            int(text) if number else text,
            (height, width),
            self._boxes[own],
            self._labels[own],
            self._ignore[own],
            View(top, left, rows, columns, (resized[0], resized[1])) if seen else None,
            (row[14], row[15]) if row[14] else None,
        )

    def _text(self, start: int, end: int) -> str:
        return str(self._texts.data[start:end], "utf-8", "surrogatepass")


MADE_TOGETHER = 1000
"""Number of records for which an iteration reads the numbers together."""


def _texts(record: Record) -> list[bytes]:
    """Return the path, the name and the id of a record."""
    return [str(part).encode("utf-8", "surrogatepass") for part in (record.path, record.name, record.id)]


def _window(record: Record) -> tuple[int, ...]:
    """Return the numbers of the view and of the size of the file, 0 where there are none."""
    view = (0,) * 6 if record.view is None else (*record.view[:4], *record.view.resized)
    return (*view, *(record.file_size or (0, 0)))


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of a data set. It is also a source of images, such as for `Detector.predict`: iterate to get them.

    Attributes:
        root: the folder that paths are relative to.
        format: format that the data set was read from.
        split: train, val, test or all.
        names: class names; label k is `names[k]`.
        category_ids: the data set's own id of each class (1..K if it has none).
        records: the images, in the order of the list that names them; any sequence is stored as `Records`.
        faults: all faults; images with a fatal one are not among the `records`.
        notes: remarks for the user, such as how the data was split.
    """

    root: Location
    format: str
    split: str
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Records
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.records, Records):
            object.__setattr__(self, "records", Records(self.records))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[NamedImage]:
        for number, record in enumerate(self.records):
            yield NamedImage(record.path, record.name, number)
