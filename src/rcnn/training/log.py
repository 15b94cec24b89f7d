"""Messages of a run: lines on the console and in log.txt, and on a terminal a live line.

Only the writer of a run prints; the other processes have a `Log` with neither file nor console.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rcnn.errors import printable, wrapped


class Log:
    """Prints messages and writes them to a file.

    Args:
        write: stores a line in log.txt. None: nothing is stored.
        console: where to print. None: nothing is printed.
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

    @property
    def shows(self) -> bool:
        """Is there a console?"""
        return self._console is not None

    @property
    def live(self) -> bool:
        """Is the live line shown?"""
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
        """Show on the live line what happens between two steps."""
        self.show(Text(text))

    def close(self) -> None:
        """Remove the live line."""
        if self._live:
            self._live.stop()
            self._live = None

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print a table with one column per key; log.txt gets one line per row."""
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(printable(shown_number(value))) for value in row.values()))
        if self._console:
            self._console.print(Text(f"\n{title}", style="bold"))
            self._console.print(table)
        if self._write:
            self._write(
                f"{title}\n" + "\n".join("  ".join(f"{k} {shown_number(v)}" for k, v in row.items()) for row in rows)
            )


def memory_gb() -> float:
    """Peak memory of this process in GB: on the GPU if it is used, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_number(value: Any) -> str:
    """A number as tables show it, a dash if it is unknown; anything else unchanged."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
