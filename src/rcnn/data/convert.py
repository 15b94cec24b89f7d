"""Copy a data set into another format. Image files are copied byte for byte, and lists are kept."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rcnn.data.dataset import Dataset
from rcnn.data.formats.known import WRITERS
from rcnn.errors import SettingsError
from rcnn.images.storage import Location, check_local


def convert(data: Dataset | Sequence[Dataset], format: str, out: str | Path) -> list[str]:
    """Copy some lists of one data set into a format of `WRITERS`. Return remarks on what the format can't hold.

    Raises:
        SettingsError: `out` is not empty or lies inside the data set, or the format is unknown.
        OSError: the copy can't be written, for example because the disk is full; no partial copy is left.
    """
    datasets = [data] if isinstance(data, Dataset) else list(data)
    if format not in WRITERS:
        raise SettingsError(f"unknown format `{format}`; choose {', '.join(WRITERS)}")
    check_local(out, "a copy of a data set")
    out, root = Path(out), datasets[0].root
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: the folder is not empty; give a new or empty folder")
    if isinstance(root, Path) and out.resolve().is_relative_to(root.resolve()):
        raise SettingsError(f"{out}: lies inside the data set {root}, which is never written to")
    out.mkdir(parents=True, exist_ok=True)
    try:
        return WRITERS[format].write(datasets, out, _file_names(datasets))
    except BaseException:  # Ctrl-C too: a partial copy looks like a complete one
        shutil.rmtree(out, ignore_errors=True)
        raise


def _file_names(datasets: Sequence[Dataset]) -> dict[Location, str]:
    """Choose a file name for every image, no two with the same stem."""
    names: dict[Location, str] = {}
    stems: set[str] = set()
    for record in (record for dataset in datasets for record in dataset.records):
        if record.path in names:
            continue
        stem, suffix = os.path.splitext(record.path.name)
        choices = [stem, os.path.splitext(record.name)[0].replace("../", "").replace("/", "_")]
        choices += [f"{stem}_{number}" for number in range(2, len(stems) + 3)]
        stem = next(choice for choice in choices if choice.casefold() not in stems)
        stems.add(stem.casefold())
        names[record.path] = stem + suffix
    return names
