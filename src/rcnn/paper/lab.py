"""Where experiments are done: trains each model once, keeps it, and scores detectors on the chosen images."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from rcnn.config import Settings, override, to_yaml
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, open_dataset
from rcnn.data.proposals.search import EDGE_BOXES
from rcnn.detector import Detector
from rcnn.errors import Interrupted
from rcnn.paper.ledger import Ledger
from rcnn.training import checkpoint
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import stages_of, takes_proposals
from rcnn.training.train import train
from rcnn.weights.file import atomic_write, kept


class Training(NamedTuple):
    """A model that an experiment trains once per seed, however many rows are measured on it.

    Attributes:
        name: part of its folder's name.
        changes: changes of the settings.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A finished training: its run folder."""

    folder: Path

    @property
    def best(self) -> Path:
        """Weights of the best epoch; of the last with `train.keep=last`."""
        return kept(RunFolder(self.folder).weights)

    def stage(self, number: int) -> Path:
        """Weights of stage 1, 2 or 3 of alternating training, likewise."""
        return kept(RunFolder(self.folder).stage(number))

    @property
    def minutes(self) -> float:
        """Time that its steps took."""
        return RunFolder(self.folder).rows()[-1]["seconds"] / 60


def classes_of(settings: Settings) -> tuple[str, ...]:
    """Classes of the images that are trained on.

    Raises:
        DataError: the data can't be read, or is faulty.
    """
    data = settings.data
    return open_dataset(str(data.path), cast(Split, data.train), data, decode=False).names


class Lab:
    """Trains and opens what an experiment measures.

    Args:
        settings: of every training, before its own changes.
        folder: for the run folders of trainings, `folder/runs`, which experiments share: a training is known by its
            settings, and done once.
        split: images that are scored: train, val or test.
        say: called with a sentence before each step.
        quiet: whether trainings print nothing.
    """

    def __init__(
        self, settings: Settings, folder: Path, split: str, say: Callable[[str], None], *, quiet: bool = False
    ) -> None:
        self.settings, self.folder, self.split, self.say, self.quiet = settings, folder, split, say, quiet
        self._runs = folder / "runs"
        self._runs.mkdir(parents=True, exist_ok=True)
        self._finished = Ledger(self._runs / "trainings.csv", ("digest",))

    @cached_property
    def dataset(self) -> Dataset:
        """The images that are scored, with the classes of those that are trained on."""
        data = self.settings.data
        name = data.val if self.split == "val" else self.split
        return open_dataset(str(data.path), cast(Split, name), data, classes_of(self.settings))

    def of(self, training: Training, seed: int) -> Settings:
        """The whole settings of a training."""
        settings = override(override(self.settings, training.changes), {"train": {"seed": seed}})
        if not takes_proposals(settings.train.scheme):
            settings = override(settings, {"train": {"proposals": None}})
        if settings.train.proposals != EDGE_BOXES:  # a model file that is given later changes no other training
            settings = override(settings, {"data": {"edge_model": None}})
        return settings

    def train(self, training: Training, seed: int) -> Trained:
        """A training, done here and now unless it was done before; one that was broken off goes on.

        Raises:
            TrainingError: it failed.
            Interrupted: Ctrl-C.
        """
        settings = self.of(training, seed)
        text = to_yaml(settings)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        if (digest,) in self._finished:
            return Trained(self._runs / self._finished.rows[digest,]["folder"])
        name = f"{training.name}-{seed}-{digest}"
        config = self._runs / f"{name}.yaml"
        atomic_write(config, text.encode())
        begun = self._begun(name)
        epochs = settings.train.epochs * len(stages_of(settings))
        how = f", going on with {begun}" if begun else ""
        self.say(f"training {training.name}, seed {seed}: {epochs} epochs{how}")
        try:
            run = train(config=config, runs=self._runs, name=name, resume=begun, quiet=self.quiet)
        except Interrupted:
            raise Interrupted("interrupted; the same command goes on where it stopped") from None
        done = Trained(run.folder)
        row = {"digest": digest, "training": training.name, "seed": seed, "epochs": epochs}
        self._finished.add({**row, "minutes": done.minutes, "folder": run.folder.name})
        for state in RunFolder(run.folder).checkpoints.iterdir():  # the largest files, and of no more use
            state.unlink()
        return done

    def load(self, weights: Path) -> Detector:
        """A detector on the settings' device."""
        return Detector.load(weights, self.settings.train.device)

    def _begun(self, name: str) -> Path | None:
        """The run folder to go on with, if any."""
        folders = self._runs.glob(f"{name}-*/")
        begun = max(folders, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
        return begun if begun and checkpoint.latest(RunFolder(begun).checkpoints) else None
