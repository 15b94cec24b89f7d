"""The cache of data sets: what reading and decoding found out, in files that may be deleted at any time.

A file of the cache is found by a hash of everything that its content depends on, except the files of the data. Those
are compared by their identities: location, size, times, and number of the file on its disk. A file that changed within
`SETTLING_NS` of its check is not remembered, because another change could leave its times as they are.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import features

from rcnn.config.files import MB, cache_folder
from rcnn.errors import WeightsError
from rcnn.images import work

FOLDER = "data"
"""Name of the folder of the cache."""
FORMAT = 1
SETTLING_NS = 2_000_000_000
"""Time after a change during which another one may leave the times of a file as they are, as on FAT, nanoseconds."""
MAX_CACHE_BYTES = 2_000 * MB
"""Maximum size of the cache. The files that were not used for the longest time are deleted."""

_HERE = Path(__file__).parent
_READERS = (
    *(_HERE / "dataset.py", *sorted(_HERE.glob("formats/*.py"))),
    *(_HERE.parent / f"images/{name}.py" for name in ("decode", "work", "jpeg2000")),
)


class Identity(NamedTuple):
    """What changes when a file changes: its size in bytes, its times in nanoseconds, its number and its disk."""

    size: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """Return the identity of a file with a status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    @property
    def latest(self) -> int:
        """Time of the last change, nanoseconds."""
        return max(self.modified, self.changed)


def now() -> int:
    """Return the time at which a check begins, nanoseconds."""
    return time.time_ns()


def settled(latest: int, began: int) -> bool:
    """Return whether a change at time `latest` was well before a check that began at `began`."""
    return latest < began - SETTLING_NS


def cache_file(kind: str, *words: object) -> Path:
    """Return the file that depends on some words, the versions of the readers, and the limits on images."""
    limits = {name: value for name, value in vars(work).items() if isinstance(value, int)}
    key = repr((FORMAT, _code(), PIL.__version__, _codecs(), limits, *words))
    digest = blake2b(key.encode(errors="surrogateescape"), digest_size=20).hexdigest()
    return cache_folder(FOLDER) / f"{kind}-{digest}.safetensors"


@cache
def _code() -> str:
    """Return a digest of the version of rcnn and of the source of the readers, which changes with them."""
    digest = blake2b()
    with suppress(PackageNotFoundError):  # not installed, as in a frozen program
        digest.update(version("rcnn").encode())
    with suppress(OSError):  # installed without sources
        for file in _READERS:
            digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def _codecs() -> tuple[str, ...]:
    """Return the formats that Pillow was built with, and the versions of their libraries."""
    names = {"webp", "avif"} & {*features.modules} | {*features.codecs}
    return tuple(f"{name} {features.version(name)}" for name in sorted(names) if features.check(name))


def used(file: Path) -> None:
    """Note that a file of the cache was used."""
    with suppress(OSError):
        os.utime(file)


def store(file: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache, and delete others that were not used for long. Nothing happens if that fails."""
    with suppress(OSError, WeightsError):  # such as a full disk
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(file)
        total = 0
        for _, size, old in sorted(map(_age, file.parent.iterdir()), reverse=True):
            total += size
            if total > MAX_CACHE_BYTES:
                old.unlink(missing_ok=True)


def _age(file: Path) -> tuple[int, int, Path]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, file
