"""results.csv: the epochs as a table, with the columns of all rows."""

import csv
from io import StringIO
from pathlib import Path

from rcnn.training.recorders.recorder import About, Recorder, Row
from rcnn.weights.file import atomic_write


class CsvTable(Recorder):
    """Rewrites the table after every epoch, and when a run is resumed.

    Args:
        path: the file; it appears whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []

    def start(self, about: About) -> None:
        """Drop the epochs that a resumed run will repeat."""
        self._rows = [*about.rows]
        if self._path.exists():
            self._write()

    def epoch(self, row: Row) -> None:
        """Add the row."""
        self._rows.append(row)
        self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(column for row in self._rows for column in row))
        text = StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        atomic_write(self._path, text.getvalue().encode())
