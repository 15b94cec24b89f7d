"""Find and read CVAT's xml: `CVAT for images`, and `CVAT for video` with its frames as images."""

import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax.saxutils import unescape

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.formats.beside import SPLIT_FOLDERS, first_files
from rcnn.data.formats.draft import Draft, Layout, Reading, corners_of_xyxy, relative_name
from rcnn.data.formats.folders import Folders, cached_folders, one_file_per_list, root_of, split_of
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.data.formats.shapes import ellipse, finite, rotated
from rcnn.data.formats.xml_tree import MalformedXml, is_cvat, stream_xml
from rcnn.errors import DataError
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, is_address, normal, read_bytes, read_start, shown

MAX_CVAT_BYTES = 1000 * MB
"""Maximum size of an xml file, bytes."""

MAX_BOXES = 5_000_000
"""Maximum number of boxes of an xml file: those of a track may be many more than its elements."""

MAX_SUBSETS = 20
"""Maximum number of subsets of a project, each of which is a list."""

_SUFFIX = ".xml"
_HEAD_BYTES = 1 << 20
_SUBSET = re.compile(rb'<(?:image|track)\s[^<>]*?\bsubset="([^"<>]*)"')
_FIRST = re.compile(rb"<(?:image|track)\s[^<>]*>")
_LIST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,60}")
_LISTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MAX_DIGITS = 12
_FRAME = re.compile(rf"frame_(\d{{1,{_MAX_DIGITS}}})", re.IGNORECASE | re.ASCII)
_FRAME_SUFFIXES = (".PNG", ".png", ".jpg", ".jpeg", ".JPG")
_META = ("stop_frame", "width", "height")
_MAX_META = 20  # characters


def find(path: Location) -> Layout | None:
    """Return the set of an xml file, of a folder that holds one, or one in each of train/, val/ and test/.

    The subsets of a project are lists.

    Raises:
        DataError: several files could be one list, or a subset can't be a list.
    """
    if path.is_file():
        if path.suffix.lower() != _SUFFIX or not is_cvat(path):
            return None
        return _of_subsets(path, root_of(path.parent)) or Layout.of_file("cvat", path, split_of(path.stem))
    for folder in (path / "annotations", path / "Annotations", path):
        if files := _exports(folder):
            if len(files) == 1 and (layout := _of_subsets(files[0], root_of(folder))) is not None:
                return layout
            evidence = ", ".join(relative_name(file, path) for file in files)
            return Layout("cvat", root_of(folder), one_file_per_list(path, files, "xml files of CVAT"), None, evidence)
    lists = dict[str, tuple[Location, ...]]()
    for split, names in SPLIT_FOLDERS.items():
        if files := [file for name in names for file in _exports(path / name)]:
            if len(files) > 1:
                both = ", ".join(relative_name(file, path) for file in files)
                raise DataError(
                    f"{path}: several xml files of CVAT could be the list `{split}`: {both}; give one of them"
                )
            lists[split] = (files[0],)
    evidence = ", ".join(relative_name(file, path) for files in lists.values() for file in files)
    return Layout("cvat", path, lists, evidence=evidence) if lists else None


def _exports(folder: Location) -> list[Location]:
    return list(filter(is_cvat, first_files(folder, _SUFFIX)))


def _of_subsets(path: Location, root: Location) -> Layout | None:
    """Return the set of a project whose images have several subsets; None for any other xml.

    Raises:
        DataError: a subset can't be a list.
    """
    text = read_start(path, _HEAD_BYTES)
    first = _FIRST.search(text) or (
        _FIRST.search(read_bytes(path, MAX_CVAT_BYTES)) if len(text) == _HEAD_BYTES else None
    )
    if first is None or _SUBSET.match(first[0]) is None:
        return None
    texts = {match[1] for match in _SUBSET.finditer(read_bytes(path, MAX_CVAT_BYTES))}
    lists = {_list_of(unescape(text.decode(errors="replace"), {"&quot;": '"'})) for text in texts}
    if len(lists) > MAX_SUBSETS:
        raise DataError(f"{path}: there are {len(lists):,} subsets; at most {MAX_SUBSETS} are read as lists")
    if unfit := [name for name in lists if not _LIST_NAME.fullmatch(name)]:
        raise DataError(f"{path}: the subset `{unfit[0]:.100}` can't be the name of a list; rename it in CVAT")
    if len(lists) == 1 and not lists & {*_LISTS.values()}:
        return None
    order = [name for name in ("train", "val", "trainval", "test") if name in lists]
    order += sorted(lists - {*order})
    return Layout("cvat", root, dict.fromkeys(order, (path,)), evidence=path.name, parts=())


def _list_of(subset: str) -> str:
    """Return the name of the list that a subset is."""
    return _LISTS.get(subset.strip().lower(), subset.strip() or "default")


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of xml files, in lists that are parts of one file only those of `layout.parts`.

    Without `names`, the classes are those of all boxes in the files, sorted.

    Raises:
        DataError: none of the images of a file exists, there are no frames of a video, or too many boxes.
    """
    reading = Reading(corners_of_xyxy)
    drafts: dict[str, Draft] = {}
    for source in sources:
        file = _CvatFile(source, layout, reading, cached_folders(layout.home or layout.root))
        drafts = file.read() | drafts
        reading.count_more(source)
    reading.drafts = list(drafts.values())
    reading.settle(names)
    return reading


class _Shape(NamedTuple):
    """A shape with a box.

    Attributes:
        kind: its element.
        numbers: x1, y1, x2, y2 of a box before it is rotated, or of the box that encloses another shape.
        degrees: by which a box is rotated around its centre.
    """

    kind: str
    numbers: list[float]
    degrees: float = 0


class _Placed(NamedTuple):
    """A shape of a track: its frame and place, the shape, and whether the object is outside from there on."""

    frame: int
    where: str
    shape: _Shape
    outside: bool


@dataclass
class _Track:
    """An object of a video: its place, class and subset, and its shapes."""

    where: str
    label: str
    subset: str
    placed: list[_Placed] = field(default_factory=list)


class _Video(NamedTuple):
    """The images of a video by the numbers of their frames, these numbers in order, and how many the task has."""

    frames: dict[int, Draft]
    numbers: list[int]
    end: int


@dataclass
class _CvatFile:
    """Reads one xml file, as a handler of its elements.

    Attributes:
        drafts: the images, by name.
        open: tags of the elements that have not ended.
        content: `image` or `track`, the elements that the file has; empty before the first one.
        draft: image whose shapes are being read; None if it belongs to a list that is not read.
        track: object whose shapes are being read; None likewise.
        videos: the video of each subset.
        tasks: id of the task, by subset.
        meta: texts of elements that describe the task, each with its place.
        boxes: number of boxes.
    """

    path: Location
    layout: Layout
    reading: Reading
    folders: Folders
    drafts: dict[str, Draft] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    content: str = ""
    draft: Draft | None = None
    track: _Track | None = None
    videos: dict[str, _Video] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    meta: dict[str, tuple[str, str]] = field(default_factory=dict)
    boxes: int = 0

    def __post_init__(self) -> None:
        self._places = usual_places(self.path.parent, self.layout.root)
        self._images = NamedImages(self.layout, self._places)
        self._prefix = str(self.path)

    def read(self) -> dict[str, Draft]:
        """Return the images, by name; none, and a fault, if the file can't be parsed.

        Raises:
            DataError: as for the function `read`.
        """
        try:
            stream_xml(self.path, self, MAX_CVAT_BYTES)
        except MalformedXml as error:
            self.reading.fault(f"{self.path}:{error.line}", str(error))
            return {}
        if self.drafts and not any(draft.path for draft in self.drafts.values()):
            first = next(iter(self.drafts.values()))
            how = "CVAT exports the images too if `Save images` is on"
            raise DataError(f"{self.path}: none of its images exists. {first.faults[0][1]}. {how}")
        return self.drafts

    def start(self, tag: str, attributes: dict[str, str], line: int) -> None:
        """Take the beginning of an element."""
        depth, where = len(self.open), f"{self._prefix}:{line}"
        self.open.append(tag)
        if depth == 1 and tag in ("image", "track"):
            if self.content not in ("", tag):
                raise DataError(f"{where}: there are images and tracks in this file; export it as CVAT for images")
            self.content = tag
            (self._begin_image if tag == "image" else self._begin_track)(attributes, where)
        elif depth == 2 and self.open[1] == "image":
            self._read_shape(tag, attributes, where)
        elif depth == 2 and self.open[1] == "track":
            self._place_shape(tag, attributes, where)
        elif tag in _META and self.open[1:2] == ["meta"]:
            self.meta[tag] = "", where

    def text(self, data: str) -> None:
        """Take a piece of text."""
        if self.open[1:2] == ["meta"] and (tag := self.open[-1]) in self.meta:
            before, where = self.meta[tag]
            self.meta[tag] = (before + data)[:_MAX_META], where

    def end(self) -> None:
        """Take the end of an element."""
        self.open.pop()
        if len(self.open) == 1 and self.track is not None:
            self._add_track(self.track)
            self.track = None

    def _is_chosen(self, subset: str) -> bool:
        """Return whether the images of a subset belong to a list that is to be read."""
        return self.layout.parts is None or _list_of(subset) in self.layout.parts

    def _begin_image(self, attributes: Mapping[str, str], where: str) -> None:
        """Add an image, whose shapes follow."""
        name, subset = attributes.get("name", "").strip(), attributes.get("subset", "")
        self.draft = None
        if not self._is_chosen(subset):
            return
        if not name:
            self.reading.fault(where, "<image> needs a `name`")
            return
        draft = Draft(shown(name) if is_address(name) else name, name, None, source=where)
        # A frame of a video has no suffix here.
        names = [name] if is_image(name) else [name, *(name + suffix for suffix in _FRAME_SUFFIXES)]
        inner = [f"{subset}/{name}" for name in names] if subset else []
        self._images.find(draft, where, *inner, *names)
        draft.id = os.path.splitext(draft.name.rsplit("/", 1)[-1])[0]
        if draft.name in self.drafts:
            first = self.drafts[draft.name]
            first.fault(where, f"image `{draft.name:.300}` has another element, {first.source}; keep one of the two")
            draft = first
        self.draft = self.drafts.setdefault(draft.name, draft)
        if "width" in attributes or "height" in attributes:
            self._read_size(draft, attributes.get("width", ""), attributes.get("height", ""), where)

    def _read_size(self, draft: Draft, width: str, height: str, where: str) -> None:
        """Set the declared size of an image; zeros declare none."""
        if not all(text.strip().isdecimal() and len(text) <= _MAX_META for text in (width, height)):
            draft.fault(where, f"width and height must be whole numbers; found {width:.50}, {height:.50}")
        elif int(width) and int(height):
            draft.declared, draft.source = (int(height), int(width)), where

    def _read_shape(self, tag: str, attributes: Mapping[str, str], where: str) -> None:
        """Add a shape of an image."""
        label = attributes.get("label", "").strip()
        if self.draft is None:  # of another list, whose classes count
            if label and tag in _NUMBERS:
                self.reading.label(label)
            return
        try:
            shape = _shape(tag, attributes)
        except ValueError as error:
            self.draft.fault(where, str(error))
            return
        if shape is None:
            self.reading.left_out[_LEFT_OUT[tag]] += 1
            return
        if not label:
            self.draft.fault(where, f"<{tag}> needs a `label`")
        self._add(self.draft, where, label, shape)

    def _add(self, draft: Draft, where: str, label: str, shape: _Shape) -> None:
        """Add an object to an image.

        Raises:
            DataError: there are too many boxes.
        """
        self.boxes += 1
        if self.boxes > MAX_BOXES:
            raise DataError(f"{where}: there are more than {MAX_BOXES:,} boxes, with those between the keys of tracks")
        numbers = shape.numbers
        if shape.kind == "box" and shape.degrees % 360:
            numbers = self.reading.enclose("rotated box", rotated(numbers, shape.degrees))
        elif shape.kind != "box":
            numbers = self.reading.enclose(shape.kind, numbers)
        draft.add(where, self.reading.label(label) if label else None, numbers)

    def _begin_track(self, attributes: Mapping[str, str], where: str) -> None:
        """Begin a track, whose shapes follow.

        Raises:
            DataError: there are no frames, or tracks of several tasks can't be told apart.
        """
        label, subset, task = (attributes.get(name, "").strip() for name in ("label", "subset", "task_id"))
        if not self._is_chosen(subset):
            if label:  # of another list, whose classes count
                self.reading.label(label)
            return
        if not label:
            self.reading.fault(where, "<track> needs a `label`")
        if self.tasks.setdefault(subset, task) != task:
            raise DataError(
                f"{where}: there are tracks of several tasks, {self.tasks[subset]:.50} and {task:.50}, whose frames "
                "have the same numbers; export each task by itself"
            )
        if subset not in self.videos:
            self.videos[subset] = self._video(subset)
        self.track = _Track(where, label, subset)

    def _place_shape(self, tag: str, attributes: Mapping[str, str], where: str) -> None:
        """Add a shape to the track."""
        if self.track is None:
            return
        text, outside = attributes.get("frame", ""), attributes.get("outside", "0")
        if not text.isdecimal() or len(text) > _MAX_DIGITS or outside not in ("0", "1"):
            found = f"{text:.50}, {outside:.50}"
            self.reading.fault(where, f"`frame` must be a whole number, and `outside` 0 or 1; found {found}")
            return
        try:
            shape = _shape(tag, attributes)
        except ValueError as error:
            self.reading.fault(where, str(error))
            return
        if shape is None:
            if outside == "0":
                self.reading.left_out[_LEFT_OUT[tag]] += 1
        else:
            self.track.placed.append(_Placed(int(text), where, shape, outside == "1"))

    def _video(self, subset: str) -> _Video:
        """Return a video, whose frames are images.

        Raises:
            DataError: there are none, or they are those of another subset too.
        """
        places = [*(normal(place / subset) for place in self._places if subset), *self._places]
        fits: list[tuple[int, Location, str]] = []
        for place in places:
            found = ((_FRAME.fullmatch(os.path.splitext(name)[0]), name) for name in self.folders(place).names)
            fits = [(int(match[1]), place, name) for match, name in found if match and is_image(name)]
            if fits:
                break
        else:
            looked = f"there are no images frame_000000.png, ... of its frames in {', '.join(map(str, places))}"
            how = "export the task with `Save images`, or a task of images as CVAT for images"
            raise DataError(f"{self.path}: these are the tracks of a video, and {looked}; {how}")
        frames: dict[int, Draft] = {}
        for number, place, name in sorted(fits, key=lambda fit: (fit[0], fit[2])):
            draft = Draft(relative_name(place / name, self.layout.root), os.path.splitext(name)[0], place / name)
            if number in frames:
                frames[number].fault(place / name, f"this is frame {number} too, as is {frames[number].name}; keep one")
                continue
            if draft.name in self.drafts:
                raise DataError(f"{self.path}: two subsets have the frame {place / name}; export each task by itself")
            frames[number] = self.drafts[draft.name] = draft
            if "width" in self.meta and "height" in self.meta and not subset:
                (width, where), (height, _) = self.meta["width"], self.meta["height"]
                self._read_size(draft, width.strip(), height.strip(), where)
        numbers, last = list(frames), max(frames)
        text = self.meta.get("stop_frame", ("", ""))[0].strip()
        stop = int(text) if text.isdecimal() and not subset else last  # a project has several tasks
        if last > stop:
            reason = f"the last frame of the task has the number {stop}; CVAT numbers frames from 0, ffmpeg from 1"
            self.reading.fault(frames[last].path or self.path, reason)
        return _Video(frames, numbers, bisect_right(numbers, stop))

    def _add_track(self, track: _Track) -> None:
        """Add the boxes of a track to the frames. Between two boxes they move as in CVAT.

        Raises:
            DataError: there are too many boxes.
        """
        frames, numbers, end = self.videos[track.subset]
        placed = sorted(track.placed, key=lambda shape: shape.frame)
        for here, after in zip(placed, [*placed[1:], None], strict=False):
            if after is not None and here.frame == after.frame:
                self.reading.fault(after.where, f"the track has two shapes in frame {here.frame}, also in {here.where}")
            if here.outside:
                continue
            if here.frame in frames:
                self._add(frames[here.frame], here.where, track.label, here.shape)
            else:
                self.reading.fault(here.where, f"there is no image of frame {here.frame}")
            start = bisect_right(numbers, here.frame)
            until = end if after is None else bisect_left(numbers, after.frame)
            for number, shape in _between(here, after, numbers[start:until], self.reading):
                self._add(frames[number], here.where, track.label, shape)


def _between(
    here: _Placed, after: _Placed | None, numbers: Sequence[int], reading: Reading
) -> Iterator[tuple[int, _Shape]]:
    """Yield the shapes of a track in the frames between two that are given, or after the last.

    Boxes move evenly, and turn the shorter way. After the last shape, an object that is not outside stays.
    """
    if not numbers:
        return
    if after is None:
        yield from ((number, here.shape) for number in numbers)
        return
    if here.shape.kind != "box" or after.shape.kind != "box":
        reason = (
            f"the track has no shape in frames {here.frame + 1} to {after.frame - 1}; only boxes can be interpolated"
        )
        reading.fault(here.where, f"{reason}; export it from CVAT as CVAT for images")
        return
    turn = (after.shape.degrees - here.shape.degrees + 180) % 360 - 180
    for number in numbers:
        share = (number - here.frame) / (after.frame - here.frame)
        ends = zip(here.shape.numbers, after.shape.numbers, strict=True)
        yield (
            number,
            _Shape("box", [one + (other - one) * share for one, other in ends], here.shape.degrees + turn * share),
        )


_NUMBERS: dict[str, tuple[str, ...]] = {
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "mask": ("left", "top", "width", "height"),
    "cuboid": tuple(f"{axis}{corner}{face}" for face in "12" for corner in ("tl", "bl", "tr", "br") for axis in "xy"),
    "polygon": (),
}
"""Element of a shape that has a box -> attributes with its numbers."""

_LEFT_OUT = {"polyline": "polyline", "points": "point set", "skeleton": "skeleton", "tag": "tag"}
"""Element of a shape that no box encloses -> its noun."""


def _shape(tag: str, attributes: Mapping[str, str]) -> _Shape | None:
    """Return the shape of an element; None if no box encloses it.

    Raises:
        ValueError: the element is faulty or unknown. The message gives the reason.
    """
    if tag in _LEFT_OUT:
        return None
    if tag not in _NUMBERS:
        raise ValueError(f"unknown element <{tag:.50}>; expected {', '.join((*_NUMBERS, *_LEFT_OUT))}")
    names = _NUMBERS[tag]
    numbers = _floats([attributes.get(name, "") for name in names])
    if tag == "polygon":
        points = [point.split(",") for point in attributes.get("points", "").split(";")]
        numbers = _floats([number for point in points for number in point])
        if len(points) < 3 or any(len(point) != 2 for point in points) or numbers is None:
            text = attributes.get("points", "")
            raise ValueError(f"<polygon> needs at least three `points`, x,y;x,y;...; found {text:.100}")
    if numbers is None:
        found = ", ".join(attributes.get(name, "nothing") for name in names)
        raise ValueError(f"<{tag}> needs the finite numbers {', '.join(names)}; found {found:.200}")
    angle = _floats([attributes.get("rotation", "0")])
    if angle is None:
        raise ValueError(f"`rotation` must be a finite number; found {attributes['rotation']:.50}")
    return _placed(tag, numbers, angle[0])


def _placed(tag: str, numbers: list[float], degrees: float) -> _Shape:
    """Return a shape by its numbers.

    Raises:
        ValueError: a side or radius is negative, so that the box would be inverted.
    """
    if tag == "box":
        if degrees % 360 and (numbers[2] < numbers[0] or numbers[3] < numbers[1]):
            raise ValueError(f"box ({', '.join(f'{number:g}' for number in numbers)}) is inverted")
        return _Shape(tag, numbers, degrees)
    if tag in ("ellipse", "mask") and min(numbers[2:]) < 0:
        raise ValueError(f"<{tag}> has a negative size: {min(numbers[2:]):g}")
    if tag == "ellipse":
        x, y, width, height = numbers
        return _Shape(tag, ellipse(x, y, width, height, math.radians(degrees)))
    if tag == "mask":
        left, top, width, height = numbers
        return _Shape(tag, [left, top, left + width, top + height])
    return _Shape(tag, [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])])


def _floats(texts: Sequence[str]) -> list[float] | None:
    """Return numbers; None if one is no finite number."""
    try:
        return finite(list(map(float, texts)))
    except ValueError:
        return None
