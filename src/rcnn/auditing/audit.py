"""`rcnn.audit`: rank the labels of a data set that may be wrong, by detectors that have not learned them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.auditing.folder import AuditFolder, AuditPlan, digest_of
from rcnn.auditing.folds import assign_folds, train_fold
from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.detector import Detector
from rcnn.diagnose.label_errors import KINDS, Suggestion, find_suggestions, question
from rcnn.errors import SettingsError, check_number
from rcnn.evaluate import evaluate
from rcnn.images.storage import RemotePath, check_local
from rcnn.metrics.types import Prediction, Truth
from rcnn.open_model import load, names_weights
from rcnn.presets import settings_of
from rcnn.training.configure import DEFAULT_MODEL
from rcnn.weights.file import atomic_write

FOLDS = 5
"""Number of folds, unless chosen."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Suggested changes of the labels of a data set.

    Attributes:
        folder: of the audit.
        settings: with which the data were read.
        dataset: the audited images, of all lists.
        predictions: one per image.
        suggestions: the most likely first.
    """

    folder: Path
    settings: Settings
    dataset: Dataset
    predictions: tuple[Prediction, ...]
    suggestions: tuple[Suggestion, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of suggestions of each kind."""
        kinds = [suggestion.kind for suggestion in self.suggestions]
        return {kind: kinds.count(kind) for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        """Return the suggestions as plain JSON values."""
        records = self.dataset.records
        entries = [self._entry(suggestion) for suggestion in self.suggestions]
        return {"images": len(records), "labels": len(records.labels), "counts": self.counts, "suggestions": entries}

    def truth(self, image: int) -> Truth:
        """Return the labels of an image."""
        record = self.dataset.records[image]
        return Truth(record.boxes, record.labels, record.ignore)

    def _entry(self, suggestion: Suggestion) -> dict[str, Any]:
        record, about, names = self.dataset.records[suggestion.image], suggestion.truth, self.dataset.names
        entry = {
            "image": record.name,
            "kind": suggestion.kind,
            "question": question(suggestion, self.truth(suggestion.image), names),
            "score": round(suggestion.score, 4),
            "class": names[suggestion.label],
            "box": suggestion.box.round(2).tolist(),
        }
        if about >= 0:
            entry["labelled"] = {"class": names[record.labels[about]], "box": record.boxes[about].round(2).tolist()}
        return entry


def audit(
    data: str | Path,
    folder: str | Path | None = None,
    *,
    folds: int = FOLDS,
    model: Detector | str | Path | None = None,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Rank the labels of a data set that may be wrong: missing, of another class, badly placed, or without an object.

    A detector repeats the errors of the labels that it has learned, so each fold of the images is predicted by a
    detector that is trained on the others. An interrupted audit is continued by the same call with its folder.

    Args:
        data: folder, COCO json, data.yaml or csv, on this machine. All its lists are audited together.
        folder: a new or empty folder, or that of an audit to continue. None: a new folder in `runs/audit`.
        folds: number of folds, 2 to 20.
        model: a preset to train on the folds, or a detector, or what `rcnn.load` accepts: it predicts all images, and
            should have been trained on others. None: mobilenet-fpn, trained on the folds.
        overrides: `section.key=value` texts for the data and the trainings, such as `train.epochs=20`, or
            `data.group=(patient[0-9]+)_`, which keeps the images of a group in one fold.
        say: called with a sentence before each step. None: nothing is printed, and trainings are quiet.
        progress: called with (batches done, batches in total) while images are predicted.

    Raises:
        SettingsError: a setting is wrong, or the folder holds something else, or the audit of other data or settings.
        DataError: the data can't be read, or have too few images for the folds.
        WeightsError: as for `rcnn.load`.
        TrainingError, Interrupted: as for `rcnn.train`; what is finished is kept.
    """
    check_number("folds", folds, 2, 20, kind=Integral)
    if folder is not None:
        check_local(folder, "the folder of an audit")
    detector, preset = _detector_or_preset(model)
    changes = [text for text in overrides if detector is None or text.startswith("data.")]
    settings = override(detector.settings if detector else settings_of(preset), changes)
    dataset = open_dataset(data, "all", settings.data, names=detector.names if detector else None)
    if isinstance(dataset.root, RemotePath):
        raise SettingsError(f"{data}: an audit trains on local images; download the data and give their folder")
    names = detector.names if detector else ()
    plan = AuditPlan(str(data), preset, 1 if detector else folds, tuple(overrides), digest_of(dataset), names)
    fold_of = _folds_of(dataset, plan, settings)
    where = AuditFolder.new(data) if folder is None else AuditFolder(Path(folder))
    where.claim(plan, settings)
    if say and detector is None:
        say(f"{where.path}: if this is interrupted, the same command with --out {where.path} continues")
    predictions: list[Prediction] = []
    for number in range(1, plan.folds + 1):
        held_out = replace(dataset, split="val", records=dataset.records.select(fold_of == number - 1))
        found = where.read_predictions(number, len(held_out))
        if found is None:
            others = replace(dataset, split="train", records=dataset.records.select(fold_of != number - 1))
            if say and detector is None:
                say(f"fold {number} of {folds}: {len(others)} images to train on, {len(held_out)} to predict")
            of_fold = detector or train_fold(where, number, (others, held_out), plan, quiet=say is None)
            where.write_predictions(number, evaluate(of_fold, held_out, losses=False, progress=progress).predictions)
            found = where.read_predictions(number, len(held_out))  # rounded, as when the audit is opened again
        predictions += found or []
    result = _result(where.path, settings, dataset, fold_of, predictions)
    text = json.dumps({"data": str(data), **result.to_json()}, ensure_ascii=False, indent=1)
    atomic_write(where.suggestions, f"{text}\n".encode())
    return result


def open_audit(folder: str | Path) -> Audit:
    """Return the finished audit in a folder, whose data are read again. No model is loaded.

    Raises:
        SettingsError: there is no audit, or it is not finished, or the data have changed since.
        DataError: the data or the predictions can't be read.
    """
    where = AuditFolder(Path(folder))
    plan, settings = where.read()
    dataset = open_dataset(plan.data, "all", settings.data, names=plan.names or None)
    if digest_of(dataset) != plan.digest:
        raise SettingsError(f"{folder}: the data ({plan.data}) have changed since this audit; audit them again")
    fold_of = _folds_of(dataset, plan, settings)
    predictions: list[Prediction] = []
    for number, images in enumerate(np.bincount(fold_of, minlength=plan.folds).tolist(), 1):
        predictions += where.read_predictions(number, images) or []
    return _result(where.path, settings, dataset, fold_of, predictions)


def _folds_of(dataset: Dataset, plan: AuditPlan, settings: Settings) -> np.ndarray:
    """Return the fold of each image, (N,) int64 from 0; one fold if a detector was given.

    Raises:
        SettingsError, DataError: as for `assign_folds`.
    """
    if not plan.preset:
        return np.zeros(len(dataset), np.int64)
    labels = [record.labels for record in dataset.records]
    return assign_folds([*dataset.records.names()], labels, plan.folds, settings.data.group)


def _result(
    folder: Path, settings: Settings, dataset: Dataset, fold_of: np.ndarray, predictions: Sequence[Prediction]
) -> Audit:
    """Return the audit with these predictions, which are given fold by fold."""
    places = np.argsort(np.argsort(fold_of, kind="stable"))
    ordered = [predictions[place] for place in places.tolist()]
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in dataset.records]
    suggestions = find_suggestions(truths, ordered, len(dataset.names))
    return Audit(folder, settings, dataset, tuple(ordered), tuple(suggestions))


def _detector_or_preset(model: Detector | str | Path | None) -> tuple[Detector | None, str]:
    """Return the detector that predicts all images, or the name of the preset to train on folds."""
    if isinstance(model, Detector):
        return model, ""
    if model is not None and (names_weights(str(model)) or Path(model).is_dir()):
        return load(model), ""
    return None, DEFAULT_MODEL if model is None else str(model)
