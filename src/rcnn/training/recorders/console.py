"""The table on the console: a live line on a terminal, plain lines elsewhere, and a permanent line per epoch."""

import time

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.text import Text

from rcnn.metrics.table import live_metrics
from rcnn.training.log import Log, duration, shown_number
from rcnn.training.recorders.recorder import About, Recorder, Row

WIDTH = 80
LIVE_SECONDS = 1.0
PLAIN_SECONDS = 30.0
PARTS = {"objectness": "obj", "class": "cls"}
"""Parts of a loss's name -> abbreviations."""


class ConsoleTable(Recorder):
    """Shows steps about once per second on a terminal and twice per minute elsewhere; epochs also go to log.txt.

    Args:
        log: log of the run.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._heading = ""
        self._shown = 0.0

    def start(self, about: About) -> None:
        """Start the live line."""
        self._about = about
        self._begin_stage(about.stage, about.step)
        self._log.open()

    def step(self, numbers: Row) -> None:
        """Show the step if it is time."""
        stage, step = int(numbers.get("stage") or 1), int(numbers["step"] or 0)
        if stage != self._stage:
            self._begin_stage(stage, step)
        pause = LIVE_SECONDS if self._log.live else PLAIN_SECONDS
        if not self._log.shows or time.monotonic() - self._shown < pause:
            return
        self._shown = time.monotonic()
        heading, line = self._line(numbers)
        if self._log.live:
            bar = ProgressBar(total=self._steps, completed=step, width=60)
            self._log.show(Group(Text(heading, style="bold"), Text(line), bar))
        elif step % max(1, self._steps // self._epochs):  # at the end of an epoch, the line of the epoch follows
            self._say(heading, line)

    def epoch(self, row: Row) -> None:
        """Print a permanent line with the scores of the last validation."""
        self._scores.update({name: row[name] for name in self._scores if name in row})
        self._say(*self._line(row))
        self._shown = time.monotonic()

    def end(self, scores: Row) -> None:
        """Remove the live line."""
        self._log.close()

    def _begin_stage(self, stage: int, step: int) -> None:
        """Reset time and scores, which count within a stage, of which `step` steps are done."""
        self._stage, self._done, self._began = stage, step, time.monotonic()
        self._epochs, self._steps = self._about.lengths[stage - 1]
        shown = live_metrics(self._about.best[stage - 1])
        self._columns = {
            "val_loss": ("val loss", 4),
            **{metric.key: (metric.live, metric.digits + 1) for metric in shown},
        }
        self._scores: dict[str, float | None] = dict.fromkeys(self._columns)

    def _say(self, heading: str, line: str) -> None:
        if heading != self._heading:  # stages have other losses
            self._heading = heading
            self._log.say(heading)
        self._log.say(line)

    def _line(self, numbers: Row) -> tuple[str, str]:
        """Return the headings and the values of the columns, each as one line."""
        step, epochs = int(numbers["step"] or 0), self._epochs
        before = sum(epochs for epochs, _ in self._about.lengths[: self._stage - 1])
        epoch = int(numbers["epoch"] or 0) - before  # rows count epochs over all stages
        spent = time.monotonic() - self._began
        seconds = spent / max(1, step - self._done) * (self._steps - step)
        pace = numbers["images_per_second"]
        losses = {name.removeprefix("train_"): value for name, value in numbers.items() if name.startswith("train_")}
        values = {
            "epoch": f"{epoch}/{epochs}",
            **{_short(name): shown_number(value) for name, value in losses.items() if name != "loss"},
            "images/s": "-" if pace is None else f"{pace:.1f}",
            **{heading: shown_number(self._scores[name], digits) for name, (heading, digits) in self._columns.items()},
            "ETA": duration(seconds),
        }
        widths = {
            name: max(len(name), len(value), 7 if name in ("epoch", "ETA") else 6) for name, value in values.items()
        }
        if sum(widths.values()) + len(widths) - 1 > WIDTH:  # thousands of epochs, or days
            del values["images/s"]
        heading = " ".join(name.rjust(widths[name]) for name in values)
        return heading, " ".join(value.rjust(widths[name]) for name, value in values.items())


def _short(name: str) -> str:
    return " ".join(PARTS.get(part, part) for part in name.split("_"))
