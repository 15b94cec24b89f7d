"""A folder of decoded images, `data.cache`, which later epochs and runs read instead of the files.

Each entry is a file, written aside and renamed, so that a reader finds all of it or nothing, whatever ends the writer.
Several processes may use a folder at the same time. Their entries depend only on the image and the settings.
"""

import itertools
import os
import platform
import re
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rcnn.config import Settings
from rcnn.config.files import MB
from rcnn.images.storage import Location, identity
from rcnn.images.stream import ReadOptions

_HEAD = struct.Struct("<8sIIII")  # magic, height, width, channels, CRC-32 of the pixels
_MAGIC = b"rcnnpix1"
_TEMPORARY = ".part-"
_FULL, _ROOM = 7 / 8, 3 / 4
"""Share of the limit above which entries are deleted, and the share that is left then."""
_SCANS = 128
"""A process measures the folder again when it has written 1 / `_SCANS` of its limit.

Sixteen processes that write at the same time thus stay below the limit.
"""
_PART, _ENTRY = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{38}")
"""Names of the folders and files of entries. Other files are never counted and never deleted."""
_LEFTOVER_SECONDS = 3600.0


class PixelCache:
    """Keeps decoded images in a folder of limited size; those that have not been used for longest are deleted first.

    Args:
        folder: the folder, which is created.
        max_bytes: maximum size of all its files.
        options: how images are read; other options have other entries.

    Raises:
        OSError: the folder can't be created.
    """

    def __init__(self, folder: Path, max_bytes: int, options: ReadOptions) -> None:
        self._folder, self._max_bytes, self._options = folder, max_bytes, options
        self._identities: dict[str, tuple[int | str, ...] | None] = {}
        self._unscanned = max_bytes
        self._numbers = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, settings: Settings) -> "PixelCache | None":
        """Return the cache that the settings name, if any."""
        if settings.data.cache is None:
            return None
        folder = Path(settings.data.cache).expanduser()
        return cls(folder, round(1000 * settings.data.cache_gb) * MB, ReadOptions.of(settings))

    def read(self, location: Location) -> np.ndarray:
        """Return the (H, W, C) uint8 pixels of an image file, from the folder if they are there.

        Raises:
            ImageError, OSError, StorageError: as for `read_image`.
        """
        file = self._file(location)
        if file is not None and (pixels := _entry(file)) is not None:
            return pixels
        pixels = self._options.read(location)
        if file is not None:
            with suppress(OSError):  # a full disk costs time and nothing else
                self._write(file, pixels)
        return pixels

    def _file(self, location: Location) -> Path | None:
        """Return the file for an image; None if it is not known whether the image has changed.

        A server is asked for that once for each image, and the system each time.
        """
        if isinstance(location, Path):
            name, facts = os.path.abspath(location), identity(location)
        else:
            name = str(location)
            if name not in self._identities:
                self._identities[name] = identity(location)
            facts = self._identities[name]
        if facts is None:
            return None
        key = repr((name, facts, *self._options)).encode(errors="surrogateescape")
        digest = blake2b(key, digest_size=20).hexdigest()
        return self._folder / digest[:2] / digest[2:]

    def _write(self, file: Path, pixels: np.ndarray) -> None:
        """Write an entry, and make room for it first, unless it would take most of the folder."""
        size = _HEAD.size + pixels.nbytes
        if size > self._max_bytes // 2:
            return
        self._unscanned += size
        if self._unscanned > self._max_bytes // _SCANS:
            self._make_room(size)
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_name(f"{_TEMPORARY}{platform.node()}-{os.getpid()}-{next(self._numbers)}")
        content = np.ascontiguousarray(pixels).reshape(-1).data
        try:
            with temporary.open("wb") as out:
                out.write(_HEAD.pack(_MAGIC, *pixels.shape, zlib.crc32(content)))
                out.write(content)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Delete the entries that have not been used for longest if the folder, with `size` bytes more, is too full."""
        entries = sorted(_files(self._folder))
        total, self._unscanned = sum(size for _, size, _ in entries), size
        if total + size <= self._max_bytes * _FULL:
            return
        for _, entry_size, path in entries:
            if total + size <= self._max_bytes * _ROOM:
                break
            Path(path).unlink(missing_ok=True)
            total -= entry_size


def _entry(file: Path) -> np.ndarray | None:
    """Return the pixels in an entry, which becomes the last one to be deleted; None if it is missing or damaged."""
    try:
        with file.open("rb") as content:
            head = content.read(_HEAD.size)
            magic, height, width, channels, checksum = _HEAD.unpack(head)
            size = height * width * channels
            if magic != _MAGIC or os.fstat(content.fileno()).st_size != _HEAD.size + size:
                return None
            pixels = np.empty((height, width, channels), np.uint8)
            if content.readinto(pixels.reshape(-1).data) != size or zlib.crc32(pixels.reshape(-1).data) != checksum:
                return None
        os.utime(file)
    except (OSError, struct.error):
        return None
    return pixels


def _files(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Yield the last use, ns, the size and the path of each entry. Leftovers of killed writers are deleted."""
    oldest = time.time() - _LEFTOVER_SECONDS
    with os.scandir(folder) as parts:
        for part in parts:
            if not _PART.fullmatch(part.name):
                continue
            with suppress(OSError), os.scandir(part) as entries:  # another process deletes too
                for entry in entries:
                    if not (_ENTRY.fullmatch(entry.name) or entry.name.startswith(_TEMPORARY)):
                        continue
                    facts = entry.stat()
                    if entry.name.startswith(_TEMPORARY) and facts.st_mtime < oldest:
                        os.unlink(entry)
                    else:
                        yield facts.st_mtime_ns, facts.st_size, entry.path
