"""Find, read and write Hugging Face's ImageFolder: a metadata.jsonl next to the images, with an object per line."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.config import Data, yaml_tree
from rcnn.config.files import MB, UnfitFile
from rcnn.data.dataset import Dataset
from rcnn.data.formats.draft import MAX_LISTED_CLASSES, Draft, Layout, Reading, corners_of_xywh
from rcnn.data.formats.folders import Folder, copy_images, lost_classes, read_lines, write_text
from rcnn.data.formats.json_tree import MAX_LINE_CHARS, floats, is_int, is_numbers, json_lines, load_json
from rcnn.data.formats.lists import SPLITS, find_lists
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.data.formats.seen_classes import SeenClasses
from rcnn.data.formats.yolo import MAX_UNNAMED_CLASSES, MAX_YAML_BYTES
from rcnn.errors import DataError, plural
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, RemotePath, is_address, normal, open_text, read_start, read_text, shown

MAX_METADATA_BYTES = 1000 * MB
"""Maximum size of a metadata.jsonl, bytes."""

MAX_METADATA_LINES = 2_000_000
"""Maximum number of lines of a metadata.jsonl, one for each image."""

BOX_KEYS = ("bbox", "bboxes", "boxes")
CLASS_KEYS = ("categories", "category", "labels", "label", "names", "name", "class", "classes", "category_id")
"""Keys of the boxes and of the classes of the objects of an image; the first one that exists is read."""

CLASS_FILES = ("dataset_info.json", "README.md", "classes.txt", "labels.txt")
"""Files that may name the classes that rows refer to by numbers; the first one that does so is read."""

_OBJECT_KEYS = (*BOX_KEYS, *CLASS_KEYS, "iscrowd")
_HEAD_BYTES, _HEAD_LINES = 1 << 16, 20
_KEYS = tuple(re.compile(rb'"%s"\s*:' % key) for key in (b"file_name", b"objects"))
_SPLIT = re.compile(r'"file_name"\s*:\s*"([^"/\\]+)/')
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\s*\n", re.DOTALL)
_MAX_DEPTH = 20
_WRAPPERS = {"feature", "features", "sequence", "list", "dtype", "struct"}
"""Keys in a description of features that do not name one."""


def find(path: Location) -> Layout | None:
    """Return the set of a metadata.jsonl, or of a folder that holds one, or one in each of train/, validation/, test/.

    The folder may be `data`. If the images of one file lie in a folder per list, these folders are the lists.

    Raises:
        DataError: several files could be one list.
    """
    layout = find_lists("huggingface", path, (".jsonl",), _is_metadata)
    if layout is None and (path / "data").is_dir():
        layout = find_lists("huggingface", path / "data", (".jsonl",), _is_metadata)
        layout = layout and replace(layout, home=path)
    if layout is None:
        return None
    lists = layout.lists
    if list(lists) == ["all"]:
        (file,) = lists["all"]
        lists = _folder_lists(file) or lists
    return replace(layout, lists=lists, classes=_class_files(layout))


def _is_metadata(path: Location) -> bool:
    """Return whether one of the first lines of a file is about an image and its objects."""
    lines = read_start(path, _HEAD_BYTES).split(b"\n")[:_HEAD_LINES]
    return any(all(key.search(line) for key in _KEYS) for line in lines)


def _folder_lists(file: Location) -> dict[str, tuple[Location, ...]]:
    """Return the lists of a metadata.jsonl whose images lie in `train/` and the like; none if the first one does not.

    The sources of a list are the file, and folders of images.
    """
    found: dict[str, None] = {}
    try:
        with open_text(file, MAX_METADATA_BYTES) as lines:
            for line in iter(partial(lines.readline, MAX_LINE_CHARS), ""):
                match = _SPLIT.search(line)
                if match and match[1] in SPLITS:
                    found[match[1]] = None
                elif not found:
                    return {}
    except (UnfitFile, UnicodeDecodeError):  # reported when it is read
        return {}
    splits = dict.fromkeys(split for name, split in SPLITS.items() if name in found)
    return {split: (file, *(file.parent / name for name in found if SPLITS[name] == split)) for split in splits}


def _class_files(layout: Layout) -> tuple[Location, ...]:
    """Return the files that may name the classes: next to a metadata.jsonl, in the folder of the set, or above."""
    places = [source.parent for sources in layout.lists.values() for source in sources if source.suffix]
    places += [layout.root, *([layout.root.parent] if layout.root.name in (*SPLITS, "data") else [])]
    if isinstance(top := layout.home or layout.root, RemotePath):  # nothing outside a set is opened
        places = [place for place in places if isinstance(place, RemotePath) and place.is_relative_to(top)]
    there = {place: Folder(place).names for place in dict.fromkeys(map(normal, places))}
    return tuple(place / name for place, names in there.items() for name in CLASS_FILES if name in names)


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of some files, or those of them that lie in some folders.

    Without `names`, the classes are those that a file names (see `CLASS_FILES`) if the rows have numbers, or else those
    that occur, sorted.

    Raises:
        DataError: no image exists.
    """
    reading = Reading(corners_of_xywh)
    rows = _Rows(layout, reading, SeenClasses(names), _class_names(layout.classes))
    files = dict.fromkeys(source for source in sources if source.suffix)
    for file in files:
        rows.read(file, {source.name for source in sources if source not in files and source.parent == file.parent})
    reading.drafts = list(rows.drafts.values())
    reading.count_more(sources[0])
    if reading.drafts and not any(draft.path for draft in reading.drafts):
        raise DataError(f"{sources[0]}: none of its images exists. {reading.drafts[0].faults[0][1]}")
    if rows.unlisted:
        count, first = plural(len(rows.unlisted), "image"), min(rows.unlisted)
        reading.notes.append(f"{count} without a line in {file.name}, such as {first}; left out, as not labelled")
    rows.classes.settle(reading, reading.drafts, rows.own_classes(), names)
    return reading


@dataclass
class _Rows:
    """Reads the lines of files.

    Attributes:
        named: the classes that numbers stand for; None: they are not named.
        drafts: by their own names.
        highest: the highest number of a class without a name.
        texts: whether a class is named in a line.
        unlisted: names of images next to a file, or in the folders of its lists, that have no line.
    """

    layout: Layout
    reading: Reading
    classes: SeenClasses
    named: Sequence[str] | None
    drafts: dict[str, Draft] = field(default_factory=dict)
    highest: int = -1
    texts: bool = False
    unlisted: list[str] = field(default_factory=list)

    def own_classes(self) -> Sequence[str]:
        """Return the classes of the data, after all lines were read."""
        if self.texts or (self.named is None and self.highest < 0):
            return sorted(self.classes.numbers)
        if self.named is not None:
            return self.named
        looked = ", ".join(CLASS_FILES)
        self.reading.notes.append(
            f"no file names the classes (looked for {looked}): they are called 0 to {self.highest}"
        )
        return [str(number) for number in range(self.highest + 1)]

    def read(self, file: Location, folders: Collection[str]) -> None:
        """Add the images of a file to the drafts, or only those in some folders, if any are given.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or not text.
        """
        images, faults = NamedImages(self.layout, usual_places(file.parent, self.layout.root)), self.reading.faults
        elsewhere = 0
        for where, row in json_lines(file, MAX_METADATA_BYTES, MAX_METADATA_LINES, faults, self.reading.fault):
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str) or not name:
                self.reading.fault(where, "an object with the `file_name` of an image is expected")
                continue
            if folders and name.split("/")[0] not in folders:
                elsewhere += name.split("/")[0] not in SPLITS
                continue
            draft = Draft(shown(name) if is_address(name) else name, name, None, source=where)
            images.find(draft, where, name)
            known = self.drafts.setdefault(draft.name, draft)
            if known is not draft:
                known.fault(where, f"image `{draft.name}` has a line before, {known.source}; keep one of the two")
                continue
            number = row.get("image_id")
            draft.id = number if is_int(number) else draft.path.stem if draft.path else draft.name
            height, width = row.get("height"), row.get("width")
            if is_int(height) and is_int(width) and height > 0 and width > 0:
                draft.declared = height, width
            self._add_objects(draft, where, row.get("objects"))
        read = {draft.path for draft in self.drafts.values()}
        for place in [file.parent / name for name in folders] or [file.parent]:
            self.unlisted += [name for name in filter(is_image, Folder(place).names) if place / name not in read]
        if elsewhere:
            rows = f"{plural(elsewhere, 'line')} of {file.name}"
            self.reading.notes.append(f"{rows} about images outside the folders of the lists left out")

    def _add_objects(self, draft: Draft, where: str, objects: object) -> None:
        """Add the objects of an image, which are lists of their boxes and classes, or a list of objects."""
        if isinstance(objects, list) and all(isinstance(one, dict) for one in objects):
            known = [key for key in _OBJECT_KEYS if any(key in one for one in objects)]
            columns: Mapping[str, Any] = {key: [one.get(key) for one in objects] for key in known}
        else:
            columns = objects if isinstance(objects, dict) else {}
        if objects in ([], {}):
            return
        boxes, labels = (
            next((columns[key] for key in keys if isinstance(columns.get(key), list)), None)
            for keys in (BOX_KEYS, CLASS_KEYS)
        )
        if boxes is None or (labels is None and boxes):
            reason = "`objects` needs a list `bbox` and a list `categories`, which are empty if there are no objects"
            draft.fault(where, f"{reason}; found {objects!r:.200}")
            return
        labels, crowds = labels or [], columns.get("iscrowd") or [0] * len(boxes)
        if len(labels) != len(boxes) or not isinstance(crowds, list) or len(crowds) != len(boxes):
            draft.fault(where, f"`objects` has {plural(len(boxes), 'box')} and {plural(len(labels), 'class')}")
            return
        for index, (box, label, crowd) in enumerate(zip(boxes, labels, crowds, strict=True)):
            place = f"{where}: objects[{index}]"
            number = self._class(draft, place, label)
            if not is_numbers(box) or len(box) != 4:
                draft.fault(place, f"bbox must be four numbers x, y, width, height; found {box!r:.200}")
            elif crowd not in (None, 0, 1):
                draft.fault(place, f"iscrowd must be 0 or 1; found {crowd!r:.50}")
            else:
                draft.add(place, number, floats(box), ignore=bool(crowd))

    def _class(self, draft: Draft, where: str, value: object) -> int | None:
        """Return the number of a class, which a row names or numbers; None, and a fault, if there is no such class."""
        if isinstance(value, str) and value:
            self.texts = True
            return self.classes.number(value, draft, where)
        if not is_int(value):
            draft.fault(where, f"a class must be a name or a number; found {value!r:.50}")
        elif self.named is None and 0 <= value < MAX_UNNAMED_CLASSES:
            self.highest = max(self.highest, value)
            return self.classes.number(str(value), draft, where)
        elif self.named is None:
            draft.fault(where, f"class {value}: at most {MAX_UNNAMED_CLASSES:,} classes without names are read")
        elif 0 <= value < len(self.named):
            return self.classes.number(self.named[value], draft, where)
        else:
            known = ", ".join(self.named[:MAX_LISTED_CLASSES])
            draft.fault(where, f"class {value} is not among the {len(self.named):,} classes, from 0: {known}")
        return None


def _class_names(files: Sequence[Location]) -> list[str] | None:
    """Return the classes in the first of some files that names them, without damaged ones; None if there is none."""
    for file in files:
        try:
            names = _names_in(file)
        except (OSError, ValueError, RecursionError):  # also of text that is not UTF-8, and malformed json or yaml
            continue
        if names:
            return names
    return None


def _names_in(file: Location) -> list[str] | None:
    """Return the classes in a file of names, or in a description of the features of a data set.

    Raises:
        OSError, ValueError: the file can't be read.
    """
    if file.suffix == ".txt":
        return [text for _, text in read_lines(file, MAX_YAML_BYTES)]
    if file.suffix == ".json":
        tree = load_json(file, MAX_YAML_BYTES, [])
    else:
        front = _FRONT_MATTER.match(read_text(file, MAX_YAML_BYTES))
        tree = yaml_tree.load(front[1], as_text=True) if front else None
    found = dict(_class_labels(tree))
    return next((found[key] for key in CLASS_KEYS if key in found), None)


def _class_labels(
    tree: object, name: str = "", in_objects: bool = False, depth: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the classes of each feature of the objects that is a class.

    Args:
        tree: part of the description of features, in json (`_type`) or in the yaml of a README.md (`class_label`).
        name: of the feature that it describes.
        in_objects: whether this is a feature of the objects.
        depth: of the part.
    """
    if depth > _MAX_DEPTH:
        return
    if isinstance(tree, list):
        for item in tree:
            yield from _class_labels(item, name, in_objects, depth + 1)
    elif isinstance(tree, dict):
        name = str(tree.get("name", name)) if {"dtype", "sequence", "list", "struct"} & tree.keys() else name
        in_objects = in_objects or name == "objects"
        label = tree.get("class_label", tree if tree.get("_type") == "ClassLabel" else None)
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, dict) and all(isinstance(key, str) and key.isdecimal() for key in names):
            names = [names[key] for key in sorted(names, key=int)]
        if in_objects and isinstance(names, list) and names and all(isinstance(text, str) for text in names):
            yield name, names
        for key, value in tree.items():
            yield from _class_labels(
                value, name if key in _WRAPPERS else key, in_objects or key == "objects", depth + 1
            )


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
    """Write LIST/metadata.jsonl next to the images. Crowd and difficult boxes are left out, and counted.

    `names` maps each image to its new file name.
    """
    ignored = 0
    folders = {"all": ".", "trainval": "train", "val": "validation"}
    for dataset in datasets:
        folder = out / folders.get(dataset.split, dataset.split)
        copy_images(dataset.records, folder, names)
        lines = list[str]()
        for record in dataset.records:
            ignored += int(record.ignore.sum())
            low, high = np.split(record.boxes[~record.ignore], 2, axis=1)
            classes = [dataset.names[label] for label in record.labels[~record.ignore].tolist()]
            objects = {"bbox": np.concatenate((low, high - low), axis=1).tolist(), "categories": classes}
            height, width = record.size
            row = {"file_name": names[record.path], "width": width, "height": height, "objects": objects}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_text(folder / "metadata.jsonl", "".join(lines))
    remark = f"metadata.jsonl has no crowd or difficult boxes: {ignored} were left out"
    return [*([remark] if ignored else []), *lost_classes(datasets, "metadata.jsonl")]
