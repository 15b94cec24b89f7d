"""Find, read and write YOLO: a data.yaml, and a text file per image with rows of class and relative box."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rcnn.config import Data, yaml_tree
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.draft import MAX_LISTED_CLASSES, Draft, Layout, Reading, listed, relative_name, unknown_class
from rcnn.data.formats.folders import (
    FOREIGN_ADDRESS,
    Folder,
    Folders,
    cached_folders,
    copy_images,
    ends_of,
    read_lines,
    walk,
    write_text,
)
from rcnn.errors import DataError, plural
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, is_address, name_below, normal, read_start, read_text, shown

MAX_YAML_BYTES = 4 * MB
"""Maximum size of a data.yaml, bytes."""

_IN_QUOTES = "in double quotes, yaml reads a backslash and a letter as one character; write / instead, or single quotes"


def load_yaml(path: Location, faults: list[Fault]) -> dict[str, Any]:
    """Return the mapping in a yaml file, empty if it holds none. Every scalar is text: `no`, `12` and `1e3` stay names.

    A fault is added to `faults` for every key that occurs twice with equal values.

    Raises:
        DataError: the file isn't yaml, or is too large.
    """
    repeated: list[str] = []
    try:
        tree = yaml_tree.load(read_text(path, MAX_YAML_BYTES), as_text=True, repeated=repeated)
    except (OSError, ValueError) as error:
        reason = str(error) if isinstance(error, OSError) else f"malformed yaml: {error}"
        reason += f"; {_IN_QUOTES}" if "escape" in reason else ""
        fault = Fault(f"{path}:{getattr(error, 'line', 1)}", reason, "fatal")
        raise DataError(str(fault), [fault]) from None
    faults += [Fault(str(path), reason, "mendable") for reason in repeated]
    return tree if isinstance(tree, dict) else {}


def layout_of_yaml(path: Location) -> Layout:
    """Return the data set that a data.yaml describes. Paths in it are relative to its `path` entry, else to the file.

    If an absolute path does not exist, for example on another machine, the longest trailing part of it that exists
    below these folders is used.

    Raises:
        DataError: the file is malformed, has no class names, or names folders or lists that don't exist.
    """
    faults: list[Fault] = []
    tree = load_yaml(path, faults)
    root = path.parent
    declared = tree.get("path")
    if isinstance(declared, str) and declared:
        name = name_below(declared, root)
        bases = [root / name, *([Path(name)] if isinstance(root, Path) else []), *(root / end for end in ends_of(name))]
        root = next((base for base in bases if _is_inside(base, path.parent) and base.is_dir()), root)
    lists: dict[str, tuple[Location, ...]] = {}
    missing: list[str] = []
    taken: dict[Location, str] = {}
    for split in ("train", "val", "test"):
        value = tree.get(split) or []
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{path}: `{split}` must be a path or a list of paths; found {value!r:.200}")
        paths = [_resolve(entry, root, path.parent, taken) for entry in entries]
        missing += [f"{split}: {entry}" for entry, source in zip(entries, paths, strict=True) if source is None]
        if paths and None not in paths:
            lists[split] = tuple(source for source in paths if source is not None)
    absent = [text for text in missing if not text.startswith("test")]
    if absent:
        tried = ", ".join(dict.fromkeys((str(root), str(path.parent))))
        escaped = "" if "".join(absent).isprintable() else f"; {_IN_QUOTES}"
        raise DataError(f"{path}: {'; '.join(absent)} does not exist; looked in {tried}{escaped}")
    if not lists:
        raise DataError(f"{path}: it names no existing train, val or test folder or list")
    notes = [f"{path}: {text} does not exist, so there is no such list" for text in missing]
    notes += [f"{path}: {entry} does not exist; {source} is read instead" for source, entry in taken.items()]
    return Layout("yolo", root, lists, _yaml_names(tree, path), path.name, tuple(notes), tuple(faults), path.parent)


def _is_inside(location: Location, folder: Location) -> bool:
    """Return whether a folder or list may be read: remote ones only if they lie in the folder of the yaml."""
    return isinstance(location, Path) or location.normal().is_relative_to(folder)


def _resolve(entry: str, root: Location, folder: Location, taken: dict[Location, str]) -> Location | None:
    """Return the folder or list that an entry of data.yaml refers to. Some exporters write one ../ too many.

    `taken` maps the sources that were found by the end of a path to that path; two paths do not share a source.
    """
    name = name_below(entry, folder)
    choices = [root / name, folder / name, folder / name.removeprefix("../")]
    source = next((choice for choice in choices if _is_inside(choice, folder) and choice.exists()), None)
    if source is None:
        ends = (base / end for end in ends_of(name) for base in (root, folder))
        source = next((end for end in ends if _is_inside(end, folder) and end.exists()), None)
        if source is not None and taken.setdefault(source, entry) != entry:
            return None
    return source and normal(source)


def _yaml_names(tree: dict[str, Any], path: Location) -> tuple[str, ...]:
    """Return the class names, given as a list or as a mapping from numbers.

    Raises:
        DataError: they are missing, not numbered consecutively, repeated, or differ in number from `nc`.
    """
    names = tree.get("names")
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if sorted(names) != sorted(numbers):
            raise DataError(f"{path}: `names` must be numbered 0 to {len(names) - 1}; found {', '.join(names)}")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: `names` must list the classes; found {names!r:.200}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class is named twice in `names`: {', '.join(names)}")
    if tree.get("nc") not in (None, str(len(names))):
        raise DataError(f"{path}: `nc` is {tree['nc']}, but `names` has {len(names)}: {', '.join(names)}")
    return tuple(names)


def yaml_text(paths: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the text of a data.yaml with the paths of the lists and the numbered class names."""
    tree = {**paths, "nc": len(names), "names": dict(enumerate(names))}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


MAX_LABEL_BYTES = 8 * MB
"""Maximum size of a label file, bytes."""

MAX_LABEL_ROWS = 300_000
"""Maximum number of lines of a label file."""

_MAX_ROW_BYTES = 1000
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names")
MAX_UNNAMED_CLASSES = 10_000
"""Maximum number of classes of a data set that does not name them: its largest class number may be a mistake."""

_NOT_LABELS = {"classes.txt", "train.txt", "val.txt", "test.txt", "readme.txt", "notes.txt"}


def find(path: Location) -> Layout | None:
    """Return the YOLO data set at a data.yaml, at a folder that holds one, or at folders of images and labels.

    Raises:
        DataError: the yaml is malformed, or no list that it names exists.
    """
    if path.is_file():
        return layout_of_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else None
    files = [file for suffix in ("yaml", "yml") for file in sorted(path.glob(f"*.{suffix}"))]
    files = [file for file in files if file.stem in ("data", "dataset")] or files
    data = [file for file in files if {"names", "nc"} & load_yaml(file, []).keys()]
    if len(data) > 1:
        raise DataError(f"{path}: several yaml files name classes: {', '.join(map(str, data))}; give one of them")
    return layout_of_yaml(data[0]) if data else _from_folders(path)


def _from_folders(path: Location) -> Layout | None:
    """Recognise images/ and labels/, with or without split folders in or around them, or one folder of both."""
    for pattern in ("images/{}", "{}/images", "{}", "obj_{}_data"):
        paths = {split: [path / pattern.format(name) for name in names] for split, names in _SPLITS.items()}
        labelled = {
            split: tuple(source for source in folders if _has_labels(source)) for split, folders in paths.items()
        }
        lists = {split: paths[:1] for split, paths in labelled.items() if paths}
        if lists:
            return Layout("yolo", path, lists, _file_names(path), evidence="images with labels/*.txt")
    for source in (path / "images", path):
        if _has_labels(source):
            return Layout("yolo", path, {"all": (source,)}, _file_names(path), evidence="images with labels *.txt")
    return None


def _has_labels(folder: Location) -> bool:
    """Return whether at least one image of a folder has a label file."""
    labels = {name[:-4] for name in _label_folder(folder).names if name.endswith(".txt")}
    return bool(labels) and any(os.path.splitext(name)[0] in labels for name in Folder(folder).names if is_image(name))


def _file_names(path: Location) -> tuple[str, ...] | None:
    """Return the class names in a classes.txt, or None if there is none."""
    file = next((path / name for name in _NAME_FILES if (path / name).is_file()), None)
    return tuple(text for _, text in read_lines(file)) if file else None


def _label_folder(images: Location, folders: Folders = Folder) -> Folder:
    """Return the folder of the labels: beside the images' folder if it exists, else that folder itself."""
    labels = labels_beside(images)
    beside = folders(images if labels is None else labels)
    return beside if beside.exists else folders(images)


def labels_beside(images: Location) -> Location | None:
    """Return a path with `labels` in place of the last `images`; None if it has none."""
    top, below = images, list[str]()
    while top.name != "images":
        if top == top.parent:
            return None
        below.append(top.name)
        top = top.parent
    return top.with_name("labels").joinpath(*reversed(below))


class _Listed(NamedTuple):
    """An image as a list or a folder names it; `names` are the matching files, of which there should be one.

    It is `foreign` if it is an address outside the data set.
    """

    where: str
    listed_path: Location
    names: tuple[str, ...]
    foreign: bool = False

    @property
    def path(self) -> Location:
        return self.listed_path.with_name(self.names[0]) if self.names else self.listed_path


_Line = tuple[Draft, str, list[str]]
"""A line of a label file: its image, its place `file:line`, and its columns."""


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of folders or lists; those without a label file are background."""
    folders = cached_folders(layout.home or layout.root)
    reading = Reading(_corners, units="share")
    drafts: dict[str, Draft] = {}
    lines: list[_Line] = []
    bare: list[str] = []
    for source in sources:
        here: set[str] = set()
        for entry in _images(source, layout.root, folders):
            name = relative_name(entry.path, layout.root)
            if name in here:
                drafts[name].fault(entry.where, f"image `{name}` is listed twice; keep one of the two")
            here.add(name)
            if name not in drafts:
                drafts[name] = _draft(entry, name, folders)
                own = _label_lines(entry, drafts[name], folders)
                lines += own or ()
                bare += [name] if own is None and drafts[name].path else []
    reading.drafts = list(drafts.values())
    _check_label_files([draft.path for draft in reading.drafts if draft.path], folders, reading)
    if bare:
        have = "has" if len(bare) == 1 else "have"
        reading.notes.append(
            f"{len(bare)} of {plural(len(drafts), 'image')} {have} no label file, such as {bare[0]}; read as images "
            "without objects"
        )
    labels = reading.label_classes(layout.names or _numbers(lines, reading), names)
    for draft, where, columns in lines:
        _add_row(draft, where, columns, reading.own, labels)
    return reading


def _images(source: Location, root: Location, folders: Folders) -> Iterator[_Listed]:
    """Yield the images in and below a folder, except our own results, or those of a list of paths."""
    if source.is_dir():
        for folder in walk(source, folders):
            for name in filter(is_image, folders(folder).names):
                yield _Listed(str(folder / name), folder / name, (name,))
        return
    for line, text in read_lines(source):
        below = name_below(text, root)
        if foreign := is_address(below):
            below = shown(below)
        ends = (below, *ends_of(below))
        bases = (root,) if is_address(text) else (source.parent, root)  # of an address, the path below the root
        choices = [normal(base / end) for end in ends for base in bases]
        fits = ((choice, tuple(folders(choice.parent).find(choice.name))) for choice in choices)
        listed_path, names = next((fit for fit in fits if fit[1]), (choices[0], ()))
        yield _Listed(f"{source}:{line}", listed_path, names, foreign)


def _draft(entry: _Listed, name: str, folders: Folders) -> Draft:
    """Return the image without its boxes."""
    stem = os.path.splitext(entry.path.name)[0]
    draft = Draft(name, stem, None)
    folder = folders(entry.listed_path.parent)
    twins = [twin for twin in folder.images(stem) if os.path.splitext(twin)[0] == stem]
    if not entry.names:
        near = folder.near(entry.listed_path.name)
        missing = FOREIGN_ADDRESS if entry.foreign else f"is missing; looked in {folder.path}{near}"
        draft.fault(entry.where, f"image `{name}` {missing}")
    elif len(entry.names) > 1:
        draft.fault(entry.where, f"image `{name}` is missing; several differ from it in case: {', '.join(entry.names)}")
    elif len(twins) > 1:
        draft.fault(entry.where, f"two images with the same stem share one label file: {', '.join(twins)}; keep one")
    else:
        draft.path = entry.path
        if entry.path != entry.listed_path:
            reason = f"names differ in case, taken to be the same: {entry.listed_path.name}, {name}"
            draft.fault(entry.where, reason, "mendable")
    return draft


def _label_lines(entry: _Listed, draft: Draft, folders: Folders) -> list[_Line] | None:
    """Return the lines of the image's label file; None if it has none."""
    folder = _label_folder(entry.path.parent, folders)
    label_file = f"{draft.id}.txt"
    fits = folder.find(label_file)
    if not fits:
        return None
    file = folder.path / fits[0]
    if fits[0] != label_file:
        reason = f"names differ in case, taken to be the same: {fits[0]}, {entry.path.name}"
        draft.fault(file, reason, "mendable")
    try:
        if read_text(file, MAX_LABEL_BYTES).count("\n") > MAX_LABEL_ROWS:
            reason = f"the labels continue here, but only {MAX_LABEL_ROWS:,} lines per image are read"
            draft.fault(f"{file}:{MAX_LABEL_ROWS + 1}", reason)
            return []
        return [(draft, f"{file}:{number}", text.split()) for number, text in read_lines(file, MAX_LABEL_BYTES)]
    except UnicodeDecodeError:
        draft.fault(f"{file}:1", "the label file is not text")
    except OSError as error:
        draft.fault(file, str(error))
    return []


def _check_label_files(images: Sequence[Location], folders: Folders, reading: Reading) -> None:
    """Add a fault for each label file without an image, and refuse images if none of them has a label file.

    Raises:
        DataError: no image has a label file.
    """
    some = not images
    for parent in dict.fromkeys(image.parent for image in images):
        labels = _label_folder(parent, folders)
        for name in labels.names:
            stem, suffix = os.path.splitext(name)
            if suffix != ".txt" or name.lower() in _NOT_LABELS:
                continue
            if folders(parent).images(stem):
                some = True
            elif _has_rows(labels.path / name):
                near = folders(parent).near(f"{stem}.jpg")
                reason = f"there is no image of these labels in {parent}{near}"
                reading.faults.append(Fault(f"{labels.path / name}:1", reason, "fatal"))
    if not some:
        tried = ", ".join(dict.fromkeys(str(_label_folder(image.parent, folders).path) for image in images))
        raise DataError(
            f"none of the {len(images)} images has a label file; looked in {tried} "
            "(an image without objects may have an empty one)"
        )


def _has_rows(file: Location) -> bool:
    """Return whether the first line of a text file looks like a label."""
    lines = read_start(file, _MAX_ROW_BYTES).decode(errors="replace").splitlines()
    columns = lines[0].split() if lines else []
    return len(columns) == 5 and all(_number(column) is not None for column in columns)


def _numbers(lines: Sequence[_Line], reading: Reading) -> tuple[str, ...]:
    """Return the numbers of the classes as their names. Rows without a number are reported later."""
    numbers = (_class(columns[0]) for _, _, columns in lines)
    count = max((number for number in numbers if number is not None and number < MAX_UNNAMED_CLASSES), default=-1) + 1
    reading.notes.append(f"no data.yaml or classes.txt names the classes: they are called 0 to {count - 1}")
    return tuple(map(str, range(count)))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _class(text: str) -> int | None:
    """Return a class number, which may be written as 3.0."""
    number = _number(text)
    return int(number) if number is not None and number.is_integer() else None


def _add_row(draft: Draft, where: str, columns: list[str], own: Sequence[str], labels: Mapping[str, int]) -> None:
    """Add the object of a line, or its faults, to its image."""
    if len(columns) != 5:
        hint = "; polygons are not read" if len(columns) > 6 else ""
        draft.fault(where, f"expected 5 columns, class x y width height; found {len(columns)}{hint}")
        return
    number, label = _class(columns[0]), None
    if number is None or not 0 <= number < len(own):
        many = number is not None and number >= MAX_UNNAMED_CLASSES
        hint = f"; at most {MAX_UNNAMED_CLASSES:,} classes without names are read" if many else ""
        known = listed(dict(enumerate(own))) if len(own) <= MAX_LISTED_CLASSES else f"0 to {len(own) - 1}"
        draft.fault(where, f"class {columns[0]:.50} is not among the classes {known}{hint}")
    else:
        label = labels.get(own[number])
        if label is None:
            draft.fault(where, unknown_class(own[number], list(labels), draft))
    try:
        draft.add(where, label, [float(column) for column in columns[1:]])
    except ValueError:
        draft.fault(where, f"x y width height must be numbers; found {' '.join(columns[1:]):.200}")


def _corners(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert (n, 4) centre and size to (n, 4) xyxy and (n,) bool: which boxes have no size."""
    centre, size = numbers[:, :2], numbers[:, 2:]
    return np.concatenate((centre - size / 2, centre + size / 2), axis=1), (size == 0).any(axis=1)


def labels_text(
    size: tuple[int, int],
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    digits: int | None = None,
) -> str:
    """Return the label file of an image: rows of label, centre, width, height relative to the image, perhaps a score.

    Args:
        size: (height, width) in pixels.
        boxes: (n, 4) continuous xyxy in pixels.
        labels: (n,) class index.
        scores: (n,) sixth column, which labelling tools do not read.
        digits: decimals of every number; None writes all digits.
    """
    height, width = size
    low, high = np.split(boxes.astype(np.float64) / (width, height, width, height), 2, axis=1)
    columns = [(low + high) / 2, np.maximum(high - low, 1e-6)]  # a side of 0 would be a box without size
    columns += [] if scores is None else [scores[:, None]]
    text = repr if digits is None else f"{{:.{digits}f}}".format
    rows = np.concatenate(columns, axis=1).tolist()
    return "".join(f"{k} {' '.join(map(text, row))}\n" for k, row in zip(labels.tolist(), rows, strict=True))


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
    """Write images/LIST, labels/LIST and data.yaml. Crowd and difficult boxes are left out, as usual, and counted.

    `names` maps each image to its new file name.
    """
    lists: dict[str, str] = {}
    ignored = 0
    for dataset in datasets:
        inner = "" if dataset.split == "all" else f"/{dataset.split}"
        lists["train" if dataset.split in ("all", "trainval") else dataset.split] = f"images{inner}"
        copy_images(dataset.records, out / f"images{inner}", names)
        for record in dataset.records:
            ignored += int(record.ignore.sum())
            stem = os.path.splitext(names[record.path])[0]
            text = labels_text(record.size, record.boxes[~record.ignore], record.labels[~record.ignore])
            write_text(out / f"labels{inner}" / f"{stem}.txt", text)
    write_text(out / "data.yaml", yaml_text(lists, datasets[0].names))
    return [f"YOLO has no crowd or difficult boxes: {ignored} were left out"] if ignored else []
