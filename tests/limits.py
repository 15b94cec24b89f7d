"""Run a piece of a test in a child process that may use only so much memory and time."""

import gc
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

MB = 1_000_000


def status(name: str) -> int:
    """A figure of /proc/self/status such as VmHWM, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def in_child(do: Callable[[], object], seconds: float = 20, data: int = 4000 * MB, resident: int | None = None) -> None:
    """Fail unless `do` ends without an error in a forked child.

    Args:
        do: what the child does; its assertions count.
        seconds: after which the child is killed.
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
    end = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"not done in {seconds:g} seconds")
        time.sleep(0.002)
    assert ended[1] == 0, "the child failed; see above"
