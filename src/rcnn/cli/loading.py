"""Load a detector for a command, and set up the processes that share the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rcnn
from rcnn.detector import Detector
from rcnn.engine.files import is_exported
from rcnn.evaluate import Shard
from rcnn.training.distributed import Team, team


def load_detector(model: str, changes: Sequence[str], device: str, asked: str | None = None) -> Detector:
    """Load the detector of a weights file or name (see `rcnn.load`), and apply `section.key=value` changes to it.

    Args:
        model: file or name.
        changes: to its settings.
        device: of this process.
        asked: what the user asked for; an exported file runs on the CPU, whatever was chosen for the process.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: as for `Detector.with_settings`.
    """
    detector = rcnn.load(model, device=asked or "auto" if is_exported(model) else device)
    return detector.with_settings(changes) if changes else detector


@contextmanager
def sharing(device: str | None) -> Iterator[tuple[Team, Shard]]:
    """Provide the processes that torchrun started, or this one alone, and this process's share of the images."""
    with team(device or "auto") as processes:
        yield processes, Shard(processes.rank, processes.world, processes.gather)
