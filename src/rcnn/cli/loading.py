"""Load a detector and open a data set for a command."""

from collections.abc import Sequence

import rcnn
from rcnn.cli import screen
from rcnn.config.aliases import IMAGE_SIZE
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, open_dataset
from rcnn.detector import Detector
from rcnn.images.storage import Location
from rcnn.runtime.by_suffix import is_exported


def load_detector(model: str, changes: Sequence[str], device: str, requested: str | None = None) -> Detector:
    """Load the detector of a weights file or name (see `rcnn.load`), and apply `section.key=value` changes to it.

    Args:
        model: file or name.
        changes: settings to change.
        device: of this process.
        requested: the device that the user chose; an exported file runs on the CPU in any case.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: as for `Detector.with_settings`.
    """
    detector = rcnn.load(model, device=requested or "auto" if is_exported(model) else device)
    if not changes:
        return detector
    detector = detector.with_settings(changes)
    if any(change.startswith(f"{IMAGE_SIZE}=") for change in changes) and screen.is_first():
        screen.note(screen.sides(detector.settings.preprocess))
    return detector


def open_for(detector: Detector, path: str | Location, split: Split, shown: bool = True) -> Dataset:
    """Open the data set `path` with the detector's classes and settings; if `shown`, print progress and a summary."""
    with screen.progress("reading images", shown) as progress:
        dataset = open_dataset(path, split, detector.settings.data, names=detector.names, progress=progress)
    if shown:
        screen.dataset_line(dataset)
    return dataset
