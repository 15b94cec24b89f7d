"""report.html: the page of the run, written when it ends or breaks off."""

from pathlib import Path

from rcnn.data.dataset import Dataset
from rcnn.detector import Detector
from rcnn.metrics.table import Metrics
from rcnn.report.page import keep_scores, write_report
from rcnn.report.scores import ScoredDetector
from rcnn.training.recorders.recorder import Recorder, Row


class ReportPage(Recorder):
    """Writes what the page shows of the weights kept so far, the best or with `train.keep=last` the last, and the page.

    Args:
        folder: the run folder.
        dataset: the images to validate on.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder, self._dataset = folder, dataset
        self._best: tuple[Metrics, ScoredDetector] | None = None

    def scored(self, detector: Detector, metrics: Metrics, epoch: int) -> None:
        """Take the scores of the weights that are kept; those before are forgotten."""
        self._best = metrics, ScoredDetector.of(detector, epoch)

    def end(self, scores: Row) -> None:
        """Write the page, of a run that broke off with the scores of the epoch that is kept."""
        if self._best:
            keep_scores(self._folder, self._dataset, *self._best)
        write_report(self._folder)
