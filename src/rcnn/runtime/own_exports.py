"""Files that this user exported, listed by the digest of their content, in a folder of the cache.

Only these run in the process of the caller. Others run in a child process (`rcnn.runtime.process`).
"""

from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from rcnn.config.files import MB, cache_folder


def digest_of(files: Sequence[Path]) -> str:
    """Return the digest of an exported file and of the files that belong to it.

    Raises:
        OSError: one of them can't be read.
    """
    checksum = blake2b(digest_size=32)
    for path in files:
        checksum.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while piece := file.read(MB):
                checksum.update(piece)
    return checksum.hexdigest()


def remember(files: Sequence[Path]) -> None:
    """Add an exported file, with the files that belong to it, to the list, if the cache is writable."""
    with suppress(OSError):
        folder = cache_folder("exports")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest_of(files)).touch()


def is_own(digest: str) -> bool:
    """Return whether a file with this digest is in the list."""
    with suppress(OSError, RuntimeError):  # without a home folder there is no cache
        return (cache_folder("exports") / digest).is_file()
    return False
