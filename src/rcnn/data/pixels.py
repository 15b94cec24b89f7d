"""Decode every image before long work begins, to find damaged files and unusual pixels."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rcnn.config import Data
from rcnn.config.files import unfit_name
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.image_checks import ImageChecks, ProgressCallback
from rcnn.errors import ImageError
from rcnn.images.decode import Look
from rcnn.images.storage import RemotePath, normal

_TWELVE_BIT = 4096


def decode_images(
    datasets: Sequence[Dataset], settings: Data, checks: ImageChecks, progress: ProgressCallback | None = None
) -> list[Dataset]:
    """Return the data sets without the images that can't be decoded, with faults and notes added.

    Images that are left out for other faults are decoded too, so that all faults are reported together.

    Args:
        datasets: lists of one data set; images that they share are decoded once.
        settings: `white` is read.
        checks: decodes the images that have not been decoded before.
        progress: called with (images done, images to decode).
    """
    files = [_files(dataset) for dataset in datasets]
    names = {path: name for own in files for path, name in own.items()}
    outcomes = dict(zip(names, checks.looks([*names], progress), strict=True))
    damaged = {path: outcome for path, outcome in outcomes.items() if isinstance(outcome, ImageError)}
    notes = _notes({names[path]: look for path, look in outcomes.items() if isinstance(look, Look)}, settings)
    datasets = [_without(damaged, dataset, own) for dataset, own in zip(datasets, files, strict=True)]
    return [replace(dataset, notes=(*dataset.notes, *notes)) for dataset in datasets[:1]] + datasets[1:]


def _files(dataset: Dataset) -> dict[str, str]:
    """Return path -> name of the images in use, and of those left out for a fault outside their file."""
    unreadable = {fault.where for fault in dataset.faults if fault.kind != "mendable"}
    left_out = dict.fromkeys(fault.image for fault in dataset.faults if fault.image is not None)
    files = dict(zip(dataset.records.paths(), dataset.records.names(), strict=True))
    files |= {path: name for name in left_out if (path := _file_left_out(dataset, name)) is not None}
    return {path: name for path, name in files.items() if path not in unreadable}


def _file_left_out(dataset: Dataset, name: str) -> str | None:
    """Return the path of an image that is left out, if there is such a file; a remote one must be in the data set."""
    if unfit_name(name):
        return None
    path = normal(dataset.root / name)
    if isinstance(path, RemotePath):
        return str(path) if path.is_relative_to(dataset.root) and path.is_file() else None
    return str(path) if os.path.isfile(path) else None


def _without(damaged: Mapping[str, ImageError], dataset: Dataset, files: Mapping[str, str]) -> Dataset:
    """Return the data set without its damaged images, and with a fault for each of them, before the other faults."""
    faults = [
        Fault(path, str(damaged[path]).removeprefix(f"{path}: "), "damaged", name)
        for path, name in files.items()
        if path in damaged
    ]
    records = dataset.records
    if damaged:
        records = records.select(np.array([path not in damaged for path in records.paths()], bool))
    return replace(dataset, records=records, faults=(*faults, *dataset.faults))


def _notes(looks: Mapping[str, Look], settings: Data) -> list[str]:
    """Return remarks on 16-bit images that look like 12-bit ones, and on transparency."""
    notes = []
    deepest = max((look.largest for look in looks.values() if look.largest is not None), default=None)
    if deepest is not None and deepest < _TWELVE_BIT and settings.white is None:
        notes.append(f"no pixel of the 16-bit images is above {deepest}: are they 12-bit? If so, set data.white=4095")
    transparent = [name for name, look in looks.items() if look.transparent]
    if transparent:
        notes.append(
            f"images with transparent pixels: {len(transparent)}, such as {transparent[0]}; "
            "they get a white background unless preprocess.in_channels is 4"
        )
    return notes
