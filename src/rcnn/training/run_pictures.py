"""The pictures of a run: labels and batches at its start, results at its end."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.curves import precision_recall
from rcnn.metrics.table import Metrics
from rcnn.plots.contact_sheet import Tile, compare, contact_sheet
from rcnn.plots.run_plots import plot_confusion, plot_curves, plot_labels, plot_proposal_recall

BATCHES = 2
COMPARED_IMAGES = 16


def draw_start(folder: Path, loader: Loader) -> None:
    """Draw labels.png, and train-batch-N.jpg with augmented training batches."""
    dataset = loader.dataset
    plot_labels(dataset.records, dataset.names, folder / "labels.png")
    for number, item in enumerate(islice(loader.epoch(0), BATCHES)):
        tiles = [_shown(item, row, dataset) for row in range(len(item.index)) if item.index[row] >= 0]
        if tiles:
            contact_sheet(tiles, dataset.names, folder / f"train-batch-{number + 1}.jpg")


def draw_end(folder: Path, dataset: Dataset, metrics: Metrics, settings: Settings, score: float) -> None:
    """Draw curves, confusion and proposal recall, and val.jpg: ground truth beside detections of at least `score`."""
    names, truths, predictions = dataset.names, metrics.truths, metrics.predictions
    plot_curves(precision_recall(truths, predictions, len(names)), names, folder / "curves.png")
    matrix = confusion_matrix(truths, predictions, len(names), score=score)
    plot_confusion(matrix, names, folder / "confusion.png")
    plot_proposal_recall(metrics.proposals, folder / "proposals.png")
    chosen = np.linspace(0, len(dataset) - 1, min(COMPARED_IMAGES, len(dataset))).round().astype(int)
    records, shown = [dataset.records[i] for i in chosen], [predictions[i] for i in chosen]
    compare(records, shown, score, settings, names, folder / "val.jpg")


def _shown(item: Item, row: int, dataset: Dataset) -> Tile:
    """Return an image of a batch, resized and augmented, with its objects."""
    height, width = item.batch.sizes[row].int().tolist()
    image = item.batch.images[row, :, :height, :width].permute(1, 2, 0).round().to(torch.uint8).numpy()
    targets = item.targets
    valid = targets.valid[row]
    return Tile(
        np.ascontiguousarray(image),
        targets.boxes[row][valid].numpy(),
        targets.labels[row][valid].numpy(),
        dataset.records[int(item.index[row])].name,
        ignore=targets.ignore[row][valid].numpy(),
    )
