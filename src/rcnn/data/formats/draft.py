"""What the readers share: images as the files describe them, and how these are checked and become records."""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from rcnn.config import Data
from rcnn.config.files import unfit_name
from rcnn.data.dataset import Dataset, Fault, Record, Records
from rcnn.data.formats.folders import Folder, root_of
from rcnn.data.image_checks import ImageChecks, ProgressCallback
from rcnn.errors import ImageError, plural
from rcnn.images.storage import Location, RemotePath

MIN_IMAGE_SIDE = 16
MAX_FAULTS = 1000
"""Maximum number of faults that are listed one by one, for each image and for the rest of a data set."""

MAX_LISTED_CLASSES = 100
"""Maximum number of classes that a message lists."""

MAX_HINTS, MAX_COMPARED_CLASSES = 20, 1000
"""Maximum numbers of unknown names per image, and of known names, that are compared to suggest similar ones."""

MIN_SHARE_INSIDE = 0.5
"""Share of the area of a box that must lie inside its image; of boxes of another size of the image, much is outside.

Boxes that continue an object behind the border of the image usually have less than half of their area there.
"""

MAX_OVERHANG = 2.0
"""Number of pixels by which every box may stick out, as rounding can move most of a tiny box outside."""

Kind = Literal["mendable", "damaged", "fatal"]
Corners = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Converts (n, 4) float64 boxes of a format to (n, 4) continuous xyxy, and to (n,) bool: whether a box has no size."""


@dataclass(slots=True)
class Draft:
    """One image as the files describe it.

    Attributes:
        name, id, path: as in `Record`; `path` is None if the image wasn't found.
        declared: (height, width) according to the annotation.
        source: place of `declared`, for messages.
        where, labels, numbers, ignore: columns of the objects (see `add`), since a file may hold a million of them.
        faults: place, reason and kind of the first `MAX_FAULTS` faults; `finish` adds the image's name.
        more: number of the other faults, by kind.
        folder: where the image was found, if a file of labels names it (`NamedImages`).
    """

    name: str
    id: int | str
    path: Location | None
    declared: tuple[int, int] | None = None
    source: str = ""
    where: list[str] = field(default_factory=list)
    labels: "array[int]" = field(default_factory=lambda: array("q"))
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    ignore: bytearray = field(default_factory=bytearray)
    faults: list[tuple[str, str, Kind]] = field(default_factory=list)
    more: "Counter[Kind]" = field(default_factory=Counter)
    folder: Folder | None = None

    def add(self, where: str, label: int | None, numbers: Sequence[float], ignore: bool = False) -> None:
        """Add an object.

        Args:
            where: place of the object: `file:line`, in json `file: annotations[index] (id number)`.
            label: class index; None if the class is at fault.
            numbers: the four numbers of its box in the file.
            ignore: crowd or difficult.
        """
        self.where.append(where)
        self.labels.append(-1 if label is None else label)
        self.numbers.extend(numbers)
        self.ignore.append(ignore)

    def fault(self, where: str | Location, reason: str, kind: Kind = "fatal") -> None:
        """Add a fault. `fatal` and `damaged` ones leave the image out, `mendable` ones have been corrected."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append((str(where), reason, kind))
        else:
            self.more[kind] += 1

    @property
    def sound(self) -> bool:
        """True if all faults are mendable."""
        kinds = {*self.more, *(kind for _, _, kind in self.faults)}
        return kinds <= {"mendable"}

    def all_faults(self) -> Iterator[Fault]:
        """Yield the faults, and one for those of each kind that are only counted."""
        yield from (Fault(*fault, self.name) for fault in self.faults)
        for kind, count in self.more.items():
            yield Fault(self.faults[-1][0], f"and {count:,} more faults of this image that are {kind}", kind, self.name)


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set that a reader recognised.

    Attributes:
        format: the reader's name.
        root: folder that names are relative to.
        lists: sources of each list: `train`, `val`, `trainval`, `test`, or `all` if there are no lists.
        names: class names, if they are stored with the lists (YOLO).
        evidence: files by which the format was recognised, for messages.
        notes: remarks for the user.
        faults: faults of the file that names the lists.
        home: the folder that the user named, or that of the file that the user named; None: `root`.
        annotations: folder of the annotations that the lists refer to (VOC).
        classes: files that name the classes and may lie outside the folder of the data set (Open Images).
        parts: if the lists are parts of the same sources, those that are to be read (CVAT); None: they are not.
    """

    format: str
    root: Location
    lists: Mapping[str, tuple[Location, ...]]
    names: tuple[str, ...] | None = None
    evidence: str = ""
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    home: Location | None = None
    annotations: Location | None = None
    classes: tuple[Location, ...] = ()
    parts: tuple[str, ...] | None = None

    @classmethod
    def of_file(cls, format: str, path: Location, split: str) -> "Layout":
        """Return the data set of a file that is one list. A list to evaluate on serves as `val` and as `test`."""
        splits = ("val", "test") if split in ("val", "test") else (split,)
        return cls(format, root_of(path.parent), dict.fromkeys(splits, (path,)), evidence=path.name)

    def outside(self, images: Iterable[Location]) -> list[Location]:
        """Return the images that don't lie in the data set's own folder, by their paths alone."""
        if isinstance(top := self.home or self.root, RemotePath):
            remote = (image for image in images if isinstance(image, RemotePath))
            return [image for image in remote if not image.normal().is_relative_to(top)]
        home = os.path.abspath(top)
        folders = {os.path.dirname(str(image)) for image in images}
        outside = {folder for folder in folders if os.path.commonpath([os.path.abspath(folder), home]) != home}
        return [image for image in images if os.path.dirname(str(image)) in outside]


@dataclass(slots=True)
class Reading:
    """What a reader read from one or more lists.

    Attributes:
        corners: converts boxes of the format to xyxy.
        units: unit of the boxes; `share` means fractions of width and height.
        names: classes that the labels index.
        category_ids: the data set's own id of each class.
        drafts: the images.
        own: class names of the data itself.
        faults: faults that concern no single image, of which `fault` adds at most `MAX_FAULTS`.
        more: number of the other faults.
        notes: remarks for the user.
        enclosed: number of shapes of each kind that were read as the boxes that enclose them.
        left_out: number of shapes of each kind that no box can be made of, such as points.
        groups: classes that other classes name as the group that they belong to (COCO's supercategory).
        met: names of classes in the order in which `label` met them, with their preliminary labels.
    """

    corners: Corners
    units: Literal["pixel", "share"] = "pixel"
    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    drafts: list[Draft] = field(default_factory=list)
    own: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    notes: list[str] = field(default_factory=list)
    enclosed: "Counter[str]" = field(default_factory=Counter)
    left_out: "Counter[str]" = field(default_factory=Counter)
    groups: frozenset[str] = frozenset()
    met: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> int:
        """Return a preliminary label of a class, for objects that are added before all classes are known."""
        return self.met.setdefault(name, len(self.met))

    def settle(self, names: Sequence[str] | None) -> None:
        """Set the classes to `names`, or else to those met, sorted, and replace the preliminary labels of all drafts.

        A class that is not among the names becomes a fault of each of its objects.
        """
        labels = self.label_classes(sorted(self.met), names)
        known, final = list(labels), [labels.get(name, -1) for name in self.met]
        met = list(self.met)
        for draft in self.drafts:
            for index, label in enumerate(draft.labels):
                if label >= 0:
                    draft.labels[index] = final[label]
                    if final[label] < 0:
                        draft.fault(draft.where[index], unknown_class(met[label], known, draft))

    def enclose(self, kind: str, points: Sequence[float]) -> list[float]:
        """Return the x1, y1, x2, y2 of the box that encloses a shape, which is counted.

        Args:
            kind: of the shape, a noun in the singular, such as `polygon`.
            points: x, y, x, y, ... of at least one point.
        """
        self.enclosed[kind] += 1
        return [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]

    def all_notes(self) -> tuple[str, ...]:
        """Return the notes, with those on the shapes that are not boxes."""
        enclosed = ", ".join(plural(count, kind) for kind, count in self.enclosed.items())
        left_out = ", ".join(plural(count, kind) for kind, count in self.left_out.items())
        notes = [f"read as the boxes that enclose them: {enclosed}"] if enclosed else []
        notes += [f"left out, since no box encloses them: {left_out}"] if left_out else []
        return (*self.notes, *notes)

    def fault(self, where: str | Location, reason: str) -> None:
        """Add a fatal fault that concerns no single image."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(str(where), reason, "fatal"))
        else:
            self.more += 1

    def count_more(self, source: Location) -> None:
        """Add one fault of `source` in place of those that are only counted."""
        if self.more:
            self.faults.append(Fault(str(source), f"and {self.more:,} more faults", "fatal"))
        self.more = 0

    def label_classes(self, own: Iterable[str], names: Sequence[str] | None) -> dict[str, int]:
        """Set the classes to `names`, or else to those of the data, with ids from 1; return the label of each."""
        self.own = tuple(own)
        self.names = self.own if names is None else tuple(names)
        self.category_ids = tuple(range(1, len(self.names) + 1))
        return {name: label for label, name in enumerate(self.names)}


def corners_of_xyxy(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 4) xyxy as they are, and (n,) bool: which boxes have no size."""
    return numbers, (numbers[:, :2] == numbers[:, 2:]).any(axis=1)


def corners_of_xywh(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert (n, 4) x, y, width, height to (n, 4) xyxy and (n,) bool: which boxes have no size."""
    corner, size = numbers[:, :2], numbers[:, 2:]
    return np.concatenate((corner, corner + size), axis=1), (size == 0).any(axis=1)


def unknown_class(name: str, known: Sequence[str], draft: Draft) -> str:
    """Return the reason of the fault that a class isn't among those known, with a hint if the image has few faults."""
    hint = ""
    if len(draft.faults) < MAX_HINTS:
        near = get_close_matches(name, known[:MAX_COMPARED_CLASSES], n=1, cutoff=0.6)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        hint += "; data.classes renames classes and leaves them out"
    return f"class `{name}` is not among the classes {listed(known)}{hint}"


def listed(names: Sequence[str] | Mapping[int, str]) -> str:
    """Return names, or numbers with names, separated by commas: the first ones and the number of the others."""
    texts = (f"{number} {name}" for number, name in names.items()) if isinstance(names, Mapping) else names
    more = f" and {len(names) - MAX_LISTED_CLASSES:,} more" if len(names) > MAX_LISTED_CLASSES else ""
    return ", ".join(islice(texts, MAX_LISTED_CLASSES)) + more


def relative_name(path: Location, root: Location) -> str:
    """Return `path` relative to `root`, with forward slashes."""
    if isinstance(path, RemotePath):
        return path.name_below(root)
    return Path(os.path.relpath(path, str(root))).as_posix()


def finish(
    reading: Reading,
    layout: Layout,
    split: str,
    settings: Data,
    checks: ImageChecks,
    progress: ProgressCallback | None = None,
) -> Dataset:
    """Build the split from the images without a fatal fault, with all faults.

    `checks` reads the sizes of the images, and calls `progress`.
    """
    _check_places(reading, layout, settings)
    found = [(draft, str(draft.path)) for draft in reading.drafts if draft.path is not None]
    sized: list[tuple[Draft, tuple[int, int]]] = []
    for (draft, path), size in zip(found, checks.sizes([path for _, path in found], progress), strict=True):
        if isinstance(size, ImageError):
            draft.fault(path, str(size).removeprefix(f"{path}: "), "damaged")
        else:
            _check_size(draft, path, size)
            sized.append((draft, size))
    ends, boxes, labels, ignore = _usable_objects(reading, [draft for draft, _ in sized], [size for _, size in sized])
    records: list[Record] = []
    for (draft, size), start, end in zip(sized, (0, *ends), ends, strict=False):
        if draft.path is not None and draft.sound:
            own = slice(start, end)
            records.append(Record(draft.path, draft.name, draft.id, size, boxes[own], labels[own], ignore[own]))
    faults = [fault for draft in reading.drafts for fault in draft.all_faults()]
    return Dataset(
        layout.root,
        layout.format,
        split,
        names=reading.names,
        category_ids=reading.category_ids,
        records=Records(records),
        faults=(*reading.faults, *faults),
        notes=reading.all_notes(),
    )


def _check_places(reading: Reading, layout: Layout, settings: Data) -> None:
    """Add faults for names that can't be used and, if set so, for images outside the data set. Neither are opened."""
    drafts = [draft for draft in reading.drafts if draft.path is not None]
    refused = settings.outside == "refuse" or isinstance(layout.root, RemotePath)
    outside = set(layout.outside([draft.path for draft in drafts if draft.path]) if refused else ())
    for draft in drafts:
        for part in draft.name.split("/"):
            if reason := unfit_name(part):
                draft.fault(draft.source or str(draft.path), f"the name of the image, `{part}`, {reason}; rename it")
                draft.path = None
        if draft.path in outside:
            why = "which data.outside=refuse forbids" if isinstance(layout.root, Path) else "and is not opened"
            draft.fault(str(draft.path), f"the image lies outside the data set, {why}")
            draft.path = None


def _check_size(draft: Draft, path: str, size: tuple[int, int]) -> None:
    """Compare (height, width) in the image's header with what the annotation declares."""
    height, width = size
    if min(size) < MIN_IMAGE_SIDE:
        draft.fault(path, f"the image is only {width}x{height} pixels", "mendable")
    if draft.declared is None or draft.declared == size:
        return
    mismatch = f"the annotation says {draft.declared[1]}x{draft.declared[0]} pixels, the image has {width}x{height}"
    if draft.declared == size[::-1]:
        draft.fault(
            draft.source, f"{mismatch} after EXIF rotation; boxes are taken to be on the upright image", "mendable"
        )
    else:
        draft.fault(draft.source, f"{mismatch}; are the boxes from another size of this image?")


def _usable_objects(
    reading: Reading, drafts: Sequence[Draft], sizes: Sequence[tuple[int, int]]
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Return the usable objects of some images, image by image, and add faults for the other objects.

    The objects of all images are checked together: checking image by image would take as long as parsing a large file.

    Args:
        reading: determines how boxes are converted to xyxy.
        drafts: the images.
        sizes: (height, width) of each.

    Returns:
        The end index of each image's objects, boxes (n, 4) float64 inside the images, labels (n,) int64 and
        ignore (n,) bool.
    """
    counts = np.array([len(draft.labels) for draft in drafts], np.int64)
    owner = np.repeat(np.arange(len(drafts)), counts)
    numbers = np.frombuffer(b"".join(draft.numbers for draft in drafts), np.float64).reshape(-1, 4)
    labels = np.frombuffer(b"".join(draft.labels for draft in drafts), np.int64)
    ignore = np.frombuffer(b"".join(draft.ignore for draft in drafts), np.bool_)
    edges = np.array(sizes, np.float64).reshape(-1, 2)[owner, ::-1]  # width, height
    with np.errstate(invalid="ignore", over="ignore"):  # from boxes that are not finite
        boxes, zero = reading.corners(numbers)
        boxes = boxes * np.tile(edges, 2) if reading.units == "share" else boxes
        inside = np.concatenate((np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], edges)), axis=1)
        overhang = np.maximum(-boxes[:, :2], boxes[:, 2:] - edges).max(axis=1)
        away = (_areas(inside) < MIN_SHARE_INSIDE * _areas(boxes)) & (overhang > MAX_OVERHANG) & ~ignore
        rules: list[_Rule] = [*_rules(reading.units, numbers, boxes, edges, zero), (away, "fatal", _AWAY)]
    usable = np.ones(len(numbers), bool)
    faults: list[tuple[int, Kind, str]] = []
    for broken, kind, reason in rules:  # only the first rule that a box breaks is reported
        faults.extend((row, kind, reason) for row in np.flatnonzero(broken & usable).tolist())
        usable &= ~broken
    clipped = "sticks out of the {size} image by {overhang:g} pixels; clipped"
    faults.extend((row, "mendable", clipped) for row in np.flatnonzero(usable & (overhang > 1)).tolist())
    usable &= labels >= 0
    twice = usable.copy()
    twice[usable] = _repeated(owner[usable], labels[usable], *inside[usable].T)
    duplicate = "occurs twice with the same class; dropped"
    faults.extend((row, "mendable", duplicate) for row in np.flatnonzero(twice).tolist())
    first = np.cumsum(counts) - counts
    for row, kind, reason in sorted(faults, key=lambda fault: fault[0]):
        draft, (width, height) = drafts[owner[row]], edges[row]
        text = reason.format(size=f"{width:.0f}x{height:.0f}", overhang=overhang[row])
        coordinates = ", ".join(f"{number:g}" for number in numbers[row])
        draft.fault(draft.where[row - first[owner[row]]], f"box ({coordinates}) {text}", kind)
    usable &= ~twice
    ends = np.cumsum(np.bincount(owner[usable], minlength=len(drafts)))
    return ends.tolist(), inside[usable], labels[usable], ignore[usable]


_Rule = tuple[np.ndarray | np.bool_, Kind, str]
"""A rule that excludes boxes: which boxes break it, (n,) bool; the kind of fault; and the reason."""

_AWAY = (
    "has most of its area outside the {size} image, by up to {overhang:g} pixels; are the boxes from another size of "
    "this image? If an object continues there, label the part that is in the image"
)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (n,) of boxes (n, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _rules(units: str, numbers: np.ndarray, boxes: np.ndarray, edges: np.ndarray, zero: np.ndarray) -> Sequence[_Rule]:
    """Return the rules that exclude boxes.

    Args:
        units: `pixel` or `share`.
        numbers: (n, 4) numbers in the file.
        boxes: (n, 4) continuous xyxy, pixels.
        edges: (n, 2) width and height of each box's image, pixels.
        zero: (n,) bool, whether the box has no size by the rules of its format.
    """
    pixel, share = units == "pixel", units == "share"
    smallest, largest = numbers.min(axis=1), numbers.max(axis=1)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    xywh = pixel & (smallest >= 0) & (numbers[:, :2] + numbers[:, 2:] <= edges + 1).all(axis=1)
    shares = pixel & (smallest >= 0) & (largest <= 1) & (edges.min(axis=1) > 2)
    outside = (np.maximum(boxes[:, :2], 0) >= np.minimum(boxes[:, 2:], edges)).any(axis=1)
    return [
        (~np.isfinite(boxes).all(axis=1), "fatal", "is not finite"),
        (inverted & xywh, "fatal", "is inverted; it looks like xywh, x1 y1 x2 y2 is expected"),
        (inverted, "fatal", "is inverted"),
        (share & (largest > 2), "fatal", "is in pixels? Shares of the image's width and height, 0..1, are expected"),
        (shares & ~zero, "fatal", "has normalised coordinates? Pixels are expected"),
        (zero, "mendable", "has no size; dropped"),
        (outside, "mendable", "lies outside the {size} image; dropped"),
    ]


def _repeated(*columns: np.ndarray) -> np.ndarray:
    """Return whether each row equals an earlier one in all columns: (n,) each -> (n,) bool."""
    order = np.lexsort(columns)  # stable: the first of several equal rows comes first
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= np.diff(column[order]) == 0
    repeated = np.zeros(len(order), bool)
    repeated[order[1:][same]] = True
    return repeated
