"""Run a command in a forked child with limits of memory and CPU time, and record forbidden actions.

An audit hook records the programs that the command starts, the addresses that it connects to or looks up, and the
files outside its folder that it changes. The only program that it may start is the child that runs an exported graph,
whose time and memory count as those of the command.
"""

import gc
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from rcnn.cli.app import main
from rcnn.runtime.process import COMMAND
from tests.limits import children, peak, status, wait

SECONDS, BYTES = 20, 4_000_000_000
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")
USED = (
    *("matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("rcnn.cli.data", "rcnn.cli.predict", "rcnn.cli.train", "rcnn.cli.val", "rcnn.cli.writers"),
    *("rcnn.data.check", "rcnn.data.convert", "rcnn.interop.detectors", "rcnn.interop.recognise", "rcnn.open_model"),
    *("rcnn.plots.run_plots", "rcnn.report.page", "rcnn.training.train"),
)
"""Modules that commands import while they run; importing them here saves each child the time."""
FILES = ("output", "violations")
"""Files in the folder of the command: its output, and its forbidden actions."""

for module in USED:
    import_module(module)


class Ended(NamedTuple):
    """The result of a command.

    Attributes:
        code: exit code, the negative number of the signal that killed it, or None if it took too long.
        output: stdout and stderr.
        violations: forbidden actions, one per line.
        memory: peak resident memory beyond that at the start of the child, and that of its children, bytes.
    """

    code: int | None
    output: str
    violations: str
    memory: int


def run(folder: Path, words: Sequence[object], limits: Sequence[tuple[int, int]] = ()) -> Ended:
    """Run a command line.

    Args:
        folder: where to run it.
        words: the command line.
        limits: further limits of `resource`, and their values.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(status("VmRSS")).encode())  # includes pages of the parent, which ran other tests
        os.close(writer)
        _live(folder, [str(word) for word in words], limits)
    os.close(writer)
    with open(reader) as pipe:
        memory_before = int(pipe.read())
    memory_of_children = 0

    def watch(child: int) -> None:
        nonlocal memory_of_children
        memory_of_children = max(memory_of_children, sum(map(peak, children(child))))

    code, usage = wait(child, SECONDS, watch)
    files = [folder / name for name in FILES]
    texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files]
    return Ended(code, *texts, max(0, usage.ru_maxrss * 1024 - memory_before) + memory_of_children)


def leave_after(do: Callable[[], object]) -> NoReturn:
    """Call a function in a forked child, and leave by `_exit` with the exit code that it raised, or 99 without one."""
    code = 99
    gc.freeze()  # a garbage collection of the parent's objects would copy each of their pages
    try:
        do()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _live(folder: Path, words: Sequence[str], limits: Sequence[tuple[int, int]]) -> NoReturn:
    """Set limits and the audit hook in the child, run the command, and leave by `_exit`."""

    def live() -> None:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        torch.set_num_threads(1)  # a pool of threads does not outlive a fork
        output, violations = (os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in FILES)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        inside = str(folder.resolve())
        for kind, value in ((resource.RLIMIT_DATA, status("VmData") + BYTES), *limits):
            resource.setrlimit(kind, (value, value))

        def record(event: str, arguments: tuple[Any, ...]) -> None:
            connects = event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname")
            starts = event in PROGRAMS and (event != "subprocess.Popen" or list(arguments[1]) != COMMAND)
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            if starts or connects or ((event in CHANGES or writes) and not _within(arguments[0], inside)):
                os.write(violations, f"{event} {arguments!r}\n".encode(errors="replace"))

        sys.addaudithook(record)
        main(words)

    leave_after(live)


def _within(path: Any, inside: str) -> bool:
    """Return True if a path is in the command's folder, or a device or cache that every process may write to."""
    if not isinstance(path, str | bytes | os.PathLike):
        return True
    absolute = os.path.abspath(os.fsdecode(path))
    caches = ("/matplotlib", "/torchinductor_", "__pycache__")
    return absolute.startswith((inside, "/dev/", "/proc/")) or any(cache in absolute for cache in caches)
