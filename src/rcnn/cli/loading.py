"""Load a detector for a command, and set up the processes that share the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rcnn
from rcnn.cli import screen
from rcnn.config.aliases import IMAGE_SIZE
from rcnn.detector import Detector
from rcnn.evaluate import Shard
from rcnn.runtime.by_suffix import is_exported
from rcnn.training.distributed import Distributed, join_processes


def load_detector(model: str, changes: Sequence[str], device: str, asked: str | None = None) -> Detector:
    """Load the detector of a weights file or name (see `rcnn.load`), and apply `section.key=value` changes to it.

    Args:
        model: file or name.
        changes: to its settings.
        device: of this process.
        asked: the device that the user chose; an exported file runs on the CPU in any case.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: as for `Detector.with_settings`.
    """
    detector = rcnn.load(model, device=asked or "auto" if is_exported(model) else device)
    if not changes:
        return detector
    detector = detector.with_settings(changes)
    if any(change.startswith(f"{IMAGE_SIZE}=") for change in changes) and screen.is_first():
        screen.note(screen.sides(detector.settings.preprocess))
    return detector


@contextmanager
def sharing(device: str | None) -> Iterator[tuple[Distributed, Shard]]:
    """Provide the processes that torchrun started, or this one alone, and this process's share of the images."""
    with join_processes(device or "auto") as processes:
        yield processes, Shard(processes.rank, processes.world, processes.gather)
