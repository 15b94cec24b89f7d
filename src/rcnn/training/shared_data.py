"""Read the data of a training once per host: one process reads, the others map what it has read into memory."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rcnn.config import Data
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_splits
from rcnn.data.saved import load_datasets, save_datasets
from rcnn.training.distributed import FAILURES, Distributed
from rcnn.training.log import shown_progress

Splits = tuple[Dataset, Dataset]


def read_data(settings: Data, distributed: Distributed, console: Console | None) -> Splits:
    """Return the training images and the validation images, as `open_shared` does.

    Args:
        settings: `path` and how it is read.
        distributed: processes that train together; all of them must call this function.
        console: console that shows the progress. None: no progress is shown.
    """
    with shown_progress(console, "reading images", "read") as progress:
        return open_shared(distributed, lambda: open_splits(str(settings.path), settings, progress))


def open_shared(
    distributed: Distributed, open_data: Callable[[], Splits], environment: Mapping[str, str] = os.environ
) -> Splits:
    """Return the training images and the validation images, which the first process of each host reads.

    `torchrun` numbers the processes of a host in LOCAL_RANK. Without it, every process reads. So do the other
    processes of a host if its temporary folder is full, or if they have another one.

    Args:
        distributed: processes that train together; all of them must call this function.
        open_data: reads both.
        environment: variables of this process.

    Raises:
        DataError, SettingsError, StorageError, OSError: `open_data` failed in one of the processes; all of them raise
            its error.
    """
    if distributed.world == 1:
        return open_data()
    splits: Splits | None = None
    error: Exception | None = None
    file: Path | None = None
    reader = _reader(distributed.rank, environment)
    with TemporaryDirectory(prefix="rcnn-data-", ignore_cleanup_errors=True) as folder:
        if reader == distributed.rank:
            try:
                splits = open_data()
            except FAILURES as failure:
                error = failure
            else:
                if environment.get("LOCAL_WORLD_SIZE", "1") != "1":
                    with suppress(OSError):
                        save_datasets(Path(folder) / "splits.safetensors", splits)
                        file = Path(folder) / "splits.safetensors"
        _raise_first(distributed, error)
        files = distributed.gather(file)
        if splits is None:
            splits = _mapped(files[reader])
        if splits is None:
            try:
                splits = open_data()
            except FAILURES as failure:
                error = failure
        _raise_first(distributed, error)  # after this, every process has opened its file
    assert splits is not None
    return splits


def _reader(rank: int, environment: Mapping[str, str]) -> int:
    """Return the process that reads for a process. The processes of a host have consecutive numbers."""
    local = environment.get("LOCAL_RANK", "")
    is_known = local.isdecimal() and "LOCAL_WORLD_SIZE" in environment
    return rank - int(local) if is_known and int(local) <= rank else rank


def _mapped(file: Path | None) -> Splits | None:
    """Return what another process has saved; None if it has not, or if this process has another temporary folder."""
    if file is None or not file.exists():
        return None
    train, val = load_datasets(file, mapped=True)
    return train, val


def _raise_first(distributed: Distributed, error: Exception | None) -> None:
    """Raise the first error of all processes in every process."""
    for other in distributed.gather(error):
        if other is not None:
            raise other
