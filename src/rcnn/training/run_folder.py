"""The folder of a run: its settings, its results, and everything needed to resume it.

config.yaml          all settings; `rcnn train --config` repeats the run with them
environment.json     versions, machine, threads, command
faults.txt           faults of the data that were mended or left out, one per line
train.txt, val.txt   names of the images of each list
weights/             detectors: best.safetensors (not with train.keep=last), last.safetensors
checkpoints/         step-N.safetensors: the state of training
metrics.jsonl        one row per epoch; results.csv: the same rows as a table
log.txt              messages
plots/               pictures
report.html          the report of the run; report/: its scores and pictures
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
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
from rcnn.images.storage import Location, check_local, lies_in, location, normal, shown
from rcnn.training.distributed import Distributed
from rcnn.training.ownership import owned
from rcnn.weights.file import atomic_write, kept

PACKAGES = ("rcnn", "torch", "torchvision", "numpy", "pillow", "safetensors")
LOGS = ("metrics.jsonl", "log.txt")
MAX_NAME_LENGTH, MAX_LOG_BYTES = 100, 100 * MB
"""Maximum length of the name of a run, for which file systems allow 255 bytes, and maximum size of metrics.jsonl."""
_ROW = TypeAdapter(dict[str, Annotated[float, Field(allow_inf_nan=False)] | int | bool | str | None])


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
        config: file of the settings.
        weights: folder of last.safetensors, and of best.safetensors without `train.keep=last`.
        checkpoints: folder of the training states.
        plots: folder of the pictures.
        proposals: folder of the external proposals.
        metrics: file with one row of JSON per epoch.
        table: file with the same rows as a table.
        history: picture of the same rows.
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
        """Create the folder `parent/name-N`, with N one above the highest that exists."""
        suffixes = [entry.name.removeprefix(f"{name}-") for entry in parent.glob(f"{escape(name)}-*")]
        for number in count(1 + max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)):
            try:
                (parent / f"{name}-{number}").mkdir(parents=True)
            except FileExistsError:  # another run has created it in the meantime
                continue
            folder = cls(parent / f"{name}-{number}")
            mark_results(folder.path)
            for part in (folder.weights, folder.checkpoints, folder.plots):
                part.mkdir()
            return folder
        raise AssertionError("unreachable: count() never ends")

    def owned(self, distributed: Distributed) -> AbstractContextManager[None]:
        """Own the folder in a block, so that no second training writes into it.

        Raises:
            SettingsError: another training owns it.
        """
        return owned(self.path, distributed)

    def describe(self, settings: Settings, train: Dataset, val: Dataset) -> None:
        """Write the files of settings, machine, faults of the data and names of the images."""
        faults = dict.fromkeys(map(str, (*train.faults, *val.faults)))  # both lists may report the same file
        files = {
            self.config.name: to_yaml(settings),
            "environment.json": json.dumps(environment(), indent=2) + "\n",
            "faults.txt": "".join(f"{fault}\n" for fault in faults),
            **lists(train, val),
        }
        for file, text in files.items():
            atomic_write(self.path / file, text.encode(errors="surrogateescape"))

    def see_same_data(self, train: Dataset, val: Dataset) -> None:
        """Check that the images and classes are the same as when the run started.

        Raises:
            DataError: their names differ.
        """
        for file, text in lists(train, val).items():
            if (self.path / file).read_bytes() != text.encode(errors="surrogateescape"):
                raise DataError(
                    f"{train.root}: the names differ from those in {self.path / file}, with which the run started. "
                    "Restore them, or start a new run from its weights: rcnn train DATA --init "
                    f"{self.weights / 'last.safetensors'}"
                )

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text.rstrip() + "\n")

    @property
    def kept(self) -> Path:
        """Weights of the best epoch, or of the last one with `train.keep=last`."""
        return kept(self.weights)

    def stage(self, number: int) -> Path:
        """Return the folder of the weights and proposals of a stage, 1, 2, ...."""
        return self.path / "stages" / str(number)

    def weights_of_stage(self, number: int, stages: int) -> Path:
        """Return the folder of the weights of a stage, counted from 1; for the last one this is `weights`."""
        return self.weights if number == stages else self.stage(number)

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl.

        Raises:
            DataError: a line is not a row that a run writes.
        """
        if not self.metrics.exists():
            return []
        rows: list[dict[str, Any]] = []
        try:
            for line in read_text(self.metrics, MAX_LOG_BYTES).splitlines():
                rows.append(_ROW.validate_json(line))
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"{self.metrics}:{len(rows) + 1}: this is not a row that a run writes: {reason}. Repair it, or "
                "delete the file to continue without the earlier rows"
            ) from None
        return rows

    def log_lengths(self) -> dict[str, int]:
        """Return file name -> length in bytes, after a sync to the disk."""
        lengths = {}
        for name in LOGS:
            with (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
                lengths[name] = file.tell()
        return lengths

    def cut_logs(self, lengths: Mapping[str, int]) -> None:
        """Cut off everything that was logged after a checkpoint; a log that is shorter stays as it is."""
        for name in LOGS:
            path = self.path / name
            if path.exists() and path.stat().st_size > lengths.get(name, 0):
                os.truncate(path, lengths.get(name, 0))


RUNS = Path("runs/train")
"""Default folder of run folders."""


def check_name(name: str | None) -> None:
    """Check the name of a run, unless it is None.

    Raises:
        SettingsError: it is not the name of a folder, or is too long.
    """
    if name is not None and (not name.isprintable() or Path(name).name != name or len(name) > MAX_NAME_LENGTH):
        raise SettingsError(
            f"--name {shorten(name)}: this is not the name of a folder: no `/`, at most {MAX_NAME_LENGTH} characters"
        )


def check_folder(path: str | Path) -> None:
    """Check that a run folder, or the folder of run folders, is a path.

    Raises:
        SettingsError: it is an address.
    """
    check_local(path, "a run folder")


def data_name(path: str, root: Location) -> str:
    """Return the name of the data of a run: that of the folder of its data, even if `path` is a file or folder in it.

    Args:
        path: `data.path`.
        root: folder of the data set.
    """
    given, root = location(path), normal(root)
    return (given if lies_in(root, given) else root).name or "data"


def lists(train: Dataset, val: Dataset) -> dict[str, str]:
    """Return file name -> text with one name per line: the images of both splits, and the classes in order."""
    names = {
        "train.txt": [*train.records.names()],
        "val.txt": [*val.records.names()],
        "classes.txt": train.names,
    }
    return {file: "".join(f"{name}\n" for name in entries) for file, entries in names.items()}


def environment() -> dict[str, Any]:
    """Return the versions, machine, threads and command of this process."""
    program = Path(sys.argv[0]).name
    return {
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "command": shlex.join(["rcnn" if program == "__main__.py" else program, *map(shown, sys.argv[1:])]),
    }
