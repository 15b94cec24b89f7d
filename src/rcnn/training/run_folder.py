"""The folder of a run: what was run, the results, and everything needed to resume.

config.yaml          all settings; running it again repeats the run
environment.json     versions, machine, threads, command
faults.txt           mendable faults of the data, one per line
train.txt, val.txt   names of the images of each list
weights/             best.safetensors (not with train.keep=last), last.safetensors: detectors
checkpoints/         step-N.safetensors: the state of training
metrics.jsonl        one row per epoch; results.csv: the same as a table
log.txt              messages
plots/               pictures
report.html          the page of the run; report/: what it shows of scores, and its pictures
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from glob import escape
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from rcnn.config import Settings, explain, shorten, to_yaml
from rcnn.config.files import MB, read_text
from rcnn.data.dataset import Dataset
from rcnn.errors import DataError, SettingsError
from rcnn.images.sources import mark_results
from rcnn.weights.file import atomic_write, kept

PACKAGES = ("rcnn", "torch", "torchvision", "numpy", "pillow", "safetensors", "faster-coco-eval")
LOGS = ("metrics.jsonl", "log.txt")
LONGEST_NAME, LARGEST_LOG = 100, 100 * MB
"""Characters of the name of a run, of which a file system takes 255 bytes; bytes of metrics.jsonl."""
_ROW = TypeAdapter(dict[str, Annotated[float, Field(allow_inf_nan=False)] | int | bool | str | None])


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
        config: the settings.
        weights: folder of best.safetensors, unless `train.keep=last`, and last.safetensors.
        checkpoints: folder of the training states.
        plots: folder of the pictures.
        proposals: folder of the proposals from elsewhere.
        metrics: one row per epoch, as lines of JSON.
        table: the same rows as a table.
        history: the same rows as a picture.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.weights = self.path / "weights"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.proposals = self.path / "proposals"
        self.metrics = self.path / "metrics.jsonl"
        self.table = self.path / "results.csv"
        self.history = self.plots / "history.png"

    @classmethod
    def create(cls, parent: Path, name: str) -> "RunFolder":
        """A new folder `parent/name-N`, with N one above the highest that exists."""
        taken = [entry.name.removeprefix(f"{name}-") for entry in parent.glob(f"{escape(name)}-*")]
        for number in count(1 + max((int(rest) for rest in taken if rest.isdecimal()), default=0)):
            try:
                (parent / f"{name}-{number}").mkdir(parents=True)
            except FileExistsError:  # another run was faster
                continue
            folder = cls(parent / f"{name}-{number}")
            mark_results(folder.path)
            for part in (folder.weights, folder.checkpoints, folder.plots):
                part.mkdir()
            return folder
        raise AssertionError("unreachable: count() never ends")

    def describe(self, settings: Settings, train: Dataset, val: Dataset) -> None:
        """Write down settings, machine, faults of the data and names of the images."""
        faults = {
            str(fault): None for dataset in (train, val) for fault in dataset.faults
        }  # both lists may report the same file
        files = {
            self.config.name: to_yaml(settings),
            "environment.json": json.dumps(environment(), indent=2) + "\n",
            "faults.txt": "".join(f"{fault}\n" for fault in faults),
            **lists(train, val),
        }
        for file, text in files.items():
            atomic_write(self.path / file, text.encode(errors="surrogateescape"))

    def see_same_data(self, train: Dataset, val: Dataset) -> None:
        """Check that the images and classes are those that the run started with.

        Raises:
            DataError: they are not.
        """
        for file, text in lists(train, val).items():
            if (self.path / file).read_bytes() != text.encode(errors="surrogateescape"):
                raise DataError(
                    f"{train.root}: the names are not those of {self.path / file}, which the run began with. "
                    "Put them back, or start a new run from its weights: rcnn train DATA --init "
                    f"{self.weights / 'last.safetensors'}"
                )

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text.rstrip() + "\n")

    @property
    def kept(self) -> Path:
        """Weights of the best epoch; of the last with `train.keep=last`, which chooses none."""
        return kept(self.weights)

    def stage(self, number: int) -> Path:
        """Folder of the weights and proposals of a stage, 1, 2, ...."""
        return self.path / "stages" / str(number)

    def weights_of_stage(self, number: int, stages: int) -> Path:
        """Return the folder of the weights of a stage, counted from 1. That of the last of `stages` is `weights`."""
        return self.weights if number == stages else self.stage(number)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl.

        Raises:
            DataError: a line is not a row as it was written.
        """
        if not self.metrics.exists():
            return []
        rows: list[dict[str, Any]] = []
        try:
            for line in read_text(self.metrics, LARGEST_LOG).splitlines():
                rows.append(_ROW.validate_json(line))
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"{self.metrics}:{len(rows) + 1}: no row as the run wrote it: {reason}. Mend it, or "
                "delete the file to go on without the rows so far"
            ) from None
        return rows

    def log_lengths(self) -> dict[str, int]:
        """File name -> length in bytes, after a sync to the disk."""
        lengths = {}
        for name in LOGS:
            with (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
                lengths[name] = file.tell()
        return lengths

    def cut_logs(self, lengths: Mapping[str, int]) -> None:
        """Cut off what was logged after a checkpoint; a log that has become shorter stays as it is."""
        for name in LOGS:
            path = self.path / name
            if path.exists() and path.stat().st_size > lengths.get(name, 0):
                os.truncate(path, lengths.get(name, 0))


RUNS = Path("runs/train")
"""Default folder of run folders."""


def check_name(name: str | None) -> None:
    """Check that a run can be called so; None is no name.

    Raises:
        SettingsError: it is not the name of a folder.
    """
    if name is not None and (not name.isprintable() or Path(name).name != name or len(name) > LONGEST_NAME):
        raise SettingsError(
            f"--name {shorten(name)}: a run is named like a folder: no `/`, at most {LONGEST_NAME} characters"
        )


def lists(train: Dataset, val: Dataset) -> dict[str, str]:
    """File -> its text, one name per line: the images of both splits, and the classes in their order."""
    names = {
        "train.txt": [record.name for record in train.records],
        "val.txt": [record.name for record in val.records],
        "classes.txt": train.names,
    }
    return {file: "".join(f"{name}\n" for name in entries) for file, entries in names.items()}


def environment() -> dict[str, Any]:
    """Versions, machine, threads and command of this process."""
    return {
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": shlex.join(_command(sys.argv)),
    }


def _command(words: Sequence[str]) -> list[str]:
    program = Path(words[0]).name
    return ["rcnn" if program == "__main__.py" else program, *words[1:]]
