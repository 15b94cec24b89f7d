"""history.png: losses, AP and learning rate by epoch."""

from pathlib import Path

from rcnn.plots.run_plots import plot_history
from rcnn.training.recorders.recorder import About, Recorder, Row


class History(Recorder):
    """Redraws the curves of the run after every epoch.

    Args:
        path: the picture.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []

    def start(self, about: About) -> None:
        """Start from the epochs that were done before."""
        self._rows = [*about.rows]

    def epoch(self, row: Row) -> None:
        """Add the row and draw."""
        self._rows.append(row)
        plot_history(self._rows, self._path)
