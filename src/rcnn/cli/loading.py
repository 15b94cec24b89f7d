"""A detector for a command: loaded, with settings laid over its own, and the processes that share the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rcnn
from rcnn.detector import Detector
from rcnn.evaluate import Shard
from rcnn.training.distributed import Team, team


def load_detector(model: str, changes: Sequence[str], device: str) -> Detector:
    """The detector of a weights file or a name (see `rcnn.load`), with `section.key=value` settings laid over its own.

    Raises:
        WeightsError: as `rcnn.load`.
        SettingsError: as `Detector.with_settings`.
    """
    detector = rcnn.load(model, device=device)
    return detector.with_settings(changes) if changes else detector


@contextmanager
def sharing(device: str | None) -> Iterator[tuple[Team, Shard]]:
    """The processes that torchrun started, or this one alone, and this process's share of the images."""
    with team(device or "auto") as processes:
        yield processes, Shard(processes.rank, processes.world, processes.gather)
