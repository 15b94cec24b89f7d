"""Run a piece of a test in a child process that may use only so much memory and CPU time."""

import gc
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MB = 1_000_000
WAITS = 15
"""Seconds that may pass per second of CPU time."""


def status_of(process: int | str, name: str) -> int:
    """A figure of /proc/PROCESS/status such as VmHWM, bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def status(name: str) -> int:
    """A figure of /proc/self/status such as VmHWM, bytes."""
    return status_of("self", name)


def children(process: int) -> list[int]:
    """Return the running processes that all threads of a process started."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def peak(process: int) -> int:
    """Return the peak resident memory of another process, bytes; 0 if it has ended."""
    with suppress(OSError, StopIteration):
        return status_of(process, "VmHWM")
    return 0


def wait(
    child: int, seconds: float, watch: Callable[[int], object] = lambda child: None
) -> tuple[int | None, resource.struct_rusage]:
    """Wait for a child process that may use so much CPU time, and kill it if it takes more.

    The limit is of CPU time, which does not depend on what else the machine does. A child that waits for something that
    never comes uses none, so that it is killed when `WAITS` times as many seconds have passed.

    Args:
        child: the process.
        seconds: of CPU time.
        watch: called with the process again and again.

    Returns:
        Its exit code, or the negative number of the signal that ended it, or None if it took too long; and its usage.
    """
    end = time.monotonic() + WAITS * seconds
    ended, status, usage = os.wait4(child, os.WNOHANG)
    while not ended:
        if time.monotonic() > end or cpu_seconds(child) > seconds:
            os.kill(child, signal.SIGKILL)
            return None, os.wait4(child, 0)[2]
        watch(child)
        time.sleep(0.002)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status), usage


def cpu_seconds(child: int) -> float:
    """CPU time of a process and of its children; of their children, only of those that have ended."""
    ticks = 0
    for process in (child, *children(child)):
        with suppress(OSError):  # it has ended
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def in_child(do: Callable[[], object], seconds: float = 20, data: int = 4000 * MB, resident: int | None = None) -> None:
    """Fail unless `do` ends without an error in a forked child.

    Args:
        do: what the child does; its assertions count.
        seconds: of CPU time, after which the child is killed.
        data: memory that it may allocate in addition to what it has, bytes.
        resident: most memory that may be resident in addition to what is, bytes.
    """
    child = os.fork()
    if child == 0:
        code = 1
        gc.freeze()  # to look through what the parent holds would copy each page of it
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + data, status("VmData") + data))
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
            before = status("VmRSS")
            do()
            grown = status("VmHWM") - before
            assert resident is None or grown <= resident, f"{grown / MB:.0f} MB more were resident"
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code, _ = wait(child, seconds)
    assert code is not None, f"not done in {seconds:g} seconds"
    assert code == 0, "the child failed; see above"
