"""The result of a training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn.detector import Detector
from rcnn.errors import plural
from rcnn.metrics.table import Metrics
from rcnn.training.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished training. A notebook shows it as curves over the epochs.

    Attributes:
        folder: the run folder.
        metrics: scores of the best weights on the validation images, or of the last ones with `train.keep=last`.
        rows: one row per epoch, as in metrics.jsonl.
    """

    folder: Path
    metrics: Metrics
    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"Run in {self.folder}, {plural(len(self.rows), 'epoch')}\nweights: {self.best}\n{self.metrics}"

    def _repr_png_(self) -> bytes | None:
        """Return the curves of history.png for a notebook, or None if the folder no longer exists."""
        picture = RunFolder(self.folder).history
        return picture.read_bytes() if picture.exists() else None

    @property
    def best(self) -> Path:
        """Weights of the epoch with the highest validation AP; the same as `last` with `train.keep=last`."""
        return RunFolder(self.folder).kept

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return RunFolder(self.folder).weights / "last.safetensors"

    @property
    def detector(self) -> Detector:
        """The detector with the weights `best`."""
        return Detector.load(self.best)
