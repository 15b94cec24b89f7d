"""What a run says: lines on the console and in log.txt, and on a terminal one line that changes.

Only the writer of a run speaks; the other processes have a `Log` with neither file nor console.
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


class Log:
    """Shows and writes down what a training says.

    Args:
        write: keeps a line (in log.txt); None where this process writes nothing.
        console: where to show; None to be quiet.
    """

    def __init__(self, write: Callable[[str], None] | None, console: Console | None) -> None:
        self._write, self._console = write, console
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._write:
            self._write(text)
        if self._console:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def shows(self) -> bool:
        """Does anybody look?"""
        return self._console is not None

    @property
    def live(self) -> bool:
        """Is there a line that changes?"""
        return self._live is not None

    def open(self) -> None:
        """On a terminal, keep a line that changes below the others."""
        if self._console and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def show(self, what: RenderableType) -> None:
        """Put something in the place of the line that changes."""
        if self._live:
            self._live.update(what, refresh=True)

    def status(self, text: str) -> None:
        """What goes on between two steps; only on a terminal, and gone with the next one."""
        self.show(Text(text))

    def close(self) -> None:
        """The line that changes goes."""
        if self._live:
            self._live.stop()
            self._live = None

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table with one column a key."""
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(shown_number(value)) for value in row.values()))
        if self._console:
            self._console.print(Text(f"\n{title}", style="bold"))
            self._console.print(table)
        if self._write:
            self._write(
                f"{title}\n" + "\n".join("  ".join(f"{k} {shown_number(v)}" for k, v in row.items()) for row in rows)
            )


def memory_gb() -> float:
    """Most memory that this process has held: the GPU's if there is one, else resident memory."""
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
    """A number as tables show it, with a dash for one that is not known; other things as they are."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
