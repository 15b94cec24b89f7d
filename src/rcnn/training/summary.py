"""The messages at the start and at the end of a training."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.dataset import Dataset
from rcnn.data.proposals.external import SlidingWindows
from rcnn.detector import Detector
from rcnn.errors import plural
from rcnn.images.storage import location
from rcnn.metrics.table import Metrics, live_metrics
from rcnn.training.configure import DEFAULT_MODEL
from rcnn.training.log import duration, memory_gb
from rcnn.training.run_pictures import draw_end
from rcnn.training.schemes import AP, RECALL
from rcnn.training.trainer import Trainer
from rcnn.weights.backbone import IMAGENET

SMALL_SET = 1000
"""Number of training images below which the weights of a whole detector are suggested."""
DETECTOR = "torchvision/fasterrcnn_mobilenet_v3_large_fpn"


def announce_start(trainer: Trainer, notes: Sequence[str]) -> None:
    """Print model, data and device, then `notes` about anchors and initial weights."""
    settings, (train_set, val_set), log = trainer.settings, trainer.splits, trainer.log
    preprocess, loader, path = settings.preprocess, trainer.state.loader, trainer.folder.path
    log.say(
        f"{path}: {settings.model.preset}, {plural(len(train_set.names), 'class')}, "
        f"{len(train_set)} images to train on, {len(val_set)} to validate, "
        f"resized to {preprocess.short} pixels (the longer side at most {preprocess.long}), "
        f"on {trainer.distributed.device}, loaded by {loader.workers}"
    )
    test = settings.data.val == "test" and settings.train.keep != "last"
    warning = (
        "the best epoch and the score threshold are chosen on the list test (data.val=test), so its scores are better "
        "than on unseen images; with train.keep=last nothing is chosen"
    )
    hints = (*([warning] if test else []), *detector_hint(settings, train_set))
    for note in dict.fromkeys((*loader.dataset.notes, *val_set.notes, *notes, *hints)):
        log.say(note)
    if faults := len(set(map(str, (*train_set.faults, *val_set.faults)))):
        log.say(f"faults of the data, mended or left out: {faults}, listed in {path / 'faults.txt'}")


def detector_hint(settings: Settings, train_set: Dataset) -> tuple[str, ...]:
    """Return a sentence about a detector to start from, for a small set of JPEGs that starts from ImageNet weights.

    JPEGs are mostly photographs, as are the images of COCO, on which that detector was trained.
    """
    jpegs = sum(name.lower().endswith((".jpg", ".jpeg")) for name in train_set.records.names())
    default = settings.model.preset == DEFAULT_MODEL and settings.train.init in IMAGENET
    if not default or len(train_set) >= SMALL_SET or 2 * jpegs <= len(train_set):
        return ()
    return (f"with few photographs, a start from a detector trained on COCO may give better scores: --from {DETECTOR}",)


def announce_end(trainer: Trainer, detector: Detector, metrics: Metrics) -> None:
    """Draw the results, and print the scores of the kept detector and the next command."""
    folder, log, settings = trainer.folder, trainer.log, trainer.state.settings
    rows, note = metrics.table(digits=1)
    log.table("AP by class on the validation split" + note, metrics.class_headings, rows)
    draw_end(folder.plots, trainer.splits[1], metrics, settings, detector.threshold)
    shown = live_metrics(AP if detector.settings.predicts_classes else RECALL)
    scores = ", ".join(f"{m.live} {metrics.values[m.key].overall:.{m.digits}f}" for m in shown)
    progress = trainer.state.progress
    spent = f"{duration(progress.seconds)} of training, {memory_gb():.1f} GB"
    log.say(f"{settings.train.keep} epoch {progress.best_epoch}: {scores}; {spent}")
    command, proposals = "predict" if detector.settings.predicts_classes else "propose", ""
    if trainer.state.val_proposals:
        windows = isinstance(trainer.state.val_proposals, SlidingWindows)
        proposals = f" --proposals {SLIDING_WINDOWS if windows else 'FILE|selective-search'}"
    here, data = Path.cwd(), location(str(settings.data.path))
    data = data.relative_to(here) if isinstance(data, Path) and data.is_relative_to(here) else data
    split = "test" if settings.data.val == "test" else "val"
    log.say(f"next: rcnn {command} {shlex.join([str(folder.path), str(data), '--split', split])}{proposals}")
