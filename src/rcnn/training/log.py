"""What a run says: one live line on a terminal, plain lines elsewhere, and all of it in log.txt.

Only the writer of a run speaks; the other processes have a `Log` with neither file nor console.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 30.0
HEADINGS = {"objectness": "obj", "class": "cls"}


class Log:
    """Shows and writes down the course of a training.

    Args:
        write: keeps a line (in log.txt); None where this process writes nothing.
        console: where to show; None to be quiet.
    """

    def __init__(self, write: Callable[[str], None] | None, console: Console | None) -> None:
        self._write, self._console = write, console
        self._live: Live | None = None
        self._heading = ""
        self._shown = 0.0

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._write:
            self._write(text)
        if self._console:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, epochs: int, steps: int, done: int) -> None:
        """The first step is near: `steps` in all, `done` of them before."""
        self._epochs, self._steps, self._done, self._began = epochs, steps, done, time.monotonic()
        if self._console and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def step(self, epoch: int, step: int, numbers: Mapping[str, float | str]) -> None:
        """After a step: shown about once a second on a terminal, twice a minute elsewhere."""
        if not self._console or time.monotonic() - self._shown < (LIVE_SECONDS if self._live else PLAIN_SECONDS):
            return
        self._shown = time.monotonic()
        heading, line = self._line(epoch, step, numbers)
        if self._live:
            bar = ProgressBar(total=self._steps, completed=step, width=60)
            self._live.update(Group(Text(heading, style="bold"), Text(line), bar), refresh=True)
        elif step % max(1, self._steps // self._epochs):  # at the end of an epoch its own line follows at once
            self._plain(heading, line)

    def status(self, text: str) -> None:
        """What goes on between two steps; only on a terminal, and gone with the next one."""
        if self._live:
            self._live.update(Text(text), refresh=True)

    def epoch(self, epoch: int, step: int, numbers: Mapping[str, float | str]) -> None:
        """After an epoch and its validation: a line that stays."""
        self._plain(*self._line(epoch, step, numbers))
        self._shown = time.monotonic()

    def stop(self) -> None:
        """No more steps: the live line goes."""
        if self._live:
            self._live.stop()
            self._live = None

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table with one column a key."""
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(_number(value)) for value in row.values()))
        if self._console:
            self._console.print(Text(f"\n{title}", style="bold"))
            self._console.print(table)
        if self._write:
            self._write(
                f"{title}\n" + "\n".join("  ".join(f"{k} {_number(v)}" for k, v in row.items()) for row in rows)
            )

    def _plain(self, heading: str, line: str) -> None:
        if heading != self._heading:  # columns come with the first validation
            self._heading = heading
            self.say(heading)
        self.say(line)

    def _line(self, epoch: int, step: int, numbers: Mapping[str, float | str]) -> tuple[str, str]:
        """Headings and values of the columns, in equal widths."""
        seconds = (time.monotonic() - self._began) / max(1, step - self._done) * (self._steps - step)
        values = {
            "epoch": f"{epoch}/{self._epochs}",
            **{_short(name): _number(value) for name, value in numbers.items()},
            "memory": f"{memory_gb():.1f} GB",
            "ETA": duration(seconds),
        }
        widths = {name: max(len(name), 8) for name in values}
        heading = " ".join(name.rjust(widths[name]) for name in values)
        return heading, " ".join(value.rjust(widths[name]) for name, value in values.items())


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


def _short(name: str) -> str:
    return " ".join(HEADINGS.get(part, part) for part in name.split("_"))


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
