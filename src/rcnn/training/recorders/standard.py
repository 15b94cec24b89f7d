"""The recorders of every run: the console, and the files metrics.jsonl, results.csv and history.png."""

import csv
import json
from io import StringIO
from pathlib import Path

from rcnn.plots.run_plots import plot_history
from rcnn.training.log import Log
from rcnn.training.recorders.console import ConsoleTable
from rcnn.training.recorders.recorder import About, Recorder, Row
from rcnn.training.run_folder import RunFolder
from rcnn.weights.file import atomic_write


def standard_recorders(folder: RunFolder, log: Log) -> tuple[Recorder, ...]:
    """Return the recorders of the console and of the files, in their order."""
    return ConsoleTable(log), JsonLines(folder.metrics), CsvTable(folder.table), History(folder.history)


class JsonLines(Recorder):
    """Appends a line of JSON per epoch. Epochs that a resumed run repeats are cut off before (`RunFolder.cut_logs`).

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def epoch(self, row: Row) -> None:
        """Add the row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class AllRows(Recorder):
    """Writes the rows of all epochs to a file, anew after every epoch.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []

    def start(self, about: About) -> None:
        """Start with the epochs that are done, without those that a resumed run will repeat."""
        self._rows = [*about.rows]

    def epoch(self, row: Row) -> None:
        """Add the row, and write the file."""
        self._rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the file."""


class History(AllRows):
    """Draws losses, scores and learning rate by epoch."""

    def write(self) -> None:
        """Draw the curves."""
        plot_history(self._rows, self._path)


class CsvTable(AllRows):
    """Writes a table with the columns of all rows, also when a run is resumed. The file is replaced atomically."""

    def start(self, about: About) -> None:
        """Drop the epochs that a resumed run will repeat, in the file too."""
        super().start(about)
        if self._path.exists():
            self.write()

    def write(self) -> None:
        """Write the table."""
        text = StringIO()
        columns = dict.fromkeys(column for row in self._rows for column in row)
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        atomic_write(self._path, text.getvalue().encode())
