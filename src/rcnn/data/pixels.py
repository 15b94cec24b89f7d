"""Decode every image before long work begins, to find damaged files and unusual pixels."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rcnn.config import Data
from rcnn.config.files import unfit_name
from rcnn.cores import usable_cores
from rcnn.data.dataset import Dataset, Fault, Records
from rcnn.errors import ImageError
from rcnn.images.decode import Look, verify_image
from rcnn.images.stream import ahead

ProgressCallback = Callable[[int, int], None]
_TWELVE_BIT = 4096


def decode_images(
    datasets: Sequence[Dataset], settings: Data, progress: ProgressCallback | None = None
) -> list[Dataset]:
    """Return the data sets without the images that can't be decoded, with faults and notes added.

    Images that are left out for other faults are decoded too, so that all faults are reported together.

    Args:
        datasets: lists of one data set; images that they share are decoded once.
        settings: `white` and `max_pixels` are read.
        progress: called with (images done, images in total).
    """
    names = {path: name for dataset in datasets for path, name in _files(dataset).items()}
    outcomes: dict[Path, Look | ImageError] = {}

    def look(path: Path) -> Look | ImageError:
        try:
            return verify_image(path, max_pixels=settings.max_pixels)
        except ImageError as error:
            return error

    # Decoding releases Python's lock. The threads silence Pillow's warnings, which changes state that they share. It is
    # restored here.
    with warnings.catch_warnings(), closing(ahead(look, names, usable_cores())) as looks:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for done, (path, outcome) in enumerate(zip(names, looks, strict=True), start=1):
            outcomes[path] = outcome
            if progress is not None:
                progress(done, len(names))
    notes = _notes({names[path]: look for path, look in outcomes.items() if isinstance(look, Look)}, settings)
    datasets = [_without_damaged(dataset, outcomes) for dataset in datasets]
    return [replace(dataset, notes=(*dataset.notes, *notes)) for dataset in datasets[:1]] + datasets[1:]


def _files(dataset: Dataset) -> dict[Path, str]:
    """Return path -> name of the images in use, and of those left out for a fault outside their file."""
    unreadable = {fault.where for fault in dataset.faults if fault.kind != "mendable"}
    left_out = dict.fromkeys(fault.image for fault in dataset.faults if fault.image is not None)
    files = {record.path: record.name for record in dataset.records}
    paths = {Path(os.path.normpath(dataset.root / name)): name for name in left_out if not unfit_name(name)}
    files |= {path: name for path, name in paths.items() if path.is_file()}
    return {path: name for path, name in files.items() if str(path) not in unreadable}


def _without_damaged(dataset: Dataset, outcomes: Mapping[Path, Look | ImageError]) -> Dataset:
    """Return the data set without its damaged images, and with a fault for each of them, before the other faults."""
    faults = [
        Fault(str(path), str(outcome).removeprefix(f"{path}: "), "damaged", name)
        for path, name in _files(dataset).items()
        if isinstance(outcome := outcomes[path], ImageError)
    ]
    damaged = {path for path, outcome in outcomes.items() if isinstance(outcome, ImageError)}
    records = dataset.records
    if damaged:
        records = Records(record for record in records if record.path not in damaged)
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
