"""The folder of an audit.

audit.yaml           what is audited, and how; an audit of the same continues in the folder
config.yaml          the settings with which the data are read
folds/N/             annotations of the images that fold N trains on and predicts, in COCO format
runs/fold-N-1/       the training of fold N
predictions/N.json   the detections of fold N; there is one file if a detector was given
audit.json           the ranked suggestions
audit.jpg            a picture of the first ones
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rcnn.config import Settings, read, to_yaml, yaml_tree
from rcnn.config.files import MB, read_text
from rcnn.data.dataset import Dataset
from rcnn.errors import DataError, SettingsError
from rcnn.images.sources import MARK, mark_results
from rcnn.metrics.types import Prediction
from rcnn.weights.file import atomic_write

MAX_BYTES = 1000 * MB
"""Maximum size of a file of predictions, bytes."""


class AuditPlan(NamedTuple):
    """What is audited, and how.

    Attributes:
        data: path of the data.
        preset: model that the folds train; empty if a detector was given.
        folds: their number.
        overrides: texts that change the settings.
        digest: of the names of the images and of their labels.
        names: classes of a given detector, by which the labels are read; empty if there was none.
    """

    data: str
    preset: str
    folds: int
    overrides: tuple[str, ...]
    digest: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> "AuditPlan":
        """Return the plan in the content of a file.

        Raises:
            ValueError: it is none.
        """
        values: list[Any] = [tree.get(key) for key in cls._fields]
        data, preset, folds, overrides, digest, names = values
        lists = isinstance(overrides, list) and isinstance(names, list)
        words = [data, preset, digest, *(overrides + names if lists else [None])]
        if type(folds) is not int or folds < 1 or not all(isinstance(word, str) for word in words):
            raise ValueError(f"expected the keys {', '.join(cls._fields)}")
        return cls(data, preset, folds, tuple(overrides), digest, tuple(names))


class AuditFolder:
    """Paths and files of one audit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self.suggestions = path / "audit.json"
        self._plan, self._config = path / "audit.yaml", path / "config.yaml"

    @property
    def exists(self) -> bool:
        """Whether there is an audit, finished or not."""
        return self._plan.is_file()

    @classmethod
    def new(cls, data: str | Path) -> "AuditFolder":
        """Create a new folder in `runs/audit`, with the name of the data."""
        name = Path(data).resolve().stem
        for number in count(1):
            folder = Path("runs/audit", name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return cls(folder)
        raise AssertionError("unreachable: count() never ends")

    def claim(self, plan: AuditPlan, settings: Settings) -> None:
        """Create the folder for this audit with these settings, or check that it holds this audit.

        Raises:
            SettingsError: it holds something else, or an audit of other data or with other settings.
        """
        tree = {**plan._asdict(), "overrides": list(plan.overrides), "names": list(plan.names)}
        if not self._plan.exists():
            if self.path.exists() and (not self.path.is_dir() or any(e.name != MARK for e in self.path.iterdir())):
                raise SettingsError(f"{self.path}: is not empty, and holds no audit; give a new or empty folder")
            self.path.mkdir(parents=True, exist_ok=True)
            mark_results(self.path)
            atomic_write(self._config, to_yaml(settings).encode())
            atomic_write(self._plan, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())
            return
        before = self._read_plan()
        different = [key for key, value in tree.items() if before.get(key) != value]
        if different == ["digest"]:
            raise SettingsError(f"{self.path}: the data have changed since this audit began; give a new folder")
        if different:
            texts = (f"{key} {before.get(key)!r:.80}, now {tree[key]!r:.80}" for key in different if key != "digest")
            raise SettingsError(f"{self.path}: holds another audit ({'; '.join(texts)}); give a new folder")

    def read(self) -> tuple[AuditPlan, Settings]:
        """Return the plan of a finished audit, and the settings with which its data were read.

        Raises:
            SettingsError: there is no audit here, or it is not finished, or its files can't be read.
        """
        try:
            plan = AuditPlan.of(self._read_plan())
        except ValueError as error:
            raise SettingsError(f"{self._plan}: can't be read as the plan of an audit: {error}") from None
        done = sum(self._predictions(number).exists() for number in range(1, plan.folds + 1))
        if done < plan.folds:
            raise SettingsError(
                f"{self.path}: this audit is not finished: {done} of {plan.folds} folds are predicted; to continue it, "
                f"repeat its `rcnn data audit` command with --out {self.path}"
            )
        return plan, read(self._config)

    def _read_plan(self) -> dict[str, Any]:
        """Return the content of the plan.

        Raises:
            SettingsError: it can't be read.
        """
        try:
            tree = yaml_tree.load(read_text(self._plan, MB))
        except (OSError, ValueError) as error:
            raise SettingsError(f"{self._plan}: can't be read as the plan of an audit: {error}") from None
        return tree if isinstance(tree, dict) else {}

    def fold(self, number: int) -> Path:
        """Return the folder of the annotations of a fold, counted from 1."""
        return self.path / "folds" / str(number)

    def read_predictions(self, number: int, images: int) -> list[Prediction] | None:
        """Return the predictions of a fold with so many images; None if there are none yet.

        Raises:
            DataError: they can't be read.
        """
        file = self._predictions(number)
        if not file.exists():
            return None
        try:
            found = [
                Prediction(
                    np.array(row["boxes"], np.float32).reshape(-1, 4),
                    np.array(row["scores"], np.float32),
                    np.array(row["labels"], np.int64),
                )
                for row in json.loads(read_text(file, MAX_BYTES))
            ]
            if len(found) != images or any(len({*map(len, prediction)}) > 1 for prediction in found):
                raise ValueError(f"expected the predictions of {images} images")
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{file}: can't be read as predictions: {error}; delete it to predict again") from None
        return found

    def write_predictions(self, number: int, predictions: Sequence[Prediction]) -> None:
        """Write the predictions of a fold, with hundredths of pixels."""
        rows = [
            {
                "boxes": prediction.boxes.astype(np.float64).round(2).tolist(),
                "scores": prediction.scores.astype(np.float64).round(5).tolist(),
                "labels": prediction.labels.tolist(),
            }
            for prediction in predictions
        ]
        file = self._predictions(number)
        file.parent.mkdir(exist_ok=True)
        atomic_write(file, json.dumps(rows).encode())

    def _predictions(self, number: int) -> Path:
        return self.path / "predictions" / f"{number}.json"


def digest_of(dataset: Dataset) -> str:
    """Return a hash of the names of the images and classes, and of the labels."""
    digest = hashlib.sha256("\n".join([*dataset.names, *dataset.records.names()]).encode(errors="surrogatepass"))
    for array in (dataset.records.counts, dataset.records.boxes, dataset.records.labels, dataset.records.ignore):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
