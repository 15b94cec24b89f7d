"""The runs in a folder, as they are being trained: read again whenever their files change, and never written to."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcnn.config.files import MB, check_regular
from rcnn.errors import SettingsError, printable
from rcnn.report import view
from rcnn.report.page import compared, values
from rcnn.report.subject import Subject, read_subject
from rcnn.report.templating import environment

MOST = 200
"""Runs that are told, the newest ones."""

MOST_ROWS = 10
"""Epochs that are listed, the last ones."""

SILENT = 600
"""Seconds after which a run that writes nothing is not said to be training."""

LARGEST = 30 * MB
"""Bytes of a picture of a run."""

FILES = (
    "config.yaml",
    "metrics.jsonl",
    "environment.json",
    "why.json",
    "report/scores.json",
    "report.html",
    "log.txt",
    "checkpoints",
    "plots",
)
"""What tells of a run; it is read again when one of these is written."""

PICTURES = {
    "train-batch-1.jpg": "A batch as the network sees it, with augmentation and labels",
    "train-batch-2.jpg": "The next batch",
    "labels.png": "The labels of the training list",
    "val.jpg": "Truth and detections of validation images, at the end",
}
"""Files in plots/ that are shown, and what they are."""

COLUMNS = {"epoch": "epoch", "train_loss": "training loss", **view.SUMMARY}
"""Numbers of an epoch that are listed -> their headings."""

KINDS = {".jpg": ("image/jpeg", b"\xff\xd8\xff"), ".png": ("image/png", b"\x89PNG")}
"""Suffix of a picture -> its type and first bytes."""


def is_run(folder: Path) -> bool:
    """Is this the folder of a training?"""
    return (folder / "config.yaml").is_file() and (folder / "weights").is_dir()


def holds_runs(folder: Path) -> bool:
    """Are there runs in this folder?"""
    return folder.is_dir() and any(is_run(path) for path in folder.iterdir())


class Runs:
    """The runs in a folder; each has a number, by which alone it is asked for.

    Args:
        folder: of run folders; None for none.
        first: the run that is shown at first; None for the newest.
    """

    def __init__(self, folder: Path | None, first: Path | None = None) -> None:
        self.folder, self.first = folder, first.resolve() if first else None
        self._numbers: dict[Path, int] = {}
        self._read: dict[Path, tuple[tuple[int, ...], Subject]] = {}
        self._lock = threading.Lock()

    def table(self) -> dict[str, Any]:
        """A row for each run, the newest first, and the number of the one that is shown at first."""
        with self._lock:
            runs = self._list()
            rows = [self._row(number, folder) for number, folder in runs.items()]
        first = next((number for number, folder in runs.items() if folder.resolve() == self.first), None)
        return {
            "folder": printable(str(self.folder)) if self.folder else "",
            "first": rows[0]["run"] if first is None and rows else first,
            "runs": rows,
        }

    def shown(self, numbers: Sequence[int]) -> str:
        """One run, or several side by side, as HTML.

        Raises:
            KeyError: there is no run of such a number.
        """
        with self._lock:
            runs = self._list()
            chosen = [runs[number] for number in numbers]
            subjects = [self._subject(folder) for folder in chosen]
        parts = [
            {
                **values(subject, place, 0),
                "epochs": _epochs(subject),
                "files": [
                    (f"/api/runs/{number}/pictures/{index}?at={stamp}", text)
                    for index, (file, text) in enumerate(PICTURES.items())
                    if (stamp := _stamp(folder / "plots" / file))
                ],
            }
            for place, (number, folder, subject) in enumerate(zip(numbers, chosen, subjects, strict=True))
        ]
        several = compared(subjects) if len(subjects) > 1 else None
        names = [subject.name for subject in subjects]
        return (
            environment(Path(__file__).parent)
            .get_template("runs-shown.html")
            .render(runs=parts, compared=several, names=names)
        )

    def picture(self, number: int, place: int) -> tuple[bytes, str]:
        """A picture of a run, and its type.

        Raises:
            LookupError: there is no such run or picture.
            OSError: it can't be read, or is none.
        """
        file = list(PICTURES)[place]
        with self._lock:
            path = self._list()[number] / "plots" / file
        kind, start = KINDS[path.suffix]
        check_regular(path, LARGEST)
        content = path.read_bytes()
        if not content.startswith(start):
            raise OSError(f"{file} is no picture")
        return content, kind

    def _list(self) -> dict[int, Path]:
        """Number -> folder, the newest first."""
        try:
            there = [path for path in self.folder.iterdir() if is_run(path)] if self.folder else []
        except OSError:  # it has gone
            there = []
        dated = sorted(((_stamp(path / "config.yaml"), path.name, path) for path in there), reverse=True)
        return {self._numbers.setdefault(path, len(self._numbers)): path for _, _, path in dated[:MOST]}

    def _subject(self, folder: Path) -> Subject:
        """A run as its files tell it now."""
        stamps = tuple(_stamp(folder / file) for file in FILES)
        known = self._read.get(folder)
        if known is None or known[0] != stamps:
            try:
                subject = read_subject(folder)
            except SettingsError as error:
                subject = Subject(folder, notes={"course": printable(str(error))})
            subject.pictures.clear()
            known = self._read[folder] = stamps, subject
        return known[1]

    def _row(self, number: int, folder: Path) -> dict[str, Any]:
        subject = self._subject(folder)
        rows, settings = subject.rows, subject.settings
        key = "ap" if any("ap" in row for row in rows) else "proposal_ar300"
        scores = [score for row in rows if (score := _number(row, key)) is not None]
        stages = max((_number(row, "stage") or 1 for row in rows), default=1)
        stamps = dict(zip(FILES, self._read[folder][0], strict=True))
        written = max(stamps.values()) / 1e9
        ended = stamps["report.html"] and stamps["report.html"] >= stamps["metrics.jsonl"]
        state = "ended" if ended else "training" if time.time() - written < SILENT else "silent"
        return {
            "run": number,
            "name": printable(subject.name),
            "data": printable(Path(str(settings.data.path or "")).name) if settings else "",
            "model": settings.model.preset if settings else "",
            "state": state,
            "epochs": len(rows),
            "planned": settings.train.epochs * int(min(stages, MOST)) if settings else None,
            "best": max(scores, default=None),
            "last": scores[-1] if scores else None,
            "written": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written)),
            "note": printable(" ".join(subject.notes.values())),
        }


def _stamp(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _epochs(subject: Subject) -> dict[str, Any]:
    """The last epochs as a table."""
    rows = subject.rows[-MOST_ROWS:]
    keys = [key for key in COLUMNS if any(_number(row, key) is not None for row in rows)]
    return {"headings": [COLUMNS[key] for key in keys], "rows": [[_number(row, key) for key in keys] for row in rows]}


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A number of an epoch, if it is there and is one."""
    value = row.get(key)
    return value if isinstance(value, float | int) else None
