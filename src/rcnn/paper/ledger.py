"""A table on the disk that grows by rows and is whole at any time."""

import csv
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.weights.file import atomic_write

Value = str | int | float


class Ledger:
    """A csv file whose first columns, the key, tell its rows apart.

    Args:
        path: the file; it is made with the first row.
        key: names of the columns that are its key.

    Raises:
        SettingsError: the file is there and is not such a table.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if not set(key) <= row.keys() or None in row or None in row.values():
                        raise SettingsError(f"{path}: not a table of results; move it away, or choose another --name")
                    self.rows[tuple(row[name] for name in key)] = row

    def __contains__(self, key: tuple[Value, ...]) -> bool:
        return tuple(map(str, key)) in self.rows

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows.values())

    def add(self, *rows: Mapping[str, Value]) -> None:
        """Add rows, all of them or none."""
        for row in rows:
            text = {name: str(value) for name, value in row.items()}
            self.rows[tuple(text[name] for name in self.key)] = text
        columns = list(dict.fromkeys(column for row in self for column in row))
        text = StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        atomic_write(self.path, text.getvalue().encode())
