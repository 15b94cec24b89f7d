"""Check files before opening them: a pipe or device would hang, and a huge file would fill memory. Cache folders."""

import os
import stat
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rcnn.errors import SettingsError

MB = 1_000_000
MAX_NAME_BYTES = 255
"""Maximum length of a class name or of a part of a path, bytes."""


class UnfitFile(OSError):
    """A file that must not be opened. The message gives the reason."""


def check_given(path: object, what: str) -> None:
    """Check that a path is not an empty text, which `Path` takes for the current folder.

    Raises:
        SettingsError: it is empty, as that of a shell's variable that is not set; the message calls it `what`.
    """
    if path == "":
        raise SettingsError(f"the path of {what} is empty; `.` is the current folder")


def check_regular(path: str | Path, most: int | None = None) -> os.stat_result:
    """Return the status of a file, after checking that it may be opened.

    Args:
        path: the file, or a link to it.
        most: its maximum size, bytes.

    Raises:
        OSError: the file does not exist.
        UnfitFile: it is a folder, pipe, socket or device, or it is larger. The message does not name it.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnfitFile("this is a folder, where a file is expected")
    if not stat.S_ISREG(status.st_mode):
        raise UnfitFile("this is not a regular file, but a pipe, socket or device")
    if most is not None and status.st_size > most:
        raise UnfitFile(f"{status.st_size / MB:,.0f} MB are too many: such a file has at most {most // MB:,} MB")
    return status


def unfit_name(name: str) -> str | None:
    """Return the reason why a name can't be written into files of other formats; None if it can."""
    if name.isprintable() and 4 * len(name) <= MAX_NAME_BYTES:  # at most four bytes per letter
        return None
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "has a line end or another control character in it"
    return f"is longer than {MAX_NAME_BYTES} bytes" if length > MAX_NAME_BYTES else None


def read_text(path: str | Path, most: int) -> str:
    """Return the text of a UTF-8 file of at most `most` bytes. A byte order mark is left out.

    Raises:
        OSError: as for `check_regular`.
        UnicodeDecodeError: it is not UTF-8.
    """
    check_regular(path, most)
    return Path(path).read_text(encoding="utf-8-sig")


def cache_folder(name: str) -> Path:
    """Return `$XDG_CACHE_HOME/rcnn/NAME`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcnn" / name


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Let other processes that want to write a file wait; they then find the finished one."""
    if sys.platform == "win32":  # has no flock
        yield
        return
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    with lock.open("a") as file:
        with suppress(OSError):  # some network file systems can't lock; then as above
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)  # the file exists now, so a process that makes a new lock downloads nothing
