"""What the readers have in common: images as the files describe them, checked and turned into records."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rcnn.config import Data
from rcnn.data.dataset import Fault, Record
from rcnn.preprocess.decode import ImageError, image_size

SMALLEST_IMAGE = 16
Box = tuple[float, float, float, float]


class Row(NamedTuple):
    """One object as the file gives it.

    Attributes:
        where: `file:line` or `file:byte n`.
        label: class index; None where the class is at fault.
        given: the four numbers in the file.
        box: the same as continuous xyxy, in pixels or in shares of the image.
        zero: whether the box has no size by the rules of its format.
        ignore: crowd or difficult.
    """

    where: str
    label: int | None
    given: Box
    box: Box
    zero: bool
    ignore: bool = False


@dataclass(slots=True)
class Draft:
    """One image as the files describe it.

    Attributes:
        name, id, path: as in `Record`; `path` is None where the image wasn't found.
        units: unit of the rows' boxes; `share` is a fraction of width and height.
        declared: (height, width) by the annotation.
        source: where `declared` stands.
        rows: the objects.
        found: where, reason and kind of each fault; the image's name is added at the end.
    """

    name: str
    id: int | str
    path: Path | None
    units: Literal["pixel", "share"] = "pixel"
    declared: tuple[int, int] | None = None
    source: str = ""
    rows: list[Row] = field(default_factory=list)
    found: list[tuple[str, str, Literal["mendable", "fatal"]]] = field(default_factory=list)

    def fatal(self, where: str | Path, reason: str) -> None:
        """Note a fault that leaves this image out."""
        self.found.append((str(where), reason, "fatal"))

    def mendable(self, where: str | Path, reason: str) -> None:
        """Note a fault that has been mended."""
        self.found.append((str(where), reason, "mendable"))


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set that a reader recognised.

    Attributes:
        format: the reader's name.
        root: folder that names are relative to.
        lists: sources of each list: `train`, `val`, `trainval`, `test`, or `all` where there are no lists.
        names: class names, where they stand beside the lists (YOLO).
        found: what gave it away, for messages.
        notes: sentences worth saying aloud.
    """

    format: Literal["voc", "coco", "yolo"]
    root: Path
    lists: dict[str, tuple[Path, ...]]
    names: tuple[str, ...] | None = None
    found: str = ""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Reading:
    """What a reader read of one list.

    Attributes:
        names: classes that the labels are indices into.
        category_ids: the data set's own number of each.
        drafts: the images.
        own: classes as the data names them.
        faults: those of no single image.
        notes: sentences worth saying aloud.
    """

    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    drafts: list[Draft] = field(default_factory=list)
    own: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def unknown_class(name: str, known: Sequence[str]) -> str:
    """Reason of a fault: the class isn't among those known."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"class `{name}` is not among the classes {', '.join(known)}{hint}"


def relative_name(path: Path, root: Path) -> str:
    """`path` as seen from `root`, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def finish(draft: Draft, settings: Data) -> tuple[Record | None, list[Fault]]:
    """The record of an image, None where a fault is fatal, and all its faults."""
    size = _read_size(draft, settings.max_pixels)
    kept = _keep_boxes(draft, size) if size else []
    faults = [Fault(where, reason, kind, draft.name) for where, reason, kind in draft.found]
    if draft.path is None or size is None or any(fault.kind == "fatal" for fault in faults):
        return None, faults
    record = Record(
        path=draft.path,
        name=draft.name,
        id=draft.id,
        size=size,
        boxes=np.array([box for box, _, _ in kept], dtype=np.float64).reshape(-1, 4),
        labels=np.array([label for _, label, _ in kept], dtype=np.int64),
        ignore=np.array([ignore for _, _, ignore in kept], dtype=bool),
    )
    return record, faults


def _read_size(draft: Draft, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) from the header, compared with what the annotation declares."""
    if draft.path is None:
        return None
    try:
        size = image_size(draft.path, max_pixels=max_pixels)
    except ImageError as error:
        draft.fatal(draft.path, str(error).removeprefix(f"{draft.path}: "))
        return None
    height, width = size
    if min(size) < SMALLEST_IMAGE:
        draft.mendable(draft.path, f"the image is only {width}x{height} pixels")
    if draft.declared is None or draft.declared == size:
        return size
    said = f"the annotation says {draft.declared[1]}x{draft.declared[0]} pixels, the image has {width}x{height}"
    if draft.declared == size[::-1]:
        draft.mendable(draft.source, f"{said} after EXIF rotation; boxes are taken to be on the upright image")
    else:
        draft.fatal(draft.source, f"{said}; are the boxes from another size of this image?")
    return size


def _keep_boxes(draft: Draft, size: tuple[int, int]) -> list[tuple[Box, int, bool]]:
    """Box, label and ignore flag of every usable row; the faults of the others are noted."""
    kept: dict[tuple[Box, int], bool] = {}
    for row in draft.rows:
        reason = _fatal_reason(row, draft.units, size)
        if reason:
            draft.fatal(row.where, reason)
            continue
        if row.zero:
            draft.mendable(row.where, f"box {_shown(row.given)} has no size; dropped")
            continue
        box, overhang = _clip(_in_pixels(row.box, draft.units, size), size)
        if box is None:
            draft.mendable(row.where, f"box {_shown(row.given)} lies outside the {_size_text(size)} image; dropped")
            continue
        if overhang > 1:
            draft.mendable(
                row.where,
                f"box {_shown(row.given)} sticks out of the {_size_text(size)} image by {overhang:g} pixels; clipped",
            )
        if row.label is None:
            continue
        if (box, row.label) in kept:
            draft.mendable(row.where, f"box {_shown(row.given)} is there twice with the same class; dropped")
            continue
        kept[box, row.label] = row.ignore
    return [(box, label, ignore) for (box, label), ignore in kept.items()]


def _fatal_reason(row: Row, units: str, size: tuple[int, int]) -> str | None:
    """Why a box can't be trusted, or None."""
    height, width = size
    x1, y1, x2, y2 = row.box
    shown = _shown(row.given)
    if not all(map(math.isfinite, row.box)):
        return f"box {shown} is not finite"
    if x2 < x1 or y2 < y1:
        a, b, c, d = row.given
        fits = units == "pixel" and min(row.given) >= 0 and a + c <= width + 1 and b + d <= height + 1
        return f"box {shown} is inverted" + ("; it looks like xywh, x1 y1 x2 y2 is expected" if fits else "")
    if units == "share" and max(row.given) > 2:
        return f"box {shown} is in pixels? Shares of the image's width and height, 0..1, are expected"
    if units == "pixel" and not row.zero and 0 <= min(row.given) <= max(row.given) <= 1 and min(size) > 2:
        return f"box {shown} has normalised coordinates? Pixels are expected"
    return None


def _in_pixels(box: Box, units: str, size: tuple[int, int]) -> Box:
    if units == "pixel":
        return box
    height, width = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _clip(box: Box, size: tuple[int, int]) -> tuple[Box | None, float]:
    """The part of a box inside the image (None: nothing), and how far it stuck out, pixels."""
    height, width = size
    x1, y1, x2, y2 = box
    overhang = max(-x1, -y1, x2 - width, y2 - height, 0.0)
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return (None if x2 <= x1 or y2 <= y1 else (x1, y1, x2, y2)), overhang


def _shown(numbers: Box) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
