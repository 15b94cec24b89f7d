"""Early ends of a run: Ctrl-C takes effect after the current step, and every message names the command to resume."""

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
    """Make Ctrl-C set the event instead of interrupting a step; a second Ctrl-C stops immediately."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(*_: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Add the way to resume the run to the message of every early end."""
    resume = f"rcnn train --resume {folder.path}"
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.latest(folder.checkpoints) is None:
            raise Interrupted("interrupted before the first step: start again") from None
        raise Interrupted(f"interrupted. Resume with: {resume}") from None
    except TrainingError as error:
        saved = checkpoint.latest(folder.checkpoints) or "none yet"
        raise TrainingError(f"{error}. Last good checkpoint: {saved}") from None
    except (RuntimeError, ChildProcessError) as error:
        reason = lost_worker(error)
        if reason is None:
            raise
        raise TrainingError(f"{reason}. Resume with: {resume}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        saved = checkpoint.latest(folder.checkpoints)
        remedy = f"resume with: {resume} (last good checkpoint: {saved})" if saved else "start again"
        raise TrainingError(f"{folder.path}: {error.strerror}. Nothing is lost: free space, then {remedy}") from None
