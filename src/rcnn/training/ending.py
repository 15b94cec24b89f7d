"""Early ends of a run: every message names the command to resume."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from rcnn.data.loading.loader import lost_worker
from rcnn.errors import DataError, ImageError, Interrupted, StorageError, TrainingError
from rcnn.signals import termination_interrupts
from rcnn.training import checkpoint
from rcnn.training.distributed import lost_process
from rcnn.training.run_folder import RunFolder


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """Add the way to resume the run to the message of every early end."""
    resume = f"rcnn train --resume {folder.path}"
    try:
        with termination_interrupts():
            yield
    except KeyboardInterrupt as error:
        reason, code = str(error) or "interrupted", getattr(error, "exit_code", Interrupted.exit_code)
        saved = checkpoint.latest(folder.checkpoints) is not None
        remedy = f". Resume with: {resume}" if saved else " before the first step: start again"
        raise Interrupted(reason + remedy, code) from None
    except TrainingError as error:
        saved = checkpoint.latest(folder.checkpoints) or "none yet"
        raise TrainingError(f"{error}. Last good checkpoint: {saved}") from None
    except (RuntimeError, ChildProcessError) as error:
        reason = lost_worker(error) or lost_process(error)
        if reason is None:
            raise
        remedy = "Start again" if checkpoint.latest(folder.checkpoints) is None else f"Resume with: {resume}"
        raise TrainingError(f"{reason}. {remedy}") from None
    except (OSError, StorageError, ImageError, DataError) as error:
        fault = lost_worker(error) or str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            fault = f"{folder.path}: {error.strerror}. Nothing is lost: free space first"
        saved = checkpoint.latest(folder.checkpoints)
        remedy = f"Resume with: {resume} (last good checkpoint: {saved})" if saved else "Start again"
        kind = TrainingError if isinstance(error, OSError | StorageError) else type(error)
        raise kind(f"{fault}. {remedy}") from None
