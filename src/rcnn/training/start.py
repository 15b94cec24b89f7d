"""Start a new run, with a run folder and a first model, or resume a run from its last checkpoint."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rcnn.config import Settings, override, read, to_yaml
from rcnn.data.loading.windows import training_windows
from rcnn.presets import build
from rcnn.training.checkpoint import latest, read_stage, restore
from rcnn.training.distributed import Distributed, once
from rcnn.training.init import Start, initialise
from rcnn.training.proposals import external_proposals, proposal_files, save_proposals
from rcnn.training.run_folder import RunFolder, data_name
from rcnn.training.run_pictures import draw_start
from rcnn.training.schemes import stages_of
from rcnn.training.settle import settle
from rcnn.training.stages import Progress, Splits, TrainState, begin_stage
from rcnn.training.summary import announce_start
from rcnn.training.trainer import Trainer
from rcnn.weights.file import atomic_write


def prepare_run(
    settings: Settings,
    splits: Splits,
    distributed: Distributed,
    console: Console | None,
    make: Callable[[str], RunFolder],
) -> tuple[Settings, Start, RunFolder]:
    """Return the settings of a new run, adapted to the data and the weights, its first model, and its folder.

    Args:
        settings: settings that the user has chosen.
        splits: training images and validation images.
        distributed: processes that train together.
        console: console that shows the progress. None: no progress is shown.
        make: makes the folder in process 0, given the name of the data.
    """
    train_set = splits[0]
    proposals = external_proposals(settings, splits, distributed, console)
    settings, notes = once(distributed, lambda: settle(settings, training_windows(train_set, settings)))
    start = initialise(stages_of(settings)[0].model_settings(settings), train_set.names)
    settings, start = override(settings, start.changes), replace(start, notes=(*notes, *start.notes))
    name = data_name(str(settings.data.path), train_set.root)
    folder = RunFolder(distributed.share(make(name).path if distributed.writer else Path()))
    if proposals is not None and distributed.writer:
        folder.proposals.mkdir(exist_ok=True)
        for file, of_split in zip(proposal_files(folder.proposals), proposals, strict=True):
            save_proposals(file, of_split)
    distributed.meet()  # wait until the writer has written the files
    return settings, start, folder


def begin(trainer: Trainer, start: Start) -> None:
    """Prepare the first stage of a new run, describe the run on the console and in its folder, and save the state."""
    trainer.state = _stage(trainer, Progress(), start)
    if not trainer.distributed.writer:
        return
    trainer.folder.describe(trainer.settings, *trainer.splits)
    announce_start(trainer, start.notes)
    trainer.announce_stage()
    trainer.save_checkpoint()
    _draw_start(trainer)


def resume_run(trainer: Trainer) -> None:
    """Prepare the stage of the last checkpoint, and drop everything that was logged after it."""
    folder, settings, log = trainer.folder, trainer.settings, trainer.log
    trainer.distributed.resumable(folder.path)
    stages = stages_of(settings)
    # The file that process 0 finds: a network file system may show another process an older folder.
    path = trainer.distributed.share(latest(folder.checkpoints))
    assert path is not None
    progress = Progress(stage=read_stage(path, len(stages)))
    settings = stages[progress.stage].model_settings(settings)
    trainer.state = _stage(trainer, progress, Start(build(settings, len(trainer.splits[0].names)), settings))
    folder.see_same_data(*trainer.splits)
    lengths = restore(path, trainer.state)
    if trainer.distributed.writer:
        folder.cut_logs(lengths)
        log.say(f"resuming {folder.path} after step {trainer.state.progress.step}")
        if changed := _change_epochs(trainer):
            log.say(changed)
        trainer.announce_stage()
        if trainer.state.progress.stage == trainer.state.progress.step == 0:  # the run ended before its first step
            _draw_start(trainer)
    trainer.distributed.meet()  # wait until the writer has cut the rows
    trainer.rows.extend(folder.rows())


def _draw_start(trainer: Trainer) -> None:
    """Draw the first pictures of a run, which are complete before its first step."""
    loader = trainer.state.loader
    loader.report = trainer.log.say
    draw_start(trainer.folder.plots, loader)


def _stage(trainer: Trainer, progress: Progress, start: Start) -> TrainState:
    splits, folder, distributed = trainer.splits, trainer.folder, trainer.distributed
    return begin_stage(trainer.settings, progress, splits, folder, distributed, trainer.log.status, start)


def _change_epochs(trainer: Trainer) -> str | None:
    """Write a new number of epochs to config.yaml and keep the old file beside it.

    Returns:
        A sentence about the new schedule. None: the number has not changed, and nothing was written.
    """
    folder, train = trainer.folder, trainer.settings.train
    written = read(folder.config)
    before = written.train.epochs
    if before == train.epochs:
        return None
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (folder.path / f"config-epochs-{before}{suffix}.yaml" for suffix in suffixes)
    old = next(path for path in paths if not path.exists())
    atomic_write(old, folder.config.read_bytes())
    text = to_yaml(override(written, {"train": {"epochs": train.epochs}}))
    atomic_write(folder.config, text.encode(errors="surrogateescape"))
    step = trainer.state.progress.step
    return (
        f"{train.epochs} epochs instead of {before} (the old settings are in {old.name}): the {train.schedule} "
        f"schedule is computed anew, and the learning rate continues at {trainer.state.learning_rate(step):.2g} "
        f"after step {step}"
    )
