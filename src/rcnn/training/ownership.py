"""One training per run folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.locks import lock
from rcnn.training.distributed import Distributed


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
