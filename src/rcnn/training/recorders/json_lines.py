"""metrics.jsonl: a line of JSON per epoch."""

import json
from pathlib import Path

from rcnn.training.recorders.recorder import Recorder, Row


class JsonLines(Recorder):
    """Appends a line per epoch. Epochs that a resumed run repeats are cut off before (`RunFolder.cut_logs`).

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def epoch(self, row: Row) -> None:
        """Add the row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
