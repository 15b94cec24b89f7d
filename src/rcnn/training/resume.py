"""The settings of a run that is resumed, perhaps for another number of epochs than it began with."""

import itertools
from collections.abc import Mapping

from rcnn.config import Settings, override, read, to_yaml
from rcnn.errors import SettingsError
from rcnn.training import checkpoint
from rcnn.training.loop import Progress
from rcnn.training.optim import learning_rate
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import stages_of
from rcnn.training.session import finished
from rcnn.weights.file import atomic_write


def run_settings(folder: RunFolder, options: Mapping[str, object]) -> Settings:
    """The settings of a run that is resumed. Of the options, `workers` and `epochs` count.

    Raises:
        SettingsError: it has no checkpoint, or can't be trained for that many epochs; the message says what to do.
        WeightsError: the checkpoint is damaged.
    """
    if folder.path.is_dir() and checkpoint.latest(folder.checkpoints) is None:
        again = f"--config {folder.config}" if folder.config.exists() else "DATA"
        raise SettingsError(
            f"{folder.path} holds no checkpoint to go on from: its run ended before the first step. "
            f"Start it anew: rcnn train {again}"
        )
    settings = read(folder.config)
    if settings.data.path is None:
        raise SettingsError(f"{folder.config}: `data.path` is missing, so nothing says what to train on; put it back")
    loading = {key: value for key, value in options.items() if key == "workers"}
    training = {key: value for key, value in options.items() if key == "epochs"}
    wanted = override(settings, {"data": loading, "train": training})
    if wanted.train.epochs != settings.train.epochs:
        _check_epochs(folder, settings, wanted)
    return wanted


def _check_epochs(folder: RunFolder, settings: Settings, wanted: Settings) -> None:
    """Check that a run can go on for another number of epochs.

    Raises:
        SettingsError: it has several stages, has begun as many epochs, or was stopped by its patience.
        WeightsError: the checkpoint is damaged.
        DataError: metrics.jsonl is.
    """
    epochs = wanted.train.epochs
    again = f"start a new run from its weights: rcnn train DATA --init {folder.path} --epochs N"
    if len(stages_of(settings)) > 1:
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} is a run of {len(stages_of(settings))} stages "
            f"(train.scheme={settings.train.scheme}), each of {settings.train.epochs} epochs, which can't be changed "
            f"any more. Leave --epochs out, or {again}"
        )
    path = checkpoint.latest(folder.checkpoints)
    assert path is not None
    progress = checkpoint.progress(path)
    begun = progress.epoch + (progress.place > 0)
    if epochs <= begun:
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} has begun epoch {begun} of {settings.train.epochs}; "
            f"give more than {begun}"
        )
    if finished(_validated(folder, settings), wanted):
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} was stopped after {begun} epochs, because none of the last "
            f"{settings.train.patience} was better than those before (train.patience). "
            f"To train on all the same, {again}"
        )


def _validated(folder: RunFolder, settings: Settings) -> Progress:
    """Where a run stands by its rows: a checkpoint is made before the validation of its epoch."""
    (stage,) = stages_of(settings)
    name, progress = stage.decided_by(settings), Progress()
    for row in folder.rows():
        progress.epoch = row["epoch"]
        if name in row and (progress.best_ap is None or row[name] is None or row[name] > progress.best_ap):
            progress.best_ap, progress.best_epoch = row[name], progress.epoch
    return progress


def change_epochs(folder: RunFolder, settings: Settings, progress: Progress, total: int) -> str | None:
    """Write a new number of epochs into config.yaml and keep the old file beside it.

    Args:
        folder: of the run.
        settings: of the run, with the new number.
        progress: where the run stands.
        total: its steps, with the new number.

    Returns:
        A sentence about the new schedule; None: the number is not new, and nothing was written.
    """
    before, train = read(folder.config).train.epochs, settings.train
    if before == train.epochs:
        return None
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    kept = next(path for end in ends if not (path := folder.path / f"config-epochs-{before}{end}.yaml").exists())
    atomic_write(kept, folder.config.read_bytes())
    text = to_yaml(override(read(folder.config), {"train": {"epochs": train.epochs}}))
    atomic_write(folder.config, text.encode(errors="surrogateescape"))
    rate = learning_rate(progress.step, total, train)
    return (
        f"{train.epochs} epochs instead of {before} ({kept.name} keeps the settings before): the {train.schedule} "
        f"schedule is computed anew, and the learning rate goes on at {rate:.2g} after step {progress.step}"
    )
