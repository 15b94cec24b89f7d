"""The page "Runs": the runs in a folder. They are read again when their files change, and never written."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rcnn.config.files import MB, check_regular
from rcnn.errors import SettingsError, printable
from rcnn.look.threads import FewThreads
from rcnn.metrics.table import compared_columns
from rcnn.report.charts import shown
from rcnn.report.page import compared, values
from rcnn.report.subject import Subject, read_subject
from rcnn.report.templating import environment

MAX_RUNS = 200
"""Number of runs in the table, the newest ones."""

MAX_COMPARED = 2
"""Number of runs side by side."""

MAX_EPOCHS = 10
"""Number of epochs that are listed, the last ones."""

MAX_BYTES = 30 * MB
"""Largest picture of a run that is shown."""

SILENT_SECONDS = 600
"""Seconds without a written file after which a run no longer counts as training."""

CHECK_SECONDS = 0.5
"""Seconds between checks of the files."""

CHECKS_PER_BEAT = 20
"""Number of checks without a change after which a comment is sent."""

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
"""Files and folders of a run; when one of them is written, the run is read again."""

PICTURES = {
    "train-batch-1.jpg": "A training batch with augmentation and labels, as the network receives it",
    "train-batch-2.jpg": "The next batch",
    "labels.png": "The labels of the training list",
    "val.jpg": "Truth and detections of validation images, at the end",
}
"""Files in plots/ that are shown -> their captions."""

KINDS = {".jpg": ("image/jpeg", b"\xff\xd8\xff"), ".png": ("image/png", b"\x89PNG")}
"""Suffix of a picture -> its type and first bytes."""


def is_run(folder: Path) -> bool:
    """Return whether this is the folder of a training."""
    return (folder / "config.yaml").is_file() and (folder / "weights").is_dir()


def holds_runs(folder: Path) -> bool:
    """Return whether this folder has runs."""
    return folder.is_dir() and any(is_run(path) for path in folder.iterdir())


class Runs:
    """The runs in a folder. Pages refer to a run only by its number.

    Args:
        folder: with the folders of runs; None for no runs.
        first: the run that is shown first; None for the newest.
    """

    def __init__(self, folder: Path | None, first: Path | None = None) -> None:
        self.folder, self.first = folder, first.resolve() if first else None
        self._numbers: dict[Path, int] = {}
        self._read: dict[Path, tuple[tuple[int, ...], Subject]] = {}
        self._lock = threading.Lock()

    def table(self) -> dict[str, Any]:
        """Return a row for each run, the newest first, and the number of the run that is shown first."""
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
        """Return one run, or several side by side, as HTML.

        Raises:
            KeyError: there is no run with such a number.
        """
        with self._lock:
            runs = self._list()
            chosen = [runs[number] for number in numbers]
            subjects = [self._subject(folder) for folder in chosen]
        parts = [
            {
                **values(subject, position, 0),
                "epochs": _epochs(subject),
                "files": [
                    (f"/api/runs/{number}/pictures/{index}?at={stamp}", text)
                    for index, (file, text) in enumerate(PICTURES.items())
                    if (stamp := _stamp(folder / "plots" / file))
                ],
            }
            for position, (number, folder, subject) in enumerate(zip(numbers, chosen, subjects, strict=True))
        ]
        template = environment(Path(__file__).parent).get_template("runs-shown.html")
        return template.render(
            runs=parts,
            compared=compared(subjects) if len(subjects) > 1 else None,
            names=[subject.name for subject in subjects],
        )

    def picture(self, number: int, index: int) -> tuple[bytes, str]:
        """Return a picture of a run and its type.

        Raises:
            LookupError: there is no such run or picture.
            OSError: it can't be read, or is not a picture.
        """
        file = list(PICTURES)[index]
        with self._lock:
            path = self._list()[number] / "plots" / file
        kind, start = KINDS[path.suffix]
        check_regular(path, MAX_BYTES)
        content = path.read_bytes()
        if not content.startswith(start):
            raise OSError(f"{file} is not a picture")
        return content, kind

    def _list(self) -> dict[int, Path]:
        """Return number of a run -> its folder, the newest first."""
        try:
            folders = [path for path in self.folder.iterdir() if is_run(path)] if self.folder else []
        except OSError:  # the folder was removed
            folders = []
        dated = sorted(((_stamp(path / "config.yaml"), path.name, path) for path in folders), reverse=True)
        return {self._numbers.setdefault(path, len(self._numbers)): path for _, _, path in dated[:MAX_RUNS]}

    def _subject(self, folder: Path) -> Subject:
        """Return a run, read again if its files have changed."""
        stamps = tuple(_stamp(folder / file) for file in FILES)
        known = self._read.get(folder)
        if known is None or known[0] != stamps:
            try:
                subject = read_subject(folder)
            except SettingsError as error:
                subject = Subject(folder, notes={"curves": printable(str(error))})
            subject.pictures.clear()
            known = self._read[folder] = stamps, subject
        return known[1]

    def _row(self, number: int, folder: Path) -> dict[str, Any]:
        subject = self._subject(folder)
        rows, settings = subject.rows, subject.settings
        key = "ap" if any("ap" in row for row in rows) else "proposal_ar300"
        scores = [score for row in rows if (score := _number(row, key)) is not None]
        stages = max((_number(row, "stage") or 1 for row in rows), default=1)
        epochs = settings.train.epochs if settings and not settings.train.steps else None
        stamps = dict(zip(FILES, self._read[folder][0], strict=True))
        written = max(stamps.values()) / 1e9
        ended = stamps["report.html"] and stamps["report.html"] >= stamps["metrics.jsonl"]
        state = "ended" if ended else "training" if time.time() - written < SILENT_SECONDS else "silent"
        return {
            "run": number,
            "name": printable(subject.name),
            "data": printable(Path(str(settings.data.path or "")).name) if settings else "",
            "model": settings.model.preset if settings else "",
            "state": state,
            "epochs": len(rows),
            "planned": epochs * int(min(stages, MAX_RUNS)) if isinstance(epochs, int) else None,
            "best": max(scores, default=None),
            "last": scores[-1] if scores else None,
            "written": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written)),
            "note": printable(" ".join(subject.notes.values())),
        }


async def events(runs: Runs, ending: threading.Event, threads: FewThreads) -> AsyncIterator[str]:
    """Yield the table of runs as server-sent events: once, and whenever it changes, until the server ends.

    Comments are sent in between, because a closed connection is noticed only by sending.
    """
    last, unchanged = "", 0
    while not ending.is_set():
        table = json.dumps(await threads.run(None, runs.table))
        unchanged = 0 if table != last else unchanged + 1
        if table != last:
            yield f"data: {table}\n\n"
        elif unchanged % CHECKS_PER_BEAT == 0:
            yield ":\n\n"
        last = table
        await asyncio.sleep(CHECK_SECONDS)


def routes(runs: Runs, ending: threading.Event) -> list[Route]:
    """Return the addresses of the page and their handlers. Event streams end when `ending` is set."""

    threads = FewThreads(2)

    async def stream(_: Request) -> Response:
        return StreamingResponse(events(runs, ending, threads), media_type="text/event-stream")

    def shown(request: Request) -> Response:
        """Answer with one run, or two side by side: losses, scores, pictures and settings as HTML."""
        words = request.query_params.get("runs", "").split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
            raise HTTPException(400, "runs: numbers of runs, separated by commas.")
        if len(words) > MAX_COMPARED:
            raise HTTPException(400, f"At most {MAX_COMPARED} runs side by side.")
        try:
            return JSONResponse({"html": runs.shown([int(word) for word in words])})
        except KeyError:
            raise HTTPException(404, "There is no such run.") from None

    def picture(request: Request) -> Response:
        try:
            content, kind = runs.picture(request.path_params["run"], request.path_params["index"])
        except LookupError:
            raise HTTPException(404, "There is no such picture.") from None
        except OSError as error:
            raise HTTPException(404, printable(f"The picture can't be read: {error.strerror or error}")) from None
        return Response(content, media_type=kind)

    return [
        Route("/api/runs", threads.handler(lambda _: JSONResponse(runs.table()))),
        Route("/api/runs/events", stream),
        Route("/api/runs/shown", threads.handler(shown)),
        Route("/api/runs/{run:int}/pictures/{index:int}", threads.handler(picture)),
    ]


def _stamp(path: Path) -> int:
    """Return the time at which a file was written, in nanoseconds; 0 without a file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _epochs(subject: Subject) -> dict[str, Any]:
    """Return the last epochs as a table."""
    rows = subject.rows[-MAX_EPOCHS:]
    candidates = [("epoch", "epoch", 0), ("train_loss", "training loss", 3), *compared_columns()]
    columns = [column for column in candidates if any(_number(row, column[0]) is not None for row in rows)]
    return {
        "headings": [heading for _, heading, _ in columns],
        "rows": [[shown(_number(row, key), digits) for key, _, digits in columns] for row in rows],
    }


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """Return a number of an epoch, or None if it is missing."""
    value = row.get(key)
    return value if isinstance(value, float | int) else None
