"""`rcnn.train`: from a data set to a run folder with a trained detector."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from rich.console import Console

from rcnn.training.configure import choose_settings
from rcnn.training.distributed import join_processes
from rcnn.training.elastic import Elastic, open_run
from rcnn.training.ending import explained
from rcnn.training.log import Log
from rcnn.training.ownership import only_training
from rcnn.training.recorders import Recorder, Recorders
from rcnn.training.recorders.report_page import ReportPage
from rcnn.training.recorders.standard import standard_recorders
from rcnn.training.run import Run
from rcnn.training.run_folder import RUNS, RunFolder, check_folder, check_name
from rcnn.training.shared_data import read_data
from rcnn.training.start import begin, resume_run
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
        data: folder, COCO json, data.yaml or csv, or the address of one. None: `data.path` of `config`.
        config: path of a `config.yaml`, whose run is repeated. None: the preset `model`.
        model: name of a preset, or timm/NAME. None: mobilenet-fpn.
        start_from: detector to fine-tune, given as for `rcnn.load`: its network, preprocessing and weights.
        overrides: `section.key=value` texts that change the settings.
        resume: run folder to resume with its own settings; only the options `epochs` and `workers` are allowed, and no
            `name` or `runs`.
        name: the run folder is `runs/name-N`. None: the name of the data.
        runs: folder of run folders.
        quiet: print nothing.
        recorders: receive the numbers of the run, after the recorders of the run folder. One that fails is dropped.
        **options: settings of the section `train` by name (`epochs=30`), `imgsz`, `on_fault`, `workers`, `holdout`.

    Raises:
        SettingsError: a setting is wrong, arguments contradict each other, another training owns the run folder
            or is running in this process.
        DataError: the data can't be read, or have faults.
        StorageError: remote data can't be reached, or may not be read, before training begins.
        WeightsError: the weights to start from, or a checkpoint, can't be used.
        TrainingError: a loss is not finite, the disk is full, or remote data can no longer be read; the last checkpoint
            is named.
        Interrupted: Ctrl-C; the state is saved.
    """
    check_name(name)
    check_folder(runs if resume is None else resume)
    new_folder = name is not None or Path(runs) != RUNS
    settings = choose_settings(data, config, model, overrides, options, start_from, resume, new_folder=new_folder)
    elastic = Elastic.of(os.environ, Path(runs)) if resume is None else None
    with (
        only_training(),
        join_processes(
            settings.train.device, settings.train.batches or (settings.train.batch,), settings.train.timeout
        ) as distributed,
        ExitStack() as stack,
    ):
        if resume is not None:
            stack.enter_context(RunFolder(resume).owned(distributed))
        console = Console() if distributed.writer and not quiet else None
        splits = read_data(settings.data, distributed, console)
        torch.manual_seed(settings.train.seed)
        if resume is not None:
            folder, start = RunFolder(resume), None
        else:
            run = open_run(settings, splits, distributed, console, Path(runs), name, elastic)
            settings, start, folder = stack.enter_context(run)
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
