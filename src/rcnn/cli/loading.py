"""Load a detector for a command, and set up the processes that share the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rcnn
from rcnn.detector import Detector
from rcnn.evaluate import Shard
from rcnn.training.distributed import Team, team


def load_detector(model: str, changes: Sequence[str], device: str) -> Detector:
    """Load the detector of a weights file or name (see `rcnn.load`), and apply `section.key=value` changes to it.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: as for `Detector.with_settings`.
    """
    detector = rcnn.load(model, device=device)
    return detector.with_settings(changes) if changes else detector


@contextmanager
def sharing(device: str | None) -> Iterator[tuple[Team, Shard]]:
    """Provide the processes that torchrun started, or this one alone, and this process's share of the images."""
    with team(device or "auto") as processes:
        yield processes, Shard(processes.rank, processes.world, processes.gather)
