"""The CPU cores that this process may use, and whether it gets the CPU time that its threads ask for."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MEASURED_SECONDS = 5.0
"""CPU time that the threads ask for until their share is judged: a few steps of a training, or some predictions."""
LEAST_SHARE = 0.75
"""Least share of the CPU time that they ask for with which threads are not slowed down much by each other."""
TASKS = Path("/proc/self/task")
"""Folder in which Linux lists the threads of this process."""


def visible_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Return the number of cores that this process can keep busy, at least 1.

    The CPU quota of a container may be lower than the number of visible cores. The processes that torchrun starts on a
    machine share its cores.
    """
    allowed = math.floor(min(visible_cores(), cpu_quota()))
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def spare_cores() -> int:
    """Return the number of this process's cores minus one."""
    return usable_cores() - 1


@cache
def cpu_quota(root: Path = Path("/")) -> float:
    """Return the CPU time per second that the control groups of this process may use (Linux); infinite without a limit.

    A group is also limited by all groups above it, as far as they are mounted: in a container, usually only its own is.

    Args:
        root: folder in which /proc and the mounted groups are looked up.
    """
    try:
        groups = _read(root / "proc/self/cgroup").splitlines()
        mounts = _read(root / "proc/self/mountinfo").splitlines()
    except OSError:
        return math.inf
    paths = dict[str, str]()  # of version 1 by controller, of version 2 by an empty name
    for line in groups:
        names, _, path = line.partition(":")[2].partition(":")
        paths |= dict.fromkeys(names.split(","), path)
    limits = [math.inf]
    for line in mounts:  # fields: see `man 5 proc`
        where, _, what = line.partition(" - ")
        fields, kind = where.split(), what.split()
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind[0]) if len(fields) > 4 and len(kind) > 2 else None
        if controller not in paths or (controller and controller not in kind[2].split(",")):
            continue
        top = root / _unescaped(fields[4]).lstrip("/")
        below = os.path.relpath(paths[controller] or "/", _unescaped(fields[3]))
        # Without a namespace of groups, a container sees the host's path of its group, but not the folders above it.
        group = top if below.startswith("..") else top / below
        while group != top:
            limits.append(_quota_of(group, controller))
            group = group.parent
        limits.append(_quota_of(top, controller))
    return min(limits)


def _quota_of(group: Path, controller: str) -> float:
    """Return the CPU time per second that a group may use; infinite without a limit that can be read."""
    try:
        if controller:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        else:
            quota, period = _read(group / "cpu.max").split()
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # there is no such file, or it says `max`
        return math.inf
    return limit if limit > 0 else math.inf  # -1: no limit


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape")


def _unescaped(path: str) -> str:
    """Return a path of /proc/self/mountinfo, which writes blanks and backslashes as octal numbers."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        path = path.replace(code, chr(int(code[1:], 8)))
    return path


def advised_threads(ran: float, waited: float, threads: int) -> int | None:
    """Return a smaller number of threads that would compute faster, or None if this one is fine or not yet judged.

    Threads that compute together wait for the slowest of them. If others use the cores too, or a quota is used up,
    most of the time is spent on waiting for a thread that is not running.

    Args:
        ran: seconds of CPU time that the threads had.
        waited: seconds in which they could have computed and did not.
        threads: number of threads.
    """
    wanted = ran + waited
    if threads < 2 or wanted < MEASURED_SECONDS or ran >= LEAST_SHARE * wanted:
        return None
    return max(1, math.floor(threads * ran / wanted))


class CoreMeter:
    """Measures over the first seconds of computing which share of the CPU time that its threads ask for they get.

    Linux counts how long each thread waited for a core, if its kernel is built with statistics of the scheduler.
    Elsewhere the thread that calls is measured: it never sleeps for long in `computing` unless another thread that
    computes with it does not run.
    """

    def __init__(self) -> None:
        self._ran = self._waited = 0.0
        self._told = False

    @contextmanager
    def computing(self, threads: int) -> Iterator[None]:
        """Measure what is done inside: computing on the CPU, with no waiting for data, a GPU or other processes.

        Args:
            threads: number of threads that compute. A single one is not measured: fewer are not possible.
        """
        if threads < 2 or self.judged:
            yield
            return
        ran, waited = _times()
        yield
        more_ran, more_waited = _times()
        self._ran += max(0.0, more_ran - ran)
        self._waited += max(0.0, more_waited - waited)

    @property
    def judged(self) -> bool:
        """True if enough has been measured."""
        return self._ran + self._waited >= MEASURED_SECONDS

    @property
    def share(self) -> float:
        """Share of the CPU time that the threads got; 1 before anything is measured."""
        wanted = self._ran + self._waited
        return self._ran / wanted if wanted else 1.0

    def advice(self, threads: int) -> int | None:
        """Return a number of threads that would be faster than this one, None if there is none or it is not known."""
        return advised_threads(self._ran, self._waited, threads)

    def remarks(self, threads: int) -> list[str]:
        """Return a remark for the user, once, if fewer than this number of threads would be faster."""
        advised = None if self._told else self.advice(threads)
        if advised is None:
            return []
        self._told = True
        return [
            f"the {threads} threads of this process get only {self.share:.0%} of the CPU time that they ask for: other "
            "processes use the cores too, or a CPU quota is used up. Threads that wait for each other are slow; start "
            f"with fewer of them: OMP_NUM_THREADS={advised} before the command"
        ]


METER = CoreMeter()
"""Of this process. Training, prediction and validation tell its remark."""


def _times() -> tuple[float, float]:
    """Return seconds that threads ran, and seconds that they waited for a core: all threads, or else this one."""
    ran = waited = 0
    try:
        for task in os.listdir(TASKS):
            try:
                columns = (TASKS / task / "schedstat").read_text().split()
            except (ProcessLookupError, FileNotFoundError):  # it has just ended
                continue
            ran, waited = ran + int(columns[0]), waited + int(columns[1])
    except (OSError, ValueError, IndexError):
        ran = 0
    if ran:
        return ran / 1e9, waited / 1e9
    seconds = time.thread_time()
    return seconds, time.perf_counter() - seconds
