"""The folder of experiments: trains each model once, keeps it, and records results in CSV files."""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

from rcnn.config import Settings, override, to_yaml
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, open_dataset
from rcnn.data.proposals.search import EDGE_BOXES
from rcnn.detector import Detector
from rcnn.errors import Interrupted, SettingsError
from rcnn.training.checkpoint import latest
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import stages_of, takes_proposals
from rcnn.training.train import train
from rcnn.weights.file import atomic_write, kept

Value = str | int | float


class ResultsTable:
    """A CSV file to which rows are added. It is complete at any time, and its first columns are the key of a row.

    Args:
        path: the file; it is created with the first row.
        key: names of the key's columns.

    Raises:
        SettingsError: the file exists and is not such a table.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if not set(key) <= row.keys() or None in row or None in row.values():
                        raise SettingsError(f"{path}: not a table of results; move it away, or choose another --name")
                    self.rows[tuple(row[name] for name in key)] = row

    def __contains__(self, key: tuple[Value, ...]) -> bool:
        return tuple(map(str, key)) in self.rows

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows.values())

    def add(self, *rows: Mapping[str, Value]) -> None:
        """Add rows, all of them or none."""
        for row in rows:
            cells = {name: str(value) for name, value in row.items()}
            self.rows[tuple(cells[name] for name in self.key)] = cells
        text = StringIO()
        columns = list(dict.fromkeys(column for row in self for column in row))
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        atomic_write(self.path, text.getvalue().encode())


class Training(NamedTuple):
    """A model that an experiment trains once per seed, for one row or several.

    Attributes:
        name: part of its folder's name.
        changes: changes of the settings.
        stage: 1, 2 or 3 for the weights of this stage of alternating training; None for the final weights.
    """

    name: str
    changes: Mapping[str, Any]
    stage: int | None = None


def minutes_of(run: RunFolder) -> float:
    """Return the time of all training steps of a finished run."""
    return run.rows()[-1]["seconds"] / 60


def training_set(settings: Settings) -> Dataset:
    """Return the training images, which are not decoded.

    Raises:
        DataError: the data can't be read, or is faulty.
    """
    data = settings.data
    return open_dataset(str(data.path), cast(Split, data.train), data, decode=False)


class Workspace:
    """Trains and loads the models that experiments measure.

    Args:
        settings: settings of every training, before its own changes.
        folder: folder of the experiments, which share its run folders in `folder/runs`: a training is identified by
            its settings and run once.
        split: images that are scored: train, val or test.
        say: called with a sentence before each step.
        quiet: whether trainings print nothing.
    """

    def __init__(
        self, settings: Settings, folder: Path, split: str, say: Callable[[str], None], *, quiet: bool = False
    ) -> None:
        self.settings, self.split, self.say, self.quiet = settings, split, say, quiet
        self._runs = folder / "runs"
        self._runs.mkdir(parents=True, exist_ok=True)
        self._finished = ResultsTable(self._runs / "trainings.csv", ("digest",))

    @cached_property
    def dataset(self) -> Dataset:
        """The scored images, with the classes of the training images."""
        data = self.settings.data
        name = data.val if self.split == "val" else self.split
        return open_dataset(str(data.path), cast(Split, name), data, training_set(self.settings).names)

    def settings_of(self, training: Training, seed: int) -> Settings:
        """Return all settings of a training."""
        settings = override(override(self.settings, training.changes), {"train": {"seed": seed}})
        if not takes_proposals(settings.train.scheme):
            settings = override(settings, {"train": {"proposals": None}})
        if settings.train.proposals != EDGE_BOXES:  # a model file that is given later changes no other training
            settings = override(settings, {"data": {"edge_model": None}})
        return settings

    def train(self, training: Training, seed: int) -> RunFolder:
        """Return the run folder of a training, which is run unless it is finished; an interrupted one is resumed.

        Raises:
            TrainingError: it failed.
            Interrupted: Ctrl-C.
        """
        settings = self.settings_of(training, seed)
        text = to_yaml(settings)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        if (digest,) in self._finished:
            return RunFolder(self._runs / self._finished.rows[digest,]["folder"])
        name = f"{training.name}-{seed}-{digest}"
        config = self._runs / f"{name}.yaml"
        atomic_write(config, text.encode())
        unfinished = max(
            self._runs.glob(f"{name}-*/"), key=lambda path: int(path.name.rpartition("-")[2]), default=None
        )
        resume = unfinished if unfinished and latest(RunFolder(unfinished).checkpoints) else None
        stages = len(stages_of(settings))
        epochs = "" if settings.train.steps else settings.train.epoch_count * stages
        length = settings.train.length + (f" in each of {stages} stages" if stages > 1 else "")
        resumed = f", resuming {resume}" if resume else ""
        self.say(f"training {training.name}, seed {seed}: {length}{resumed}")
        try:
            if resume:
                run = train(resume=resume, quiet=self.quiet)
            else:
                run = train(config=config, runs=self._runs, name=name, quiet=self.quiet)
        except Interrupted as error:
            raise Interrupted("interrupted; run the same command again to continue", error.exit_code) from None
        folder = RunFolder(run.folder)
        row = {"digest": digest, "training": training.name, "seed": seed, "epochs": epochs}
        self._finished.add({**row, "minutes": minutes_of(folder), "folder": run.folder.name})
        for state in folder.checkpoints.iterdir():  # the largest files, no longer needed
            state.unlink()
        return folder

    def load(self, training: Training, seed: int) -> Detector:
        """Return the detector of a training, which is run unless it is finished, on the settings' device.

        The weights are those of the best epoch; of the last one with `train.keep=last`.
        """
        run = self.train(training, seed)
        weights = run.weights if training.stage is None else run.stage(training.stage)
        return Detector.load(kept(weights), self.settings.train.device)
