"""A data set as its reader returns it: images with their boxes, and the faults of the data."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rcnn.images.sources import NamedImage
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
        path: the image file.
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

    path: Path
    name: str
    id: int | str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    view: View | None = None
    file_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split of a data set. It is also a source of images, such as for `Detector.predict`: iterate to get them.

    Attributes:
        root: the folder that paths are relative to.
        format: format that the data set was read from.
        split: train, val, test or all.
        names: class names; label k is `names[k]`.
        category_ids: the data set's own id of each class (1..K if it has none).
        records: the images, in the order of the list that names them.
        faults: all faults; images with a fatal one are not among the `records`.
        notes: remarks for the user, such as how the data was split.
    """

    root: Path
    format: str
    split: str
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[NamedImage]:
        for number, record in enumerate(self.records):
            yield NamedImage(record.path, record.name, number)
