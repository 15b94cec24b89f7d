"""report.html: the report of a run, written when it ends, also if it ends early."""

from pathlib import Path

from rcnn.data.dataset import Dataset
from rcnn.detector import Detector
from rcnn.metrics.table import Metrics
from rcnn.report.page import keep_scores, write_report
from rcnn.report.scores import ScoredDetector
from rcnn.training.recorders.recorder import Recorder, Row


class ReportPage(Recorder):
    """Writes the report, with the scores of the kept weights: the best ones, or with `train.keep=last` the last ones.

    Args:
        folder: the run folder.
        dataset: the validation images.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder, self._dataset = folder, dataset
        self._best: tuple[Metrics, ScoredDetector] | None = None

    def scored(self, detector: Detector, metrics: Metrics, epoch: int) -> None:
        """Take the scores of the weights that are kept, in place of earlier ones."""
        self._best = metrics, ScoredDetector.of(detector, epoch)

    def end(self, scores: Row) -> None:
        """Write the report, with the scores that were taken last."""
        if self._best:
            keep_scores(self._folder, self._dataset, *self._best)
        write_report(self._folder)
