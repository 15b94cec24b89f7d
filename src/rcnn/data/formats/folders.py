"""List folders once, find files regardless of the case and Unicode form of their names, and write files."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, cached_property, partial
from pathlib import Path, PurePosixPath

from rcnn.config.files import MB
from rcnn.data.dataset import Dataset, Record
from rcnn.errors import DataError
from rcnn.images.sources import check_walk, is_image, is_results
from rcnn.images.storage import Location, RemoteEntry, RemotePath, copy_file, read_text, scan, walk_folders

MAX_COMPARED_NAMES = 200_000
"""Maximum number of names in a folder that are compared with those of missing files."""

MAX_PATH_ENDS = 8
"""Maximum number of trailing parts of an absolute path that are looked for below the folder of the data."""

FOREIGN_ADDRESS = "is an address that does not lie below the folder of the data, and is not opened"
"""Why an image that a file of labels names is not read."""

_SPLIT = re.compile(r"(?<![a-z])(trainval|train|validation|valid|val|test)(?![a-z])")
MAX_LIST_BYTES = 256 * MB
"""Maximum size of a text file that lists images, bytes."""


def read_lines(path: Location, max_bytes: int = MAX_LIST_BYTES) -> list[tuple[int, str]]:
    """Return (line number from 1, stripped text) of every non-empty line. A BOM and any line ending are accepted.

    Raises:
        OSError, UnicodeDecodeError: the file has more than `max_bytes` bytes, or can't be read as UTF-8 text.
    """
    text = read_text(path, max_bytes)
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line endings, creating missing parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def copy_images(records: Iterable[Record], folder: Path, names: Mapping[Location, str]) -> None:
    """Copy the image files into a folder, each under its new name."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        copy_file(record.path, folder / names[record.path])


def lost_classes(datasets: Sequence[Dataset], form: str) -> list[str]:
    """Return a remark on the classes without a box, which are lost in a `form` that does not list the classes."""
    used = {int(label) for dataset in datasets for record in dataset.records for label in record.labels}
    unused = [name for label, name in enumerate(datasets[0].names) if label not in used]
    return [f"{form} has no list of classes, so those without a box are lost: {', '.join(unused)}"] if unused else []


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def is_file(entry: os.DirEntry[str] | RemoteEntry) -> bool:
    """Return whether an entry is a file, or a pipe, socket or device, which is refused by name when it is read."""
    return entry.is_file() or (isinstance(entry, os.DirEntry) and not entry.is_dir() and os.path.exists(entry.path))


class Folder:
    """The files of one folder; none if the folder is missing.

    Attributes:
        exists: whether there is such a folder.

    Args:
        path: the folder.
        root: folder of the data set. Remote folders outside it are not opened, since labels may name any.
    """

    def __init__(self, path: Location, root: Location | None = None) -> None:
        self.path = path
        names = list[str]()
        if isinstance(path, RemotePath):
            self.exists = not isinstance(root, RemotePath) or path.normal().is_relative_to(root)
        else:
            self.exists = path.is_dir()
        if self.exists:
            try:
                with scan(path) as entries:
                    names = [entry.name for entry in entries if is_file(entry)]
            except FileNotFoundError:  # a remote folder exists if it is listed
                self.exists = False
        self.names = tuple(sorted(name for name in names if not name.startswith(".")))
        self._compared = 0

    def find(self, name: str) -> list[str]:
        """Return the file with this name, or else those whose names differ only in case or Unicode form."""
        names = self._by_name.get(_folded(name), [])
        return [name] if name in names else names

    def images(self, stem: str) -> list[str]:
        """Return the image files with this stem, or else those whose stems differ only in case or Unicode form."""
        names = self._image_stems.get(_folded(stem), [])
        return [name for name in names if os.path.splitext(name)[0] == stem] or names

    def near(self, name: str) -> str:
        """Return `; similar names there: ...` for a message, or an empty string."""
        self._compared += len(self.names)
        if self._compared > MAX_COMPARED_NAMES:  # if thousands of images are missing, the first ones show the cause
            return ""
        similar = get_close_matches(name, self.names, n=3, cutoff=0.7)
        return f"; similar names there: {', '.join(similar)}" if similar else ""

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _index((name, name) for name in self.names)

    @cached_property
    def _image_stems(self) -> dict[str, list[str]]:
        return _index((os.path.splitext(name)[0], name) for name in filter(is_image, self.names))


def ends_of(name: str) -> list[PurePosixPath]:
    """Return the trailing parts of an absolute path, longest first; paths of other machines (`C:/`) count too."""
    parts = PurePosixPath(name).parts
    if not re.match(r"/|[A-Za-z]:/", name):
        return []
    return [PurePosixPath(*parts[start:]) for start in range(max(1, len(parts) - MAX_PATH_ENDS), len(parts))]


def split_of(stem: str) -> str:
    """Return train, val, trainval, test or all, depending on the name of a list."""
    words = _SPLIT.findall(stem.lower())
    return "all" if not words else "val" if words[-1] in ("valid", "validation") else words[-1]


def one_file_per_list(path: Location, files: Iterable[Location], what: str) -> dict[str, tuple[Location, ...]]:
    """Return the file of each list, by its name: train, val, trainval, test or all.

    Raises:
        DataError: two of the files could be the same list; the message calls them `what`.
    """
    lists: dict[str, tuple[Location, ...]] = {}
    for file in files:
        name = split_of(file.stem)
        if name in lists:
            both = f"{lists[name][0].name}, {file.name}"
            raise DataError(f"{path}: several {what} could be the list `{name}`: {both}; give one of them")
        lists[name] = (file,)
    return {name: lists[name] for name in ("train", "val", "trainval", "test", "all") if name in lists}


def root_of(folder: Location) -> Location:
    """Return the folder of a data set: the parent of a folder named like annotations, else the folder itself."""
    return folder.parent if folder.name.lower().startswith("annot") else folder


def walk(top: Location, folders: "Folders") -> Iterator[Location]:
    """Yield a folder and those below it, sorted, without our own results.

    Raises:
        OSError: there are many more other files than images, as on an entire disk.
    """
    images = others = 0
    for folder, below in walk_folders(top):
        below[:] = sorted(inner for inner in below if not is_results(folder / inner))
        names = folders(folder).names
        images += sum(map(is_image, names))
        others += len(names) + len(below)
        check_walk(top, images, others)
        yield folder


def _index(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the names of (key, name) pairs by key, regardless of its case and Unicode form."""
    index: dict[str, list[str]] = {}
    for key, name in pairs:
        index.setdefault(_folded(key), []).append(name)
    return index


Folders = Callable[[Location], Folder]
"""Lists each folder once, when it is first needed."""


def cached_folders(root: Location) -> Folders:
    """Return the folders of a data set in `root`."""
    return cache(partial(Folder, root=root))
