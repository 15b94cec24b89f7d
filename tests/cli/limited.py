"""A command in a forked child that has little memory and little time, and notes whom it asks and what it starts."""

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from rcnn.cli.app import main

from .conftest import Outcome

SECONDS, BYTES = 20, 4_000_000_000
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system")


def limited(folder: Path, *words: object, extra: Sequence[tuple[int, int]] = ()) -> Outcome:
    """Run a command in `folder`; stdout and stderr come together as `err`, and whom it asked as `out`.

    Args:
        folder: where to run it.
        words: of the command line.
        extra: limits of `resource` and their values.
    """
    child = os.fork()
    if child == 0:
        _live(folder, [str(word) for word in words], extra)
    deadline = time.monotonic() + SECONDS
    ended, status, usage = os.wait4(child, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.005)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"{words} took more than {SECONDS} s: {(folder / 'said').read_text()[-2000:]}")
    assert usage.ru_maxrss * 1024 < BYTES, f"{words} took {usage.ru_maxrss / 1e6:.1f} GB"
    asked = (folder / "asked").read_text() if (folder / "asked").exists() else ""
    return Outcome(os.waitstatus_to_exitcode(status), asked, (folder / "said").read_text(errors="replace"))


def _live(folder: Path, words: Sequence[str], extra: Sequence[tuple[int, int]]) -> NoReturn:
    code = 99
    try:
        os.chdir(folder)
        torch.set_num_threads(1)  # a pool of threads does not outlive a fork
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        status = Path("/proc/self/status").read_text().splitlines()
        held = int(next(line for line in status if line.startswith("VmData")).split()[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + BYTES, held + BYTES))
        asked = os.open("asked", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for kind, value in extra:
            resource.setrlimit(kind, (value, value))

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event in FORBIDDEN:
                os.write(asked, f"{event} {arguments!r}\n".encode())

        sys.addaudithook(note)
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
