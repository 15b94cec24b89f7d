"""How a run ends early: Ctrl-C waits for the end of the step, and every message says how to resume."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rcnn.data.loading.loader import lost_worker
from rcnn.errors import Interrupted, TrainingError
from rcnn.training import checkpoint
from rcnn.training.run_folder import RunFolder


@contextmanager
def patient() -> Iterator[threading.Event]:
    """Make Ctrl-C set the event instead of interrupting a step; a second one stops at once."""
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return

    def remember(*_: object) -> None:
        if wanted.is_set():
            raise KeyboardInterrupt
        wanted.set()

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Add to the error of every early end how the run can be resumed."""

    def saved() -> str:
        path = checkpoint.latest(folder.checkpoints)
        return str(path) if path else "none yet"

    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.latest(folder.checkpoints) is None:
            raise Interrupted("interrupted before the first step: start again") from None
        raise Interrupted(f"interrupted. Go on with: rcnn train --resume {folder.path}") from None
    except TrainingError as error:
        raise TrainingError(f"{error}. Last good checkpoint: {saved()}") from None
    except (RuntimeError, ChildProcessError) as error:
        reason = lost_worker(error)
        if reason is None:
            raise
        raise TrainingError(f"{reason}. Go on with: rcnn train --resume {folder.path}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        go_on = f"go on with: rcnn train --resume {folder.path} (last good checkpoint: {saved()})"
        if checkpoint.latest(folder.checkpoints) is None:
            go_on = "start again"
        raise TrainingError(f"{folder.path}: {error.strerror}. Nothing is lost: make room, then {go_on}") from None
