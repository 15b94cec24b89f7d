"""Find the folders of images that belong to folders with one file of labels per image."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from rcnn.data.formats.folders import Folder, is_file
from rcnn.images.sources import is_image, is_results
from rcnn.images.storage import Location, scan

SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
"""Name of a list -> names of its folder."""

MAX_INSPECTED = 20
"""Maximum number of files per folder that are inspected to recognise a format."""

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", ".")


@dataclass
class _Listing:
    """The names of the files and of the folders in a folder, sorted."""

    path: Location
    files: Sequence[str]
    names_of_folders: Sequence[str]

    @cached_property
    def folders(self) -> list[Location]:
        """The folders that may be part of a data set."""
        folders = [self.path / name for name in self.names_of_folders if not name.startswith(".")]
        return [folder for folder in folders if not is_results(folder)]


_listings: ContextVar[dict[Location, _Listing] | None] = ContextVar("listings", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """List each folder only once within the context, in which all formats look for their files."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def _listing(folder: Location) -> _Listing:
    """Return what is in a folder; nothing if there is no such folder."""
    known = _listings.get()
    if known is not None and folder in known:
        return known[folder]
    files, folders = list[str](), list[str]()
    if folder.is_dir():
        with scan(folder) as entries:  # `Path` would take seconds for a hundred thousand images
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_file(entry):
                    files.append(entry.name)
    listing = _Listing(folder, sorted(files), sorted(folders))
    if known is not None:
        known[folder] = listing
    return listing


def folders_in(path: Location) -> list[Location]:
    """Return the folders in a folder that may be part of a data set; none if it can't be read."""
    try:
        return _listing(path).folders
    except OSError:
        return []


def first_files(folder: Location, suffix: str) -> list[Location]:
    """Return the first files in a folder with a suffix, at most `MAX_INSPECTED`; none if there is no such folder."""
    names = (name for name in _listing(folder).files if name.lower().endswith(suffix) and not name.startswith("."))
    return [folder / name for name in islice(names, MAX_INSPECTED)]


def has_images(folder: Location) -> bool:
    """Return whether there is an image in a folder."""
    return any(is_image(name) and not name.startswith(".") for name in _listing(folder).files)


def sibling_images(labels: Location, suffix: str, enough: Callable[[Iterable[object]], bool] = any) -> Location | None:
    """Return the folder of images beside a folder of labels: by its usual name, or by the names of its files.

    Args:
        labels: a folder with one file of labels per image.
        suffix: that of these files, in lower case.
        enough: whether `any` or `all` of the first ones must have an image in a folder of another name.
    """
    usual = (labels.parent / name for name in _IMAGE_FOLDERS)
    if known := next(filter(has_images, usual), None) or images_above(labels):
        return known
    stems = (os.path.splitext(name)[0] for name in Folder(labels).names if name.lower().endswith(suffix))
    stems = list(islice(stems, MAX_INSPECTED))
    siblings = (Folder(path) for path in folders_in(labels.parent) if path != labels)
    return next((folder.path for folder in siblings if enough(map(folder.images, stems))), None)


def images_above(labels: Location) -> Location | None:
    """Return `images/train`, or the like, for `labels/train` if it holds images."""
    above = (labels.parent.parent / name / labels.name for name in _IMAGE_FOLDERS if name != ".")
    return next(filter(has_images, above), None)
