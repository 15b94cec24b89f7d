"""What `rcnn look` shows: the detector or the detections, the data, and the runs that its words name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rcnn.cli import arguments, screen
from rcnn.config import read
from rcnn.errors import DataError, SettingsError, WeightsError

if TYPE_CHECKING:
    from rcnn.auditing.folder import AuditFolder
    from rcnn.detector import Detector
    from rcnn.look.finder import KnownDetections
    from rcnn.look.runs import Runs

WEIGHTS = (".safetensors", ".onnx", ".xml", ".pth", ".pt", ".pkl", ".caffemodel")


class Subjects(NamedTuple):
    """What the pages show.

    Attributes:
        load: loads the detector or the detections; None for pictures alone.
        data: data set, folder or picture; None if there is none.
        runs: of the page "Runs".
    """

    load: "Callable[[], Detector | KnownDetections] | None"
    data: Path | None
    runs: "Runs"


def find_subjects(words: list[str], device: str | None) -> Subjects:
    """Return what the words of the command name.

    A run brings the data that it was trained on, and an audit its data and detections. A word that is not a model is
    data, or a folder of runs.

    Raises:
        SettingsError: there are no words, or more than two, or an audit is not finished.
        DataError: there is no such data.
    """
    from rcnn.auditing.folder import AuditFolder
    from rcnn.cli.loading import load_detector
    from rcnn.look.runs import Runs, holds_runs, is_run
    from rcnn.weights.file import weights_of_run

    names, changes = arguments.split(words)
    if not 1 <= len(names) <= 2:
        raise SettingsError(f"give a run or a model, and data; got {len(names)} words: {' '.join(names)}")
    arguments.refuse_addresses(names, "rcnn look shows local data; download it, and give its folder")
    first = Path(names[0])
    if AuditFolder(first).exists:
        return _audit(AuditFolder(first), names[1:], changes)
    run = is_run(first)
    if len(names) == 1 and holds_runs(first):
        return Subjects(None, None, Runs(first))
    default = arguments.RUNS if arguments.RUNS.is_dir() else None
    runs = Runs(Path(os.path.relpath(first.resolve().parent)), first) if run else Runs(default)
    is_model = len(names) == 2 or run or first.suffix in WEIGHTS or not first.exists()
    data = Path(names[-1]) if len(names) == 2 or not is_model else _data_of(first) if run else None
    if data is not None and not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if run and weights_of_run(first) == first:
        screen.note(f"{first}: has no weights yet, so nothing is detected; the first validation writes them")
        is_model = False
    if not is_model:
        return Subjects(None, data, runs)
    if first.suffix in WEIGHTS and not first.exists():
        raise WeightsError(f"{first}: there is no such file")
    return Subjects(lambda: load_detector(names[0], changes, device or "auto"), data, runs)


def _audit(folder: "AuditFolder", names: list[str], changes: list[str]) -> Subjects:
    """Return a function that reads the detections of an audit, its data or those in `names`, and its trainings.

    Raises:
        SettingsError: the audit is not finished, or there are changes of settings.
        DataError: there is no such data.
    """
    from rcnn.auditing.audit import open_audit
    from rcnn.images.storage import local_path
    from rcnn.look.finder import KnownDetections
    from rcnn.look.runs import Runs

    if changes:
        raise SettingsError(f"an audit is shown with its own settings; leave out {' '.join(changes)}")
    audited = Path(folder.read()[0].data)
    if not audited.exists():
        raise DataError(f"{folder.path}: its data ({audited}) does not exist here; run this where the audit was made")
    data = Path(names[0]) if names else audited
    if not data.exists():
        raise DataError(f"{data}: there is no such file or folder")

    def load() -> KnownDetections:
        found = open_audit(folder.path)
        paths = (os.path.abspath(local_path(record.path)) for record in found.dataset.records)
        return KnownDetections(found.settings, found.dataset.names, dict(zip(paths, found.predictions, strict=True)))

    return Subjects(load, data, Runs(folder.runs if folder.runs.is_dir() else None))


def _data_of(run: Path) -> Path | None:
    """Return the data that a run was trained on, or None if it does not exist."""
    path = read(run / "config.yaml").data.path
    if path and Path(path).exists():
        return Path(path)
    screen.note(f"{run}: its data ({path}) does not exist here; give the data as the second word to see its pictures")
    return None
