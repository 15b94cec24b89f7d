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
    """A finished training. A notebook shows the curves of its epochs.

    Attributes:
        folder: the run folder.
        metrics: scores of the best weights on the validation split; of the last with `train.keep=last`.
        rows: one per epoch, as in metrics.jsonl.
    """

    folder: Path
    metrics: Metrics
    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"Run in {self.folder}, {plural(len(self.rows), 'epoch')}\nweights: {self.best}\n{self.metrics}"

    def _repr_png_(self) -> bytes | None:
        """The curves in a notebook, as in history.png; None if the folder is gone."""
        picture = RunFolder(self.folder).history
        return picture.read_bytes() if picture.exists() else None

    @property
    def best(self) -> Path:
        """Weights of the epoch with the highest validation AP; `last` with `train.keep=last`, which chooses none."""
        return RunFolder(self.folder).kept

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return RunFolder(self.folder).weights / "last.safetensors"

    @property
    def detector(self) -> Detector:
        """The detector of `best`, loaded."""
        return Detector.load(self.best)
