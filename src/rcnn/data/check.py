"""Check a data set: read all of it, decode every image, and report all faults."""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from rcnn.config import Data
from rcnn.data.dataset import Fault
from rcnn.data.formats.find import find_layout, read_lists
from rcnn.data.image_checks import ImageChecks, ProgressCallback
from rcnn.data.pixels import decode_images
from rcnn.data.stats import Stats, statistics
from rcnn.images.storage import Location, location


@dataclass(frozen=True)
class DataReport:
    """The result of `check`.

    Attributes:
        path: path of the data set, as given.
        format: format of the data set.
        names: class names.
        lists: statistics of each list.
        faults: all faults, of every kind.
        notes: remarks for the user.
    """

    path: str
    format: str
    names: tuple[str, ...]
    lists: dict[str, Stats]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """Number of faults of each kind."""
        kinds = [fault.kind for fault in self.faults]
        return {kind: kinds.count(kind) for kind in ("fatal", "damaged", "mendable")}

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {**self.counts, **asdict(self)}


def check(path: str | Location, settings: Data, progress: ProgressCallback | None = None) -> DataReport:
    """Read every list of a data set and decode every image, also those that were checked before.

    What an earlier check found is not trusted here: a disk may damage a file without changing its times. The outcome is
    remembered for the next training.

    Args:
        path: folder, COCO json, data.yaml or csv, or the address of one.
        settings: how the data are read.
        progress: called with (images done, images in total).

    Raises:
        DataError: no data set is recognised at the path.
        SettingsError, StorageError: as for `open_dataset`.
    """
    layout = find_layout(path)
    with ImageChecks(layout.root, settings, anew=True) as checks:
        datasets, faults = read_lists(path, layout, settings, checks)
        datasets = decode_images(datasets, settings, checks, progress)
    faults += [fault for dataset in datasets for fault in dataset.faults]
    notes = [note for dataset in datasets for note in dataset.notes]
    outside = layout.outside(list(dict.fromkeys(record.path for dataset in datasets for record in dataset.records)))
    if outside:
        notes.append(
            f"{len(outside)} images lie outside {layout.home or layout.root}, such as {outside[0]}; "
            "data.outside=refuse makes that a fault"
        )
    for one, other in combinations(datasets, 2):
        shared = {record.path for record in one.records} & {record.path for record in other.records}
        if shared:
            example = min(shared).name
            notes.append(f"{len(shared)} images are in both `{one.split}` and `{other.split}`, such as {example}")
    return DataReport(
        path=str(location(path)),
        format=layout.format,
        names=datasets[0].names if datasets else (),
        lists={dataset.split: statistics(dataset) for dataset in datasets},
        faults=tuple(dict.fromkeys(faults)),
        notes=tuple(dict.fromkeys(notes)),
    )
