"""Trainings in forked children that something happens to: a signal, a death inside a write, a full disk.

What happens, and when, is known before the child is forked. The child itself does what depends on the files that it
changes, so that moments inside of writes are met exactly; the parent watches the child's CPU time.
"""

import contextlib
import math
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from rcnn.cli.app import main
from rcnn.training.recorders import Recorders
from tests.commands import CHANGES, WRITING, leave_after
from tests.limits import WAITS
from tests.training.pieces import without_pictures

SECONDS = 20.0
"""CPU time that a training may take."""
POLL_SECONDS = 0.001
FIELDS = ("changes", "stage", "step", "joined")
"""Numbers that a child and its parent share."""


class Act(NamedTuple):
    """What happens to a training, and when.

    Attributes:
        does: `signal`; `limit`: the kernel kills the process when a file exceeds `size`; `fill`: all but `size` bytes
            of the disk are taken.
        when: `cpu`: after so many seconds of CPU time (signals only); `change`: at that of its changes of files.
        at: the seconds, or the number of the change.
        number: the signal.
        size: bytes.
    """

    does: Literal["signal", "limit", "fill"]
    when: Literal["cpu", "change"]
    at: float
    number: signal.Signals = signal.SIGKILL
    size: int = 0

    def __str__(self) -> str:
        what = {
            "signal": self.number.name,
            "limit": f"files of {self.size:,} bytes at most",
            "fill": f"a disk with {self.size:,} bytes left",
        }[self.does]
        return f"{what} {f'at change {self.at:.0f}' if self.when == 'change' else f'after {self.at:.3f} s'}"


class Training:
    """A command in a forked child, which leads a process group of its own.

    Args:
        words: the command line.
        cwd: folder to run it in.
        output: file for stdout and stderr.
        act: what happens to it. None: nothing.
        pictures: whether it draws pictures, which take most of the time of a small run.
        environment: variables to set.
        kills_worker: the signal goes to a loader process, if there is one.

    Attributes:
        pid: number of the child.
        output: the file.
        acted: whether the parent has sent the signal; what the child does itself, its end shows.
        seconds: CPU time of the ended child.
        code: exit code, or the negative number of the signal that ended it; None before its end, or if it was killed
            because it took too long.
    """

    def __init__(
        self,
        words: Sequence[object],
        cwd: Path,
        output: Path,
        act: Act | None = None,
        *,
        pictures: bool = False,
        environment: Mapping[str, str] | None = None,
        kills_worker: bool = False,
    ) -> None:
        self.output, self._act, self._kills_worker = output, act, kills_worker
        self.acted, self.code, self.seconds = False, None, 0.0
        self._board = mmap.mmap(-1, 8 * len(FIELDS))
        self._end = time.monotonic() + WAITS * SECONDS
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            shown = memoryview(self._board).cast("q")
            _live(list(map(str, words)), cwd, output, act, shown, pictures, environment or {})

    def __getitem__(self, field: str) -> int:
        """Return a number that the child shares."""
        return memoryview(self._board).cast("q")[FIELDS.index(field)]

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, *, stopped: bool = False) -> None:
        """Wait for its end, or with `stopped` until it is stopped."""
        while not self.poll(stopped=stopped):
            time.sleep(POLL_SECONDS)

    def poll(self, *, stopped: bool = False) -> bool:
        """Do what the parent has to do by now; return True if the child has ended or, with `stopped`, is stopped.

        Processes that the child has started are killed when it has ended.
        """
        ended, status, usage = os.wait4(self.pid, os.WNOHANG | (os.WUNTRACED if stopped else 0))
        if ended and os.WIFSTOPPED(status):
            return True
        if not ended:
            seconds, act = time.clock_gettime((~self.pid << 3) | 2), self._act  # as clock_getcpuclockid(3) does
            if act and act.when == "cpu" and not self.acted and seconds > act.at and self["joined"]:
                self._send(act.number)
            if seconds < SECONDS and time.monotonic() < self._end:
                return False
            os.kill(self.pid, signal.SIGKILL)
            _, _, usage = os.wait4(self.pid, 0)
        else:
            self.code = os.waitstatus_to_exitcode(status)
        self.seconds = usage.ru_utime + usage.ru_stime
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return True

    def _send(self, number: signal.Signals) -> None:
        target = self.pid
        if self._kills_worker:
            workers = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            if not workers:
                return
            target = int(workers[-1])
        self.acted = True
        os.kill(target, number)


def _live(
    words: Sequence[str],
    cwd: Path,
    output: Path,
    act: Act | None,
    board: memoryview,
    pictures: bool,
    environment: Mapping[str, str],
) -> NoReturn:
    """Run the command in the child, and leave by `_exit`."""

    def live() -> None:
        os.setsid()
        os.chdir(cwd)
        os.environ.update(environment)
        torch.set_num_threads(1)  # a pool of threads does not outlive a fork
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, so that writes fail instead
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        _share_progress(board)
        _watch_changes(cwd, act, board)
        with contextlib.nullcontext() if pictures else without_pictures():
            main(words)

    leave_after(live)


def _share_progress(board: memoryview) -> None:
    """Show the parent the last completed step, and whether the processes that train together have met.

    No process can tell that another one has died before it came.
    """
    record, join = Recorders.step, dist.init_process_group
    board[FIELDS.index("joined")] = "WORLD_SIZE" not in os.environ

    def step(self: Recorders, numbers: Mapping[str, Any]) -> None:
        board[FIELDS.index("stage")], board[FIELDS.index("step")] = int(numbers.get("stage", 1)) - 1, numbers["step"]
        record(self, dict(numbers))

    def init_process_group(*arguments: Any, **options: Any) -> None:
        join(*arguments, **options)
        board[FIELDS.index("joined")] = 1

    Recorders.step, dist.init_process_group = step, init_process_group  # type: ignore[method-assign]


def _watch_changes(cwd: Path, act: Act | None, board: memoryview) -> None:
    """Count what changes the folder, and act at one of the changes. Syncs count too, which come after writes."""
    inside, changes, me = os.fsencode(cwd.resolve()), FIELDS.index("changes"), os.getpid()

    def count() -> None:
        board[changes] += 1
        if act and act.when == "change" and act.at == board[changes]:
            _do(act, cwd)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        changed = event in CHANGES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING and arguments[0] is not None
        )
        if changed and os.getpid() == me and not isinstance(arguments[0], int):
            path = os.path.abspath(os.fsencode(arguments[0]))
            if path.startswith(inside):
                count()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        count()
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def _do(act: Act, cwd: Path) -> None:
    """Do in the child what happens to it."""
    if act.does == "signal":
        os.kill(os.getpid(), act.number)
    elif act.does == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (act.size, act.size))
    else:
        fill(cwd, act.size)


BALLAST = "ballast"


def fill(disk: Path, left: int) -> None:
    """Fill the file system of a folder with a file, except for so many bytes, rounded up to blocks."""
    space = os.statvfs(disk)
    size = space.f_bavail * space.f_frsize - math.ceil(left / space.f_frsize) * space.f_frsize
    if size > 0:
        descriptor = os.open(disk / BALLAST, os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(descriptor, 0, size)
        os.close(descriptor)
