"""Read and write data.yaml, which holds the image lists and class names of a YOLO data set."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rcnn.config import yaml_tree
from rcnn.config.files import MB, read_text
from rcnn.data.dataset import Fault
from rcnn.data.formats.draft import Layout
from rcnn.data.formats.folders import ends_of
from rcnn.errors import DataError

LARGEST = 4 * MB
"""Bytes of a data.yaml."""


def load_yaml(path: Path, faults: list[Fault] | None = None) -> dict[str, Any]:
    """Return the mapping in a yaml file, empty if it holds none. Every scalar is text: `no`, `12` and `1e3` stay names.

    `faults` is extended by the keys that are there twice with equal values.

    Raises:
        DataError: the file isn't yaml, or is too large.
    """
    repeated: list[str] = []
    try:
        tree = yaml_tree.load(read_text(path, LARGEST), as_text=True, repeated=repeated)
    except (OSError, ValueError) as error:
        reason = str(error) if isinstance(error, OSError) else f"malformed yaml: {error}"
        fault = Fault(f"{path}:{getattr(error, 'line', 1)}", reason, "fatal")
        raise DataError(str(fault), [fault]) from None
    if faults is not None:
        faults += [Fault(str(path), reason, "mendable") for reason in repeated]
    return tree if isinstance(tree, dict) else {}


def layout_of_yaml(path: Path) -> Layout:
    """Return the data set that a data.yaml describes. Paths in it are relative to its `path` entry, else to the file.

    Of an absolute path that isn't there, such as one of another machine, the longest end below these folders is taken.

    Raises:
        DataError: the file is malformed, has no class names, or names folders or lists that don't exist.
    """
    faults: list[Fault] = []
    tree = load_yaml(path, faults)
    root = path.parent
    declared = tree.get("path")
    if isinstance(declared, str) and declared:
        root = next((base for base in (root / declared, Path(declared)) if base.is_dir()), root)
    lists: dict[str, tuple[Path, ...]] = {}
    missing: list[str] = []
    taken: dict[Path, str] = {}
    for split in ("train", "val", "test"):
        value = tree.get(split) or []
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{path}: `{split}` must be a path or a list of paths; found {value!r:.200}")
        places = [_place(entry, root, path.parent, taken) for entry in entries]
        missing += [f"{split}: {entry}" for entry, place in zip(entries, places, strict=True) if place is None]
        if places and None not in places:
            lists[split] = tuple(place for place in places if place is not None)
    absent = [text for text in missing if not text.startswith("test")]
    if absent:
        tried = ", ".join(dict.fromkeys((str(root), str(path.parent))))
        raise DataError(f"{path}: {'; '.join(absent)} is not there; looked in {tried}")
    if not lists:
        raise DataError(f"{path}: it names no existing train, val or test folder or list")
    notes = [f"{path}: {text} is not there, so there is no such list" for text in missing]
    notes += [f"{path}: {entry} is not there; {place} is read instead" for place, entry in taken.items()]
    return Layout("yolo", root, lists, _yaml_names(tree, path), path.name, tuple(notes), tuple(faults), path.parent)


def _place(entry: str, root: Path, folder: Path, taken: dict[Path, str]) -> Path | None:
    """Return the folder or list that an entry of data.yaml refers to. Some exporters write one ../ too many.

    `taken` maps the places that were found by the end of a path to that path; two paths don't share a place.
    """
    name = entry.replace("\\", "/")
    choices = [root / name, folder / name, folder / name.removeprefix("../")]
    place = next((choice for choice in choices if choice.exists()), None)
    if place is None:
        ends = (base / end for end in ends_of(name) for base in (root, folder))
        place = next((end for end in ends if end.exists()), None)
        if place is not None and taken.setdefault(place, entry) != entry:
            return None
    return place and Path(os.path.normpath(place))


def _yaml_names(tree: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the class names, given as a list or as a mapping from numbers.

    Raises:
        DataError: they are missing, not numbered consecutively, repeated, or differ in number from `nc`.
    """
    names = tree.get("names")
    if isinstance(names, dict):
        wanted = [str(number) for number in range(len(names))]
        if sorted(names) != sorted(wanted):
            raise DataError(f"{path}: `names` must be numbered 0 to {len(names) - 1}; found {', '.join(names)}")
        names = [names[number] for number in wanted]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: `names` must list the classes; found {names!r:.200}")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class is named twice in `names`: {', '.join(names)}")
    if tree.get("nc") not in (None, str(len(names))):
        raise DataError(f"{path}: `nc` is {tree['nc']}, but `names` has {len(names)}: {', '.join(names)}")
    return tuple(names)


def yaml_text(places: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the text of a data.yaml with the paths of the lists and the numbered class names."""
    tree = {**places, "nc": len(names), "names": dict(enumerate(names))}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
