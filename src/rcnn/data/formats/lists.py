"""Find data sets in which each file is a list of images: tables, and the json files of some tools."""

from collections.abc import Callable

from rcnn.data.formats.draft import Layout, relative_name
from rcnn.data.formats.folders import is_file, root_of
from rcnn.errors import DataError
from rcnn.images.storage import Location, scan

SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}
"""Word in the name of a file or folder -> the list that it stands for."""

FOLDERS = ("annotations", "Annotations", "labels")
"""Names of folders in which such files lie, beside the folder of the images."""

MAX_INSPECTED = 100
"""Maximum number of files per folder that are inspected to recognise a format."""


def find_lists(
    format: str, path: Location, suffixes: tuple[str, ...], fits: Callable[[Location], bool]
) -> Layout | None:
    """Return the data set of a file, or of the files of a folder, in which each file is a list.

    They lie in the folder itself, in one of `FOLDERS`, or in a folder per list. A file is the list that a word in its
    name stands for (see `SPLITS`), or else a list of everything, which is not read if there is one for training.

    Args:
        format: the reader's name.
        path: a file or folder.
        suffixes: of the files, in lower case.
        fits: whether a file with such a suffix is one of the format.

    Raises:
        DataError: several files could be one list.
    """
    if path.is_file():
        is_list = path.suffix.lower() in suffixes and fits(path)
        return Layout.of_file(format, path, split_of(path.stem)) if is_list else None
    files, folders = _search(path, suffixes, fits)
    for name in FOLDERS:
        if not files and name in folders:
            files, _ = _search(path / name, suffixes, fits)
    named = [(split_of(file.stem), file) for file in files]
    for name, split in SPLITS.items() if not files else ():
        if name in folders:
            files, inner = _search(path / name, suffixes, fits)
            if not files and "labels" in inner:
                files, _ = _search(path / name / "labels", suffixes, fits)
            named += [(split, file) for file in files]
    lists = _one_each(path, named)
    notes = list[str]()
    if {"all", "train"} <= lists.keys():
        extra, train = (relative_name(lists[name], path) for name in ("all", "train"))
        notes.append(f"{extra}: not read, since there is {train}; give the file itself to read it")
        del lists["all"]
    evidence = ", ".join(relative_name(file, path) for file in lists.values())
    ordered = {split: (lists[split],) for split in ("train", "all", "val", "test") if split in lists}
    return Layout(format, root_of(path), ordered, evidence=evidence, notes=tuple(notes)) if lists else None


def split_of(stem: str) -> str:
    """Return the list that the name of a file stands for, as in `train_labels`; `all` if it contains no such word."""
    words = "".join(letter if letter.isalpha() else " " for letter in stem.lower()).split()
    return next((SPLITS[word] for word in words if word in SPLITS), "all")


def _one_each(path: Location, named: list[tuple[str, Location]]) -> dict[str, Location]:
    """Return the file of each list.

    Raises:
        DataError: there are several files for a list.
    """
    lists: dict[str, Location] = {}
    for split, file in named:
        if lists.setdefault(split, file) != file:
            names = ", ".join(str(other) for name, other in named if name == split)
            raise DataError(f"{path}: several files could be the list `{split}`: {names}; give one of them")
    return lists


def _search(
    folder: Location, suffixes: tuple[str, ...], fits: Callable[[Location], bool]
) -> tuple[list[Location], set[str]]:
    """Return the files of a folder that fit, sorted, and the names of the folders in it that may hold others."""
    names, folders = list[str](), set[str]()
    with scan(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and is_file(entry):
                names.append(entry.name)
            elif (entry.name in SPLITS or entry.name in FOLDERS) and entry.is_dir():
                folders.add(entry.name)
    return [*filter(fits, (folder / name for name in sorted(names)[:MAX_INSPECTED]))], folders
