"""One owner per folder: a second process that would write the same run or shard is refused.

The owner holds a POSIX record lock on a file in the folder, which the system releases when the process ends for any
reason. Forked loader workers do not inherit it. Some network file systems grant such locks per host, so the owner also
touches the file at intervals. On another host, a file that was touched recently counts as a lock.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from rcnn.errors import SettingsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE_NAME = "owner.json"
"""The owner never opens this file a second time: closing any descriptor of it would end the lock."""
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""Time without a heartbeat after which an owner on another host counts as dead."""
RESTART_SECONDS = STALE_SECONDS + 2 * HEARTBEAT_SECONDS
"""Time that a restart by the same torchrun waits for the processes before it to end, also on a host that is lost."""
MAX_BYTES = 10_000

_owned: set[Path] = set()
"""Folders that this process owns, which a record lock does not protect from the process itself."""
_owned_lock = threading.Lock()


class Owner(BaseModel):
    """The contents of the file.

    Attributes:
        pid: number of the process.
        host: name of its machine.
        started: time at which it took the folder.
        torchrun: `TORCHELASTIC_RUN_ID`, which torchrun keeps when it restarts its processes; empty without torchrun.
    """

    pid: int
    host: Annotated[str, Field(max_length=1000)]
    started: Annotated[str, Field(max_length=100)]
    torchrun: Annotated[str, Field(max_length=1000)] = ""


@contextlib.contextmanager
def lock(folder: Path, use: str = "trained") -> Iterator[None]:
    """Hold the lock of a folder in the block.

    Args:
        folder: existing folder.
        use: what is done with it, for messages.

    Raises:
        SettingsError: it is held already.
        OSError: the file can't be written.
    """
    key = folder.resolve()
    with _owned_lock:
        if key in _owned:
            raise SettingsError(f"{folder} is being {use} in this process already; wait until that ends")
        _owned.add(key)
    try:
        descriptor = _take(folder, use)
        stop = threading.Event()
        heart = threading.Thread(target=_beat, args=(descriptor, stop), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()
            with contextlib.suppress(OSError):  # the folder may have been deleted
                (folder / FILE_NAME).unlink()
            os.close(descriptor)
    finally:
        with _owned_lock:
            _owned.discard(key)


def _take(folder: Path, use: str) -> int:
    """Return a descriptor of the locked file, after writing this process into it."""
    file, me = folder / FILE_NAME, _this_process()
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        state, owner = _try_lock(descriptor), _read(descriptor)
        if state != "held" and os.fstat(descriptor).st_nlink:  # 0: the owner before has just deleted the file
            elsewhere = owner is not None and (owner.host != me.host or state == "unsupported")
            age = _age(file) if elsewhere else STALE_SECONDS
            if age >= STALE_SECONDS:
                break
        else:
            age = 0.0
        os.close(descriptor)
        if not file.exists():
            continue
        if not (owner and me.torchrun and owner.torchrun == me.torchrun and time.monotonic() < deadline):
            raise SettingsError(_refusal(folder, use, owner, me, age))
        time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, me.model_dump_json().encode(), 0)
    os.fsync(descriptor)
    return descriptor


def _try_lock(descriptor: int) -> Literal["taken", "held", "unsupported"]:
    if fcntl is None:
        return "unsupported"
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return "held"
    except OSError:  # no locks on this file system
        return "unsupported"
    return "taken"


def _refusal(folder: Path, use: str, owner: Owner | None, me: Owner, age: float) -> str:
    if owner is None:  # it is writing the file at this moment
        return f"{folder} is being {use} by another process already; wait until it ends, or stop it"
    text = (
        f"{folder} is being {use} already, by process {owner.pid} on {owner.host} since {owner.started}; wait until it "
        "ends, or stop it"
    )
    if owner.host == me.host:
        return text
    return f"{text}. If it was killed there, it can be resumed in {STALE_SECONDS - age:.0f} s"


def _read(descriptor: int) -> Owner | None:
    """Return the owner that the file names; None if the file is empty or damaged."""
    try:
        return Owner.model_validate(json.loads(os.pread(descriptor, MAX_BYTES, 0)))
    except (ValueError, ValidationError, RecursionError):
        return None


def _this_process() -> Owner:
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return Owner(pid=os.getpid(), host=socket.gethostname(), started=started, torchrun=torchrun)


def _age(file: Path) -> float:
    """Return the seconds since the last heartbeat, by the clock of the file system."""
    with tempfile.TemporaryFile(dir=file.parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    return now - file.stat().st_mtime


def _beat(descriptor: int, stop: threading.Event) -> None:
    """Touch the file until `stop` is set."""
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # a file system that is away for a moment
            os.utime(descriptor)
