"""What a page shows of one folder of results, read from the plain files in it.

A file that is missing, half written or damaged costs its own part of the page: a sentence stands in its place.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from rcnn.config import Settings, dump, read
from rcnn.config.files import MB, check_regular, read_text
from rcnn.errors import DataError, SettingsError
from rcnn.presets import PRESETS, settings_of
from rcnn.report.parts import PARTS, ExperimentPart, WhyPart
from rcnn.report.scores import LARGEST, Number, Plain, Scores, read_plain

PLACES = ("data.path", "train.init", "train.proposals")
"""Settings that may name folders of this machine, of which a page shows the last part."""

MOST_ROWS = 5000
"""Epochs that are drawn, the last ones."""

_ROW = TypeAdapter(dict[str, Number | str])
_Part = TypeVar("_Part", bound=Plain)


class Environment(Plain):
    """What a page shows of environment.json."""

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
        settings: in config.yaml.
        environment: command and versions.
        rows: of the epochs.
        scores: of the weights that are kept.
        why: where objects are lost.
        experiments: of the paper, by name.
        pictures: file -> WebP.
        notes: part of the page -> why it is not all there.
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
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        """The name, after what was done if that is no training."""
        if self.trained:
            return self.name
        kinds = {"paper": self.experiments, "why": self.why, "val": self.scores}
        return next((f"{kind}: {self.name}" for kind, there in kinds.items() if there), self.name)

    @property
    def trained(self) -> bool:
        """True if this is the folder of a training."""
        return (self.folder / "train.txt").exists() or bool(self.rows)

    def add(self, other: "Subject") -> None:
        """Take over the scores, losses of objects and pictures of another folder of results."""
        self.scores, self.why = other.scores or self.scores, other.why or self.why
        self.pictures = other.pictures if other.scores else self.pictures


def read_subject(folder: Path) -> Subject:
    """Read a folder of results.

    Raises:
        SettingsError: it is none, or holds nothing that a page is made from.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: there is no such folder; give one of a run, such as runs/train/data-1")
    subject, parts = Subject(folder), folder / PARTS
    subject.environment = _part(subject, folder / "environment.json", Environment, "about")
    subject.scores = _part(subject, parts / "scores.json", Scores, "scores")
    subject.why = _part(subject, folder / "why.json", WhyPart, "why")
    for path in sorted(parts.glob("paper-*.json")):
        experiment = _part(subject, path, ExperimentPart, "paper")
        if experiment:
            subject.experiments[path.stem.removeprefix("paper-")] = experiment
    _read_settings(subject)
    _read_rows(subject)
    _read_pictures(subject)
    if not (subject.settings or subject.rows or subject.scores or subject.why or subject.experiments):
        if subject.notes:
            raise SettingsError("\n".join(subject.notes.values()))
        raise SettingsError(
            f"{folder}: nothing to report of: there is no config.yaml, metrics.jsonl, why.json or {PARTS}/ in it. "
            "Give a folder that rcnn train, val, why or paper wrote"
        )
    return subject


def changes(settings: Settings) -> list[tuple[str, str, str]]:
    """Settings that differ from the defaults of their preset: key, value, default."""
    preset = settings.model.preset
    named = preset in PRESETS or preset.startswith("timm/")
    default, given = flat(settings_of(preset) if named else Settings()), flat(settings)
    return [(key, value, default[key]) for key, value in given.items() if value != default[key]]


def flat(settings: Settings) -> dict[str, str]:
    """`section.key` -> value as text. Of places on a disk it shows the last part."""
    texts = {}
    for section, below in dump(settings).items():
        for key, value in below.items() if isinstance(below, Mapping) else ():
            name = f"{section}.{key}"
            place = isinstance(value, str) and name in PLACES
            texts[name] = Path(value).name if place else "none" if value is None else str(value)
    return texts


def written(path: Path) -> str:
    """The day that a file was written."""
    return time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime)) if path.exists() else ""


def _part(subject: Subject, path: Path, kind: type[_Part], part: str) -> _Part | None:
    """A file as a part of the page; None, and a note, if it can't be read."""
    if not path.exists():
        return None
    try:
        return read_plain(path, kind)
    except DataError as error:
        subject.notes[part] = str(error)
        return None


def _read_settings(subject: Subject) -> None:
    path = subject.folder / "config.yaml"
    if path.exists():
        try:
            subject.settings = read(path)
        except SettingsError as error:
            subject.notes["settings"] = str(error)


def _read_rows(subject: Subject) -> None:
    """Read metrics.jsonl; lines that are no whole rows are left out."""
    path = subject.folder / "metrics.jsonl"
    if not path.exists():
        return
    try:
        lines = read_text(path, LARGEST).splitlines()
    except (OSError, ValueError) as error:
        subject.notes["curves"] = f"{path.name} can't be read: {error}"
        return
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            row = _ROW.validate_json(line)
            subject.rows.append({"epoch": number, **row})
        except ValidationError:
            damaged.append(number)
    subject.rows = subject.rows[-MOST_ROWS:]
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        subject.notes["curves"] = (
            f"Left out, since they are not whole: lines {which} of {path.name}. The run is being written, or was "
            "broken off while it wrote."
        )


def _read_pictures(subject: Subject) -> None:
    """Read the WebP files that the parts name, and nothing else."""
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
