"""A detector for a command: loaded, with settings laid over its own, and the processes that share the work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rcnn
from rcnn.config import SettingsError, override
from rcnn.detector import Detector
from rcnn.evaluate import Shard
from rcnn.presets import build
from rcnn.training.distributed import Team, team


def load_detector(model: str, changes: Sequence[str], device: str) -> Detector:
    """The detector of a weights file or a name (see `rcnn.load`), with `section.key=value` settings laid over its own.

    Raises:
        WeightsError: as `rcnn.load`.
        SettingsError: a setting is wrong, or asks for other layers than the weights are made for.
    """
    detector = rcnn.load(model, device=device)
    if not changes:
        return detector
    settings = override(detector.settings, changes)
    network = build(settings, len(detector.names))
    try:
        network.load_state_dict(detector.model.state_dict())
    except RuntimeError:
        asked = ", ".join(changes)
        raise SettingsError(f"{asked}: the weights are made for other layers; train again with this setting") from None
    return Detector(
        network,
        settings,
        detector.names,
        category_ids=detector.category_ids,
        threshold=detector.threshold,
        summary=detector.summary,
        licence=detector.licence,
        device=detector.device,
    )


@contextmanager
def sharing(device: str | None) -> Iterator[tuple[Team, Shard]]:
    """The processes that torchrun started, or this one alone, and this process's share of the images."""
    with team(device or "auto") as processes:
        yield processes, Shard(processes.rank, processes.world, processes.gather)
