"""Find, read and write labelme's json, one file per image, also as X-AnyLabeling and other tools write it."""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset, Fault, Record
from rcnn.data.formats.beside import (
    SPLIT_FOLDERS,
    first_files,
    folders_in,
    has_images,
    images_above,
    sibling_images,
)
from rcnn.data.formats.draft import Draft, Layout, Reading, corners_of_xyxy, relative_name
from rcnn.data.formats.folders import Folder, Folders, cached_folders, copy_images, lost_classes, write_text
from rcnn.data.formats.json_tree import MalformedJson, load_json
from rcnn.data.formats.named_images import NamedImages
from rcnn.data.formats.shapes import ellipse, is_upright, pairs
from rcnn.errors import DataError
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, read_ends, shown

MAX_LABELME_BYTES = 256 * MB
"""Maximum size of a json file, bytes; it may hold its image as text."""

_SUFFIX = ".json"
_HEAD_BYTES = 4096
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_IMAGE = re.compile(rb'"(imagePath|imageData|imageHeight|imageWidth)"\s*:')
_FOLDERS = {"all": ".", "trainval": "train"}
_FLAGS = (None, False, True)
_VERSION = "5.0.0"
"""Version of labelme's format that is written."""


def find(path: Location) -> Layout | None:
    """Return the set at a folder of json files next to images, beside a folder of images, or in a folder per split.

    A folder that holds several folders of images with their json files is one data set too.

    Raises:
        DataError: a json file of one image was given, or several folders could be that of the labels.
    """
    if path.is_file():
        if path.suffix.lower() == _SUFFIX and _is_labelme(path):
            raise DataError(f"{path}: these are the labels of one image, by labelme; give the folder, {path.parent}")
        return None
    if lists := _splits(path):
        if any(folder.parent == path and images_above(folder) for (folder,) in lists.values()):
            path = path.parent  # the folder of labels was given
        named = "/, ".join(relative_name(folder, path) for (folder,) in lists.values())
        return Layout("labelme", path, lists, evidence=f"{named}/ with labelme's *.json")
    if _has_labels(path):
        root = path
        if not has_images(path) and (images := _images_beside(path)) is not None:
            root = path.parent if images.parent == path.parent else path.parent.parent
        return Layout("labelme", root, {"all": (path,)}, evidence="labelme's *.json")
    folders = _label_folders(path)
    named = "/, ".join(folder.name for folder in folders)
    return Layout("labelme", path, {"all": folders}, evidence=f"{named}/ with labelme's *.json") if folders else None


def _splits(path: Location) -> dict[str, tuple[Location, ...]]:
    """Return the folder of labels of each list: `train`, a folder in it, or `annotations/train` with `images/train`."""
    inner, lists = folders_in(path), dict[str, tuple[Location, ...]]()
    for split, names in SPLIT_FOLDERS.items():
        own = [path / name for name in names]
        below = [folder for name in own if name in inner for folder in folders_in(name)]
        above = filter(images_above, (folder / name for folder in inner for name in names))
        if found := next(filter(_has_labels, [*own, *below, *above]), None):
            lists[split] = (found,)
    return lists


def _label_folders(path: Location) -> tuple[Location, ...]:
    """Return the folders of labels in a folder: those that hold their images, or the one beside images.

    Raises:
        DataError: several are beside images.
    """
    folders = [folder for folder in folders_in(path) if _has_labels(folder)]
    if own := tuple(filter(has_images, folders)):
        return own
    beside = [folder for folder in folders if has_images(path) or _images_beside(folder) is not None]
    if len(beside) > 1:
        names = ", ".join(map(str, beside))
        raise DataError(f"{path}: several folders here hold json files of labelme: {names}; give one of them")
    return tuple(beside or folders[:1])


def _images_beside(labels: Location) -> Location | None:
    """Return the folder of images beside a folder of json files."""
    return sibling_images(labels, _SUFFIX, all)


def _has_labels(folder: Location) -> bool:
    """Return whether one of the first json files of a folder is labelme's."""
    return any(map(_is_labelme, first_files(folder, _SUFFIX)))


def _is_labelme(path: Location) -> bool:
    """Return whether a json file has the keys of labelme at its beginning and end; between them may be an image."""
    try:
        text = read_ends(path, _HEAD_BYTES)
    except OSError:
        return False
    return _SHAPES.search(text) is not None and _IMAGE.search(text) is not None


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of folders of json files. Without `names`, the classes are those that occur, sorted."""
    reader = _LabelFolders(layout, Reading(corners_of_xyxy), cached_folders(layout.home or layout.root))
    for source in sources:
        reader.read_folder(source)
    reading = reader.reading
    reading.drafts = list(reader.drafts.values())
    reading.settle(names)
    if reader.others:
        reading.notes.append(
            f"{len(reader.others)} json files have no `shapes` and no image of their name, and are not read, such as "
            f"{min(reader.others)}"
        )
    return reading


@dataclass
class _LabelFolders:
    """Reads folders of json files.

    Attributes:
        drafts: by the location of the image, or of the json file if it has none.
        others: names of json files that are something else.
    """

    layout: Layout
    reading: Reading
    folders: Folders
    drafts: dict[Location, Draft] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    def read_folder(self, source: Location) -> None:
        """Add the images of a folder of json files, and faults for its images without one."""
        folder = self.folders(source)
        images = folder if any(map(is_image, folder.names)) else self.folders(_images_beside(source) or source)
        named = NamedImages(self.layout, dict.fromkeys((source, images.path)))
        for name in folder.names:
            if name.lower().endswith(_SUFFIX):
                self._read_file(source / name, images, named)
        for name in filter(is_image, images.names):
            if images.path / name not in self.drafts and not folder.find(os.path.splitext(name)[0] + _SUFFIX):
                reason = "there is no json of this image; left out (a json without shapes makes it a background image)"
                self.reading.faults.append(Fault(str(images.path / name), reason, "mendable"))

    def _read_file(self, path: Location, images: Folder, named: NamedImages) -> None:
        """Add the image of a json file with its objects and faults."""
        faults: list[Fault] = []
        fields: dict[str, Any] = {}
        try:
            tree = load_json(path, MAX_LABELME_BYTES, faults)
        except MalformedJson as error:
            faults.append(Fault(error.where, str(error), "fatal"))
        else:
            fields = tree if isinstance(tree, dict) else {}
            if not isinstance(fields.get("shapes"), list):
                if not images.images(path.stem):
                    self.others.add(path.name)
                    return
                faults.append(Fault(str(path), "there is no list `shapes`; is this a file of labelme?", "fatal"))
        draft = Draft(relative_name(images.path / path.stem, self.layout.root), path.stem, None, source=str(path))
        _find_image(draft, path, fields, images, named, self.layout.root)
        key = draft.path or path
        if key in self.drafts:
            other = self.drafts[key]
            other.fault(path, f"this image has labels in {os.path.basename(other.source)} too; keep one of the two")
            return
        self.drafts[key] = draft
        for fault in faults:
            draft.fault(fault.where, fault.reason, fault.kind)
        _read_size(draft, path, fields)
        shapes = fields.get("shapes")
        for index, shape in enumerate(shapes if isinstance(shapes, list) else ()):
            self._add_shape(draft, f"{path}: shapes[{index}]", shape)

    def _add_shape(self, draft: Draft, where: str, shape: object) -> None:
        """Add an object, or its faults, to its image; a shape that no box encloses is counted."""
        if not isinstance(shape, dict):
            draft.fault(where, f"an object is expected here; found {shape!r:.50}")
            return
        kind = shape.get("shape_type")
        kind = "polygon" if kind is None else str(kind)  # old versions had no other
        if kind in _LEFT_OUT:
            self.reading.left_out[_LEFT_OUT[kind]] += 1
            return
        label, points = shape.get("label"), pairs(shape.get("points"))
        name = label.strip() if isinstance(label, str) else ""
        if not name:
            draft.fault(where, f"`label` must be the name of a class; found {label!r:.50}")
        difficult = shape.get("difficult")
        if difficult not in _FLAGS:
            draft.fault(where, f"`difficult` must be true or false; found {difficult!r:.50}")
        if kind not in _BOXES:
            draft.fault(where, f"unknown shape_type `{kind:.50}`; expected {', '.join((*_BOXES, *_LEFT_OUT))}")
        elif points is None:
            draft.fault(where, f"`points` must be a list of [x, y], finite numbers; found {shape.get('points')!r:.100}")
        elif len(points) // 2 not in _BOXES[kind].points:
            draft.fault(where, f"a shape `{kind}` has {_BOXES[kind].expected} points; found {len(points) // 2}")
        else:
            box = _BOXES[kind].box(self.reading, points)
            draft.add(where, self.reading.label(name) if name else None, box, ignore=bool(difficult))


def _find_image(
    draft: Draft, path: Location, fields: Mapping[str, Any], images: Folder, named: NamedImages, root: Location
) -> None:
    """Set the image of a json file: that of its `imagePath`, or the one with its name; or add a fault.

    Args:
        draft: the image.
        path: the json file.
        fields: what it contains.
        images: the folder of images.
        named: finds images by their paths.
        root: folder of the data set.
    """
    given = fields.get("imagePath")
    by_path = Draft("", "", None)
    if isinstance(given, str) and given.strip():
        named.find(by_path, str(path), given.strip())
    by_stem = images.images(path.stem)
    written = shown(given) if isinstance(given, str) else ""
    if by_path.path is not None:
        draft.path, draft.name, draft.faults = by_path.path, by_path.name, by_path.faults
        if by_stem and by_path.path not in [images.path / name for name in by_stem]:
            reason = f"`imagePath` is `{written:.200}`, but there is also {by_stem[0]}, which has the name of this file"
            draft.fault(path, f"{reason}; rename this file, or correct the path")
    elif len(by_stem) == 1:
        draft.path, draft.name = images.path / by_stem[0], relative_name(images.path / by_stem[0], root)
        if os.path.splitext(by_stem[0])[0] != path.stem:
            draft.fault(path, f"names differ in case, taken to be the same: {path.name}, {by_stem[0]}", "mendable")
    elif by_stem:
        draft.fault(path, f"two images with this name in {images.path}: {', '.join(by_stem)}; keep one")
    elif fields.get("imageData"):
        draft.fault(
            path,
            "its image is only inside this file, as `imageData`, which is not read; write it as a file next to this "
            "one, for example with labelme_export_json",
        )
    else:
        near = images.near(f"{path.stem}.jpg")
        wanted = f"`{path.stem}`" + (f" or `{written:.200}`" if written else "")
        draft.fault(path, f"there is no image {wanted} in {images.path}{near}")


def _read_size(draft: Draft, path: Location, fields: Mapping[str, Any]) -> None:
    """Read the declared size; null and missing numbers declare none."""
    height, width = fields.get("imageHeight"), fields.get("imageWidth")
    if height is None or width is None:
        return
    if not all(type(side) is int and 0 < side < 1 << 31 for side in (height, width)):
        draft.fault(path, f"imageWidth and imageHeight must be whole numbers; found {width!r:.50}, {height!r:.50}")
        return
    draft.declared, draft.source = (height, width), str(path)


def _rectangle(reading: Reading, points: list[float]) -> list[float]:
    """Return the box of two opposite corners in any order, or of four."""
    if len(points) == 4 or is_upright(points):
        return [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
    return reading.enclose("rotated box", points)


def _circle(reading: Reading, points: list[float]) -> list[float]:
    """Return the box of a circle by its centre and a point on its rim."""
    radius = math.hypot(points[2] - points[0], points[3] - points[1])
    return reading.enclose("circle", ellipse(points[0], points[1], radius, radius))


def _enclosed(noun: str) -> Callable[[Reading, list[float]], list[float]]:
    return lambda reading, points: reading.enclose(noun, points)


@dataclass(frozen=True)
class _Kind:
    """How shapes become boxes.

    Attributes:
        points: possible numbers of points.
        expected: the same, for messages.
        box: (reading, x, y, ... of the points) -> x1, y1, x2, y2.
    """

    points: range | tuple[int, ...]
    expected: str
    box: Callable[[Reading, list[float]], list[float]]


_MANY = range(3, 1 << 62)
_BOXES = {
    "rectangle": _Kind((2, 4), "two or four", _rectangle),
    "polygon": _Kind(_MANY, "at least three", _enclosed("polygon")),
    "circle": _Kind((2,), "two", _circle),
    # Corners of the mask, the second of which is the one after its last pixel. The pixels are not read.
    "mask": _Kind((2,), "two", _enclosed("mask")),
    "oriented_rectangle": _Kind((4,), "four", _rectangle),
    "rotation": _Kind((4,), "four", _rectangle),  # X-AnyLabeling's oriented rectangle
    "quadrilateral": _Kind((4,), "four", _enclosed("quadrilateral")),
}
_LEFT_OUT = {"point": "point", "points": "point set", "line": "line", "linestrip": "linestrip"}
"""Kind of a shape that no box encloses -> its noun."""


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
    """Write a json next to each image, in a folder per list. `names` maps each image to its new file name."""
    for dataset in datasets:
        folder = out / _FOLDERS.get(dataset.split, dataset.split)
        copy_images(dataset.records, folder, names)
        for record in dataset.records:
            name = names[record.path]
            write_text(folder / (os.path.splitext(name)[0] + _SUFFIX), _as_json(record, name, dataset.names))
    return lost_classes(datasets, "labelme")


def _as_json(record: Record, name: str, classes: Sequence[str]) -> str:
    """Return the labels of an image, whose file is called `name`, as text."""
    height, width = record.size
    shapes = list(_shapes(record, classes))
    tree = {"version": _VERSION, "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
    return json.dumps({**tree, "imageHeight": height, "imageWidth": width}, ensure_ascii=False, indent=2) + "\n"


def _shapes(record: Record, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the boxes as rectangles; crowd and difficult ones are `difficult`, which X-AnyLabeling has too."""
    columns = (record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist())
    for (x1, y1, x2, y2), label, ignored in zip(*columns, strict=True):
        shape = {"label": classes[label], "points": [[x1, y1], [x2, y2]], "group_id": None, "description": ""}
        yield {**shape, "shape_type": "rectangle", "flags": {}} | ({"difficult": True} if ignored else {})
