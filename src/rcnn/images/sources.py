"""Sources of images: files, folders, globs and addresses, and any other iterable of named images.

A source is an iterable of `NamedImage`. Files are read later, by the threads of `images.stream`; a video or a camera
yields pixels. A source with a length is read ahead; one without is iterated one image at a time.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from glob import glob
from itertools import count, takewhile
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, overload

import numpy as np
from PIL import Image
from torch import Tensor

from rcnn.errors import ImageError, SettingsError
from rcnn.images.decode import IMAGE_SUFFIXES
from rcnn.images.storage import (
    Location,
    RemotePath,
    files_below,
    image_location,
    is_address,
    is_remote,
    local_path,
    location,
    open_binary,
    stored,
)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")
"""Suffixes of videos."""

Encoded = bytes | bytearray | memoryview | BinaryIO
"""The content of an image file, or a file object that is open for reading it."""


class NamedImage(NamedTuple):
    """An image of a source.

    Attributes:
        image: a file to be read, perhaps a remote one, its bytes, a binary file object, or pixels in any form that
            `as_array` takes; None: the pixels were not kept.
        name: unique in its source, and used for messages and for the names of results; empty for a single array.
        frame: number of the image in its source, from 0.
        time: seconds since the beginning of a video; None for other sources.
    """

    image: Location | Encoded | np.ndarray | Image.Image | Tensor | None
    name: str = ""
    frame: int = 0
    time: float | None = None


UNNAMED = NamedImage(None)
ImageSource = Iterable[NamedImage]


class FileList(Sequence[NamedImage]):
    """A source of image files. It holds only their paths, and makes an item when it is requested.

    Attributes:
        paths: of the files; of a remote file, the address that opens it, which is not to be shown.

    Args:
        paths: of the files.
        base: absolute folder below which all files are; the names are paths below it, with slashes. None: the names are
            the paths, or the addresses without signatures.
        start: number of the first image.
    """

    def __init__(self, paths: Sequence[str], base: Location | None = None, start: int = 0) -> None:
        self.paths, self._base, self._start = paths, base, start
        self._prefix = os.path.join(base, "") if isinstance(base, Path) else ""
        self._cwd = os.getcwd() if isinstance(base, Path) else ""

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> NamedImage: ...

    @overload
    def __getitem__(self, index: slice) -> "FileList": ...

    def __getitem__(self, index: int | slice) -> "NamedImage | FileList":
        """Return an image, or the list of consecutive ones."""
        numbers = range(len(self.paths))[index]
        if isinstance(numbers, range):
            return FileList(self.paths[index], self._base, self._start + numbers.start)
        path = self.paths[numbers]
        return NamedImage(stored(path), self._name(path), self._start + numbers)

    def below(self, base: str | Location | None) -> "FileList":
        """Return the same files with their paths below an absolute folder, if there is one, as names."""
        return FileList(self.paths, stored(base) if isinstance(base, str) else base, self._start)

    def names(self) -> Iterator[str]:
        """Yield the names."""
        return map(self._name, self.paths)

    def _name(self, path: str) -> str:
        if isinstance(self._base, RemotePath) or is_remote(path):
            file = stored(path)
            return file.name_below(self._base) if isinstance(file, RemotePath) else str(file)
        if self._base is None:
            return path
        whole = os.path.join(self._cwd, path)
        if not whole.startswith(self._prefix) or ".." in whole:  # slower: it compares all parts of both paths
            return Path(os.path.relpath(path, self._base)).as_posix()
        return whole[len(self._prefix) :].replace(os.sep, "/")


OPENERS: dict[str, Callable[[str], ImageSource]] = {}
"""Scheme, such as `rtsp:`, or suffix, such as `.mp4` -> its opener. Other sources are files, folders and globs."""

MAX_OTHER_FILES = 100_000
"""Maximum number of files and folders in a search for images, in addition to ten for each image."""

MAX_OPEN_FOLDERS = 100
"""Maximum number of folders that a walk reads at the same time, each of which takes a file handle."""

MAX_LINE_BYTES = 100_000
"""Maximum length of a line in a list of images, bytes."""

MAX_LIST_BYTES = 256_000_000
"""Maximum size of a remote list of images, bytes."""

MARK = ".rcnn"
"""Name of the file that marks a folder of results, which may lie among the user's images."""


def mark_results(folder: Path, mode: Literal["w", "x"] = "w") -> None:
    """Mark the files in a folder as results, which are left out when a folder above it is searched.

    Raises:
        FileExistsError: `mode` is `x`, and the folder is marked already.
    """
    with (folder / MARK).open(mode, encoding="utf-8") as file:
        file.write("Written by rcnn. Images and labels below are results, not data.\n")


def is_results(folder: Location) -> bool:
    """Return whether a folder was marked by `mark_results`."""
    return (folder / MARK).is_file()


def is_image(name: str) -> bool:
    """Return whether a file name has an image suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def open_source(source: str | Location) -> ImageSource:
    """Open a source by its scheme or suffix, or as a file, folder, glob or address.

    Raises:
        ImageError, StorageError: as for `files`.
    """
    text = str(source)
    for key, opener in OPENERS.items():
        if text.startswith(key) if key.endswith(":") else text.lower().endswith(key):
            return opener(text)
    return FileList(file_paths(source))


def files(source: str | Location) -> list[Location]:
    """Return the image files of a path, folder or glob, as `file_paths` does.

    Raises:
        ImageError, StorageError: as for `file_paths`.
    """
    return [stored(path) for path in file_paths(source)]


def file_paths(source: str | Location) -> list[str]:
    """Return the image files of a path, folder or glob, sorted, or of an address, without its wildcards resolved.

    Our own results below a folder are left out.

    Raises:
        ImageError: there are no images, or only results; or the source is a camera, a video or another stream.
        StorageError: a remote location can't be reached, or may not be read, or a package that opens it is missing.
    """
    if not str(source):
        raise ImageError("the path of the images is empty; `.` is the current folder")
    if reason := no_picture(str(source)):
        raise ImageError(reason if is_address(str(source)) else f"{source}: {reason}")
    path = image_location(source)
    if isinstance(path, RemotePath):
        return _remote_paths(path)
    source = path if is_address(str(source)) else source
    if os.path.isfile(path):  # unlike Path's method, no error for a name that is too long
        return [str(path)]
    base = base_of(source)
    if "**" in path.parts and not path.is_dir():  # search what a glob would, and stop where it would search a disk
        for top in glob(str(Path(*path.parts[: path.parts.index("**")]))):
            deque(walk(top, like_glob=True), maxlen=0)
    named = [path] if os.path.isdir(path) else sorted(Path(name) for name in glob(str(source), recursive=True))
    if not named:
        raise ImageError(f"{source}: no such file, folder or glob")
    images: list[str] = []
    for found in named:
        if found.is_dir():
            images += walk(str(found))
        elif is_image(found.name) and found.exists():
            images.append(str(found))
    if not images:
        raise ImageError(f"{source}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    results = {folder for folder in {*map(os.path.dirname, images)} if is_below_results(Path(folder), local_path(base))}
    images = [file for file in images if os.path.dirname(file) not in results]
    if not images:
        raise ImageError(f"{source}: there are only results of rcnn here; to use them, name their folder")
    return images


def _remote_paths(path: RemotePath) -> list[str]:
    """Return the addresses of the images at a remote location, sorted: of a file, or of the images below a folder.

    Raises:
        ImageError, StorageError: as for `file_paths`.
    """
    if path.is_file():
        return [path.url()]
    if not path.is_dir():
        hint = "; wildcards in addresses are not resolved: give the folder, or a list (--list)" * bool(
            {*str(path)} & {*"*?["}
        )
        raise ImageError(f"{path}: there is no such file or folder{hint}")
    images = [*walk(path)]
    if not images:
        raise ImageError(f"{path}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def no_picture(source: str) -> str | None:
    """Return why a source that other programs accept can't be opened here; None for all other sources."""
    if is_address(source):
        try:
            location(source)
        except SettingsError as error:
            return str(error)
        return None
    if source.lower().endswith(VIDEO_SUFFIXES):
        return "videos are not read; extract their frames, for example with ffmpeg, and give their folder"
    if source.isdigit() and not os.path.exists(source):
        return "there is no such file or folder, and cameras are not read"
    return None


def listed_paths(file: str) -> Iterator[str]:
    """Yield the paths in a list of images, one per line, as they are read. Empty lines are left out.

    Args:
        file: the list, relative to the current folder like the paths in it, or its address; `-` is standard input.

    Raises:
        ImageError: the list can't be read, or a line is neither a path nor an address that can be opened.
        StorageError: as for `file_paths`, for a remote list.
    """
    try:
        with (
            nullcontext(sys.stdin.buffer) if file == "-" else open_binary(image_location(file), MAX_LIST_BYTES) as lines
        ):
            for number in count(1):
                if not (line := lines.readline(MAX_LINE_BYTES + 1)):
                    return
                path = os.fsdecode(line.rstrip(b"\r\n"))
                if len(line) > MAX_LINE_BYTES or "\0" in path:
                    raise ImageError(f"{file}, line {number}: not a path; expected a list with one path per line")
                if is_address(path) and (reason := no_picture(path)):
                    raise ImageError(f"{file}, line {number}: {reason}")
                if path:
                    yield path
    except OSError as error:
        raise ImageError(f"{file}: the list of images can't be read: {error.strerror}") from None


def walk(top: str | Location, *, like_glob: bool = False, lazy: bool = False) -> Iterator[str]:
    """Yield the paths of the images below a folder, in the order of `Path`, which compares part by part.

    The entries of open folders are held in memory, and folders that can't be read are left out. Below a remote folder,
    all paths are held in memory, and our own results are left out.

    Args:
        top: the folder.
        like_glob: follow links to folders, and leave out folders whose names begin with a dot.
        lazy: yield the images in the order of the file system, without holding entries in memory, and leave out our own
            results.

    Raises:
        ImageError: there are many more other files than images, as on an entire disk.
        OSError: with `lazy`, a folder can't be read.
        StorageError: as for `file_paths`.
    """
    if isinstance(top, RemotePath):
        yield from _walk_remote(top, lazy)
        return
    top, images, others = str(top), 0, 0
    folders = [("" if top == os.curdir else os.path.join(top, ""), _entries(top, lazy))]
    while folders:
        folder, entries = folders[-1]
        if (entry := next(entries, None)) is None:
            folders.pop()
            try:
                check_walk(Path(top), images, others)
            except OSError as error:
                raise ImageError(f"{top}: {error}") from None
            continue
        others += 1
        path = f"{folder}{entry.name}"
        if _is_folder(entry):
            if not entry.name.startswith(".") if like_glob else not entry.is_symlink():
                inner = _entries(path, lazy and len(folders) < MAX_OPEN_FOLDERS)
                folders.append((os.path.join(path, ""), iter(()) if lazy and is_results(Path(path)) else inner))
        elif is_image(entry.name):
            images += 1
            if not entry.is_symlink() or os.path.exists(path):
                yield path


def _walk_remote(top: RemotePath, lazy: bool) -> Iterator[str]:
    """Yield the addresses of the images below a remote folder, without our own results.

    Raises:
        ImageError, StorageError: as for `walk`.
    """
    names, images = list[str](), 0
    for name in files_below(top):
        names.append(name)
        images += is_image(name)
        try:
            check_walk(top, images, len(names))
        except OSError as error:
            raise ImageError(f"{top}: {error}") from None
    results = {name.removesuffix(MARK) for name in names if name.endswith(f"/{MARK}")}
    for name in names if lazy else sorted(names, key=lambda name: name.split("/")):
        if is_image(name) and not (results and any(name.startswith(folder) for folder in results)):
            yield (top / name).url()


def _entries(folder: str, lazy: bool) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, sorted, or with `lazy` as they are read."""
    try:
        with os.scandir(folder) as entries:
            yield from entries if lazy else sorted(entries, key=attrgetter("name"))
    except FileNotFoundError:  # it was deleted after it was listed
        return
    except OSError:
        if lazy:
            raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def check_walk(top: Location, images: int, names: int) -> None:
    """Stop a search that finds hardly any images.

    Raises:
        OSError: there are more `names` below `top` than `MAX_OTHER_FILES` plus ten times the number of `images`.
    """
    if names > MAX_OTHER_FILES + 10 * images:
        raise OSError(f"there are {images} images among the first {names:,} files and folders; give a folder of images")


def base_of(source: str | Location) -> Location:
    """Return the absolute folder where the search for a source starts: its path without wildcards and file names."""
    source = image_location(source)
    if isinstance(source, RemotePath):
        return source if source.is_dir() else source.parent
    plain = Path(*takewhile(lambda part: not set(part) & set("*?["), Path(source).parts))
    return Path(os.path.abspath(plain if os.path.isdir(plain) else plain.parent))


def is_below_results(folder: Path, base: Path) -> bool:
    """Return whether a folder is, or lies in, a folder of results below `base`."""
    parts = Path(os.path.relpath(folder, base)).parts
    return any(is_results(base.joinpath(*parts[:depth])) for depth in range(1, len(parts) + 1))
