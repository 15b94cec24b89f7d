"""Divide images into folds, and train a detector for each on the images of the others."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from os.path import abspath

import numpy as np

from rcnn.auditing.folder import AuditFolder, AuditPlan
from rcnn.data.dataset import Dataset
from rcnn.data.formats.coco import as_json
from rcnn.data.groups import groups_of
from rcnn.detector import Detector
from rcnn.errors import DataError, plural
from rcnn.open_model import load
from rcnn.training.run_folder import RunFolder
from rcnn.training.train import train
from rcnn.weights.file import atomic_write

FOLD_SETTINGS = ("train.epochs=10", "train.keep=last", "val.every=100000")
"""Settings of the trainings of folds, unless chosen: the held-out labels choose nothing."""

_READ = ("data.classes", "data.group", "data.train", "data.val", "data.holdout", "data.voc_origin", "data.on_fault")
"""Settings that have been applied to the labels when a fold is trained."""


def assign_folds(
    names: Sequence[str], labels: Sequence[np.ndarray], folds: int, pattern: str | None = None
) -> np.ndarray:
    """Return the fold of each image, (N,) int64 in 0..folds-1, so that each class is spread over all folds.

    Groups are taken in the order of a hash of their names, those with many objects first, and each goes into the fold
    with the fewest objects of its classes so far. The result does not depend on the order of the images.

    Args:
        names: (N,) unique.
        labels: (N,) int arrays: the classes of the objects of each image.
        folds: 2 or more.
        pattern: as for `groups_of`.

    Raises:
        SettingsError, DataError: as for `groups_of`, or there are fewer than two groups for each fold.
    """
    members = defaultdict[str, list[int]](list)
    for index, group in enumerate(groups_of(names, pattern)):
        members[group].append(index)
    if len(members) < 2 * folds:
        what = "image" if pattern is None else "group"
        raise DataError(f"{plural(len(members), what)} are too few for {folds} folds: at least {2 * folds} are needed")
    kinds = max((int(part.max()) + 1 for part in labels if len(part)), default=1)
    counts = {
        group: np.bincount(np.concatenate([labels[i] for i in rows]).astype(np.int64), minlength=kinds)
        for group, rows in members.items()
    }
    share = np.maximum(sum(counts.values(), np.zeros(kinds)), 1)
    order = sorted(counts, key=lambda group: (-(counts[group] / share).sum(), sha256(group.encode()).digest()))
    filled, sizes = np.zeros((folds, kinds)), np.zeros(folds)
    result = np.zeros(len(names), np.int64)
    for group in order:
        cost = (filled / share) @ (counts[group] / share)
        fold = int(np.lexsort((sizes, cost))[0])
        filled[fold] += counts[group]
        sizes[fold] += len(members[group])
        result[members[group]] = fold
    return result


def train_fold(where: AuditFolder, fold: int, lists: Sequence[Dataset], plan: AuditPlan, *, quiet: bool) -> Detector:
    """Return the detector of a fold, numbered from 1, whose training is started or continued."""
    data = where.fold(fold)
    (data / "annotations").mkdir(parents=True, exist_ok=True)
    for dataset in lists:
        paths = {record.path: abspath(str(record.path)) for record in dataset.records}
        atomic_write(data / "annotations" / f"{dataset.split}.json", as_json(dataset, paths).encode())
    name = f"fold-{fold}"
    before = RunFolder(where.runs / f"{name}-1")
    if any(before.checkpoints.glob("*")):
        return load(train(resume=before.path, quiet=quiet).best)
    chosen = {text.partition("=")[0] for text in plan.overrides}
    usual = [text for text in FOLD_SETTINGS if text.partition("=")[0] not in chosen]
    changes = [*usual, *(text for text in plan.overrides if text.partition("=")[0] not in _READ), "data.outside=allow"]
    return load(train(data, model=plan.preset, overrides=changes, name=name, runs=where.runs, quiet=quiet).best)
