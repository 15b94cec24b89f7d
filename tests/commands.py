"""A command in a forked child that has little memory and little CPU time, and notes what it must not do.

An audit hook notes the programs that the command starts, the addresses that it asks for, and the files that it changes
outside its folder.
"""

import gc
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from rcnn.cli.app import main
from tests.limits import status, wait

SECONDS, BYTES = 20, 4_000_000_000
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")
USED = (
    *("faster_coco_eval", "matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("rcnn.cli.data", "rcnn.cli.predict", "rcnn.cli.train", "rcnn.cli.val", "rcnn.cli.writers"),
    *("rcnn.data.check", "rcnn.data.convert", "rcnn.interop.detectors", "rcnn.interop.recognise", "rcnn.open_model"),
    *("rcnn.plots.run_plots", "rcnn.report.page", "rcnn.training.train"),
)
"""What commands import while they run; a child finds it imported."""
OWN = ("said", "noted")
"""Files in the folder of the command: what it printed, and what it must not do."""

for module in USED:
    import_module(module)


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: exit code, the negative number of the signal that killed it, or None if it took too long.
        said: what it printed on stdout and stderr.
        noted: what it must not do, one line each.
        memory: most resident memory in addition to what the child began with, bytes.
    """

    code: int | None
    said: str
    noted: str
    memory: int


def run(folder: Path, words: Sequence[object], limits: Sequence[tuple[int, int]] = ()) -> Ended:
    """Run a command line.

    Args:
        folder: where to run it.
        words: of the command line.
        limits: further limits, of `resource`, and their values.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(status("VmRSS")).encode())  # pages of the parent, which has run other tests before
        _live(folder, [str(word) for word in words], limits)
    os.close(writer)
    with open(reader) as pipe:
        held = int(pipe.read())
    code, usage = wait(child, SECONDS)
    said, noted = (
        (folder / name).read_text(encoding="utf-8", errors="replace") if (folder / name).exists() else ""
        for name in OWN
    )
    return Ended(code, said, noted, max(0, usage.ru_maxrss * 1024 - held))


def _live(folder: Path, words: Sequence[str], limits: Sequence[tuple[int, int]]) -> NoReturn:
    """The child: limits, the audit hook, the command, and out by `_exit`."""
    code = 99
    gc.freeze()  # to look through what the parent holds would copy each page of it
    try:
        os.chdir(folder)
        torch.set_num_threads(1)  # a pool of threads does not outlive a fork
        out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        noted, inside = os.open("noted", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(folder.resolve())
        for kind, value in ((resource.RLIMIT_DATA, status("VmData") + BYTES), *limits):
            resource.setrlimit(kind, (value, value))

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            asks = event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname")
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            if event in PROGRAMS or asks or ((event in CHANGES or writes) and not _within(arguments[0], inside)):
                os.write(noted, f"{event} {arguments!r}\n".encode(errors="replace"))

        sys.addaudithook(note)
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _within(path: Any, inside: str) -> bool:
    """Is a path in the command's folder, or a device or cache that every process may write to?"""
    if not isinstance(path, str | bytes | os.PathLike):
        return True
    absolute = os.path.abspath(os.fsdecode(path))
    caches = ("/matplotlib", "/torchinductor_", "__pycache__")
    return absolute.startswith((inside, "/dev/", "/proc/")) or any(cache in absolute for cache in caches)
