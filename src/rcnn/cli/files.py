"""Folders and files that commands write their results to."""

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn.errors import SettingsError
from rcnn.images.sources import MARK, is_below_results, mark_results
from rcnn.images.storage import Location

if TYPE_CHECKING:
    from rcnn.data.dataset import Dataset


def folder_name(data: Location) -> str:
    """Return the name of a folder for results on a data set: that of the data set."""
    return data.resolve().name if isinstance(data, Path) else data.name or data.host or "data"


def fresh_folder(out: Path) -> Path:
    """Create `out`, or `out-2`, `out-3`, ... if it is taken, and mark it as results, which are never read as data.

    The folder belongs to the process that creates its mark, so that two commands never write into the same one.
    """
    out = out if out.name not in ("", "..") else out.resolve()
    for number in itertools.count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        with suppress(FileExistsError):  # a file of that name, or another command was faster
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                mark_results(folder, "x")
                return folder
    raise AssertionError("unreachable: count() never ends")


def new_file(out: Path, suffixes: Sequence[str]) -> Path:
    """Return `out`, the file to write, after checking its name.

    Raises:
        SettingsError: the file already exists, or has none of the suffixes.
    """
    if out.suffix not in suffixes:
        raise SettingsError(f"--out {out}: the name must end in {' or '.join(suffixes)}")
    if os.path.lexists(out):
        raise SettingsError(f"{out} already exists; move it away or give another name with --out")
    return out


def outside_data(out: Path, dataset: "Dataset") -> Path:
    """Return `out`, the file to write, after checking that it is not among the images and labels of a data set.

    Raises:
        SettingsError: it is in the data set's folder, but not in a folder of results, or next to one of its images.
    """
    if not isinstance(dataset.root, Path):
        return out
    folder, root = out.parent.resolve(), dataset.root.resolve()
    image_folders = {os.path.dirname(str(record.path)) for record in dataset.records}
    inside = folder.is_relative_to(root) and not is_below_results(folder, root)
    if inside or any(folder == Path(path).resolve() for path in image_folders):
        raise SettingsError(f"--out {out}: is in the data set {dataset.root}, which is never written to")
    return out


def empty_folder(out: Path) -> Path:
    """Return `out`, the folder to write into, after checking that it is new or empty.

    Raises:
        SettingsError: it is neither.
    """
    if not _is_free(out):
        raise SettingsError(f"--out {out}: already exists and is not empty; give a new or empty folder")
    return out


def _is_free(folder: Path) -> bool:
    """Return True if the path doesn't exist or is an empty folder."""
    return not os.path.lexists(folder) or (folder.is_dir() and all(entry.name == MARK for entry in folder.iterdir()))
