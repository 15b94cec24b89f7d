"""`rcnn.train`: from a data set to a run folder with a trained detector."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console

from rcnn.config import Settings
from rcnn.data.formats.find import open_splits
from rcnn.training.configure import choose_settings
from rcnn.training.distributed import join_processes
from rcnn.training.ending import explained
from rcnn.training.log import Log
from rcnn.training.recorders import Recorder, Recorders
from rcnn.training.recorders.report_page import ReportPage
from rcnn.training.recorders.standard import standard_recorders
from rcnn.training.run import Run
from rcnn.training.run_folder import RUNS, RunFolder, check_name
from rcnn.training.stages import Splits
from rcnn.training.start import begin, prepare_run, resume_run
from rcnn.training.summary import announce_end
from rcnn.training.trainer import Trainer


def train(
    data: str | Path | None = None,
    config: str | Path | None = None,
    *,
    model: str | None = None,
    start_from: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    name: str | None = None,
    runs: str | Path = RUNS,
    quiet: bool = False,
    recorders: Sequence[Recorder] = (),
    **options: object,
) -> Run:
    """Train a detector.

    Args:
        data: folder, COCO json, data.yaml or csv. None: `data.path` of `config`.
        config: a `config.yaml`, which repeats its run. None: the preset `model`.
        model: name of a preset, or timm/NAME. None: mobilenet-fpn.
        start_from: detector to fine-tune instead, as `rcnn.load` takes it: its network, preprocessing and weights.
        overrides: `section.key=value` texts laid over the settings.
        resume: run folder to resume, with its own settings; of the options only `epochs` and `workers` may be given,
            and no `name` or `runs`.
        name: the run folder is `runs/name-N`. None: the name of the data.
        runs: folder of run folders.
        quiet: print nothing.
        recorders: receive the numbers of the run, after those that write the run folder. One that fails is dropped.
        **options: settings of the section `train` by name (`epochs=30`), `imgsz`, `on_fault`, `workers`, `holdout`.

    Raises:
        SettingsError: a setting is wrong, or arguments contradict each other.
        DataError: the data can't be read, or is faulty.
        WeightsError: the weights to start from, or a checkpoint, can't be used.
        TrainingError: a loss is not finite, or the disk is full; the last checkpoint is named.
        Interrupted: Ctrl-C; the state is saved.
    """
    check_name(name)
    new_folder = name is not None or Path(runs) != RUNS
    settings = choose_settings(data, config, model, overrides, options, start_from, resume, new_folder=new_folder)
    with join_processes(settings.train.device, settings.train.batches or (settings.train.batch,)) as distributed:
        console = Console() if distributed.writer and not quiet else None
        splits = _open_splits(settings, console)
        torch.manual_seed(settings.train.seed)
        if resume is not None:
            folder, start = RunFolder(resume), None
        else:
            settings, start, folder = prepare_run(settings, splits, distributed, console, Path(runs), name)
        with explained(folder), closing(Log(folder.log if distributed.writer else None, console)) as log:
            page = ReportPage(folder.path, splits[1])
            every = (*standard_recorders(folder, log), page, *recorders) if distributed.writer else ()
            trainer = Trainer(settings, splits, folder, log, distributed, Recorders(every, log.say), page.scored)
            if start is None:
                resume_run(trainer)
            else:
                begin(trainer, start)
            detector, metrics = trainer.fit()
            if distributed.writer:
                announce_end(trainer, detector, metrics)
            return Run(folder.path, metrics, trainer.rows)


def _open_splits(settings: Settings, console: Console | None) -> Splits:
    """Open the images to train on and those to validate on. A terminal shows the progress of decoding."""
    path = str(settings.data.path)
    if console is None:
        return open_splits(path, settings.data)
    with console.status("reading images") as status:
        return open_splits(
            path, settings.data, lambda done, images: status.update(f"read {done:,} of {images:,} images")
        )
