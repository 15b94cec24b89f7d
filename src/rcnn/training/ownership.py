"""One training per run folder, and one at a time per process."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.locks import lock
from rcnn.training.distributed import Distributed

_training = threading.Lock()


@contextlib.contextmanager
def only_training() -> Iterator[None]:
    """Allow one training at a time in this process, whose seeds, precision and signal handlers a training sets.

    Raises:
        SettingsError: another one is running, for example in another thread.
    """
    if not _training.acquire(blocking=False):
        raise SettingsError(
            "another training is running in this process, and both would draw from the same random numbers; wait until "
            "it ends, or start a process for each"
        )
    try:
        yield
    finally:
        _training.release()


@contextlib.contextmanager
def owned(folder: Path, distributed: Distributed) -> Iterator[None]:
    """Own a run folder in the block: rank 0 takes the lock, and all processes learn whether it got it.

    Raises:
        SettingsError: another training owns the folder; the message names its process.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if distributed.writer:
            try:
                stack.enter_context(lock(folder))
            except SettingsError as error:
                refusal = str(error)
        if (refusal := distributed.gather(refusal)[0]) is not None:
            raise SettingsError(refusal)
        yield
