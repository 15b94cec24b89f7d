"""Messages of a run: lines on the console and in log.txt, and a live line on a terminal.

Only the writer of a run prints; the other processes have a `Log` without file and console.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from rcnn.console import print_table
from rcnn.cores import METER
from rcnn.data.image_checks import ProgressCallback
from rcnn.errors import cell, printable, wrapped


class Log:
    """Prints messages and writes them to a file.

    Args:
        write: function that stores a line in log.txt. None: lines are not stored.
        console: console to print on. None: lines are not printed.
    """

    def __init__(self, write: Callable[[str], None] | None, console: Console | None) -> None:
        self._write, self._console = write, console
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """Print and store a line."""
        if self._write:
            self._write(text)
        if self._console:
            shown = printable(text)
            shown = wrapped(shown, self._console.width) if self._console.is_terminal else shown
            self._console.print(shown, markup=False, highlight=False, soft_wrap=True)

    def say_threads(self) -> None:
        """Say once if the threads do not get the CPU time that they ask for."""
        for remark in METER.remarks(torch.get_num_threads()):
            self.say(remark)

    @property
    def shows(self) -> bool:
        """True if there is a console."""
        return self._console is not None

    @property
    def live(self) -> bool:
        """True if the live line is shown."""
        return self._live is not None

    def open(self) -> None:
        """Show the live line below the others, if this is a terminal."""
        if self._console and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def show(self, what: RenderableType) -> None:
        """Replace the live line."""
        if self._live:
            self._live.update(what, refresh=True)

    def status(self, text: str) -> None:
        """Show a text on the live line."""
        self.show(Text(text))

    def close(self) -> None:
        """Remove the live line."""
        if self._live:
            self._live.stop()
            self._live = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; log.txt gets one line per row."""
        if self._console:
            print_table(self._console, title, columns, rows)
        if self._write:
            lines = ("  ".join(map(" ".join, zip(columns, row, strict=True))) for row in rows)
            self._write("\n".join([title, *lines]))


@contextmanager
def shown_progress(console: Console | None, title: str, verb: str) -> Iterator[ProgressCallback | None]:
    """Yield a callback that shows the number of images that are done, or None without a console."""
    if console is None:
        yield None
        return
    with console.status(title) as status:
        yield lambda done, images: status.update(f"{verb} {done:,} of {images:,} images")


def memory_gb() -> float:
    """Return the peak memory of this process in GB: GPU memory if a GPU is used, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def duration(seconds: float) -> str:
    """Format a duration: 3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_number(value: float | None, digits: int = 4) -> str:
    """Format a number of a training: one decimal from 100 on, a dash if it is unknown."""
    return "-" if value is None else cell(value, 1 if abs(value) >= 100 else digits)
