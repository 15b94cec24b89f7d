"""One folder of results as a page shows it, read from the files in it.

A file that is missing, incomplete or damaged affects only its own part of the page, which shows a note instead.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from rcnn.config import Settings, dump, read
from rcnn.config.files import MB, check_regular, read_text
from rcnn.errors import DataError, SettingsError
from rcnn.presets import PRESETS, settings_of
from rcnn.report.parts import PARTS, ExperimentPart, WhyPart
from rcnn.report.scores import MAX_FILE_BYTES, Number, Plain, Scores, read_plain

PATH_SETTINGS = ("data.path", "data.cache", "train.init", "train.proposals")
"""Settings that may hold paths of this machine; a page shows only their last part."""

MAX_EPOCHS = 5000
"""Number of epochs that are drawn, the last ones."""

_ROW = TypeAdapter(dict[str, Number | str])
_T = TypeVar("_T")


class Environment(Plain):
    """The part of environment.json that a page shows."""

    command: str = ""
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    processor: str = ""
    threads: int | None = None
    cuda: tuple[str, ...] = ()
    model: str | None = None


@dataclass
class Subject:
    """A folder of results.

    Attributes:
        folder: its path.
        settings: from config.yaml.
        environment: command and versions.
        rows: metrics of the epochs.
        scores: of the best weights.
        why: where objects are lost.
        experiments: of the paper, by name.
        pictures: name of a file -> its content, a WebP.
        notes: part of the page -> why it is missing or incomplete.
    """

    folder: Path
    settings: Settings | None = None
    environment: Environment | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: Scores | None = None
    why: WhyPart | None = None
    experiments: dict[str, ExperimentPart] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        """The name of the folder, after the name of the command unless this is a training."""
        if self.trained:
            return self.name
        kinds = {"paper": self.experiments, "why": self.why, "val": self.scores}
        return next((f"{kind}: {self.name}" for kind, result in kinds.items() if result), self.name)

    @property
    def trained(self) -> bool:
        """Whether this is the folder of a training."""
        return (self.folder / "train.txt").exists() or bool(self.rows)

    def add(self, other: "Subject") -> None:
        """Add the scores, lost objects and pictures of another folder of results."""
        self.scores, self.why = other.scores or self.scores, other.why or self.why
        self.pictures = other.pictures if other.scores else self.pictures


def read_subject(folder: Path) -> Subject:
    """Read a folder of results.

    Raises:
        SettingsError: it does not exist, or has no files that a page is made from.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: there is no such folder; give one of a run, such as runs/train/data-1")
    subject, parts = Subject(folder), folder / PARTS
    subject.environment = _part(subject, folder / "environment.json", "about", partial(read_plain, kind=Environment))
    subject.scores = _part(subject, parts / "scores.json", "scores", partial(read_plain, kind=Scores))
    subject.why = _part(subject, folder / "why.json", "why", partial(read_plain, kind=WhyPart))
    for path in sorted(parts.glob("paper-*.json")):
        if experiment := _part(subject, path, "paper", partial(read_plain, kind=ExperimentPart)):
            subject.experiments[path.stem.removeprefix("paper-")] = experiment
    subject.settings = _part(subject, folder / "config.yaml", "settings", read)
    _read_rows(subject)
    _read_pictures(subject)
    if not (subject.settings or subject.rows or subject.scores or subject.why or subject.experiments):
        if subject.notes:
            raise SettingsError("\n".join(subject.notes.values()))
        raise SettingsError(
            f"{folder}: nothing to report: there is no config.yaml, metrics.jsonl, why.json or {PARTS}/ in it. "
            "Give a folder that rcnn train, val, why or paper wrote"
        )
    return subject


def changes(settings: Settings) -> list[tuple[str, str, str]]:
    """Return the settings that differ from the defaults of their preset, as (key, value, default)."""
    preset = settings.model.preset
    known = preset in PRESETS or preset.startswith("timm/")
    defaults = flat(settings_of(preset) if known else Settings())
    return [(key, value, defaults[key]) for key, value in flat(settings).items() if value != defaults[key]]


def flat(settings: Settings) -> dict[str, str]:
    """Return `section.key` -> value as text. `PATH_SETTINGS` are cut to their last part."""
    texts = {}
    for section, values in dump(settings).items():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = f"{section}.{key}"
            is_path = isinstance(value, str) and name in PATH_SETTINGS
            texts[name] = Path(value).name if is_path else "none" if value is None else str(value)
    return texts


def _part(subject: Subject, path: Path, part: str, read_file: Callable[[Path], _T]) -> _T | None:
    """Return the content of a file for a part of the page; None without the file, or if it is damaged, with a note."""
    if not path.exists():
        return None
    try:
        return read_file(path)
    except (DataError, SettingsError) as error:
        subject.notes[part] = str(error)
        return None


def _read_rows(subject: Subject) -> None:
    """Read metrics.jsonl, and leave out lines that are incomplete or damaged."""
    path = subject.folder / "metrics.jsonl"
    if not path.exists():
        return
    try:
        lines = read_text(path, MAX_FILE_BYTES).splitlines()
    except (OSError, ValueError) as error:
        subject.notes["curves"] = f"{path.name} can't be read: {error}"
        return
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            subject.rows.append({"epoch": number, **_ROW.validate_json(line)})
        except ValidationError:
            damaged.append(number)
    subject.rows = subject.rows[-MAX_EPOCHS:]
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        subject.notes["curves"] = (
            f"Left out, since they are incomplete: lines {which} of {path.name}. The run is still writing, or was "
            "interrupted while it wrote."
        )


def _read_pictures(subject: Subject) -> None:
    """Read the WebP files that are named in the parts of the page."""
    shown = [picture.file for picture in subject.scores.pictures] if subject.scores else []
    shown += [experiment.picture for experiment in subject.experiments.values() if experiment.picture]
    for file in shown:
        path = subject.folder / PARTS / file
        try:
            check_regular(path, MB)
            content = path.read_bytes()
        except OSError:
            continue
        if re.match(rb"RIFF....WEBP", content, re.DOTALL):
            subject.pictures[file] = content
