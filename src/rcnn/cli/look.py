"""`rcnn look [RUN|MODEL] [DATA]`: pages to look at pictures, truth and detections, served to one's own browser."""

import os
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.detector import Detector
    from rcnn.look.runs import Runs

WEIGHTS = (".safetensors", ".onnx", ".xml", ".pth", ".pt", ".pkl", ".caffemodel")
RUNS = Path("runs/train")
"""Whose runs are shown beside a model or data that is of none."""

COPIES = Path("runs/look")
"""Where copies of annotations with corrected labels lie."""

LOCAL = ("127.0.0.1", "localhost", "::1")


def look(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN|MODEL] [DATA]",
            help="A run, or a model and a data set or folder, or one of them, or a folder of runs.",
        ),
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port; if it is taken, the next one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address that is served. Others than 127.0.0.1 let other machines ask.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    device: arguments.Device = None,
) -> None:
    """Look at pictures with their truth and detections, in a page that this machine serves to its own browser.

    Example: rcnn look runs/train/exp-1
    """
    try:
        from rcnn.look import server
        from rcnn.look.thumbnails import Thumbnails, cache_folder
    except ImportError as error:
        from rcnn.errors import UnavailableError

        raise UnavailableError(f"rcnn look needs a web server ({error}); get it by: pip install 'rcnn[look]'") from None
    from rcnn.cli.files import fresh_folder
    from rcnn.look.album import Album
    from rcnn.look.corrections import Corrections
    from rcnn.look.verdicts import Verdicts

    load, data, runs = _subjects(words, device)
    place = server.bind(host, port)
    with place, TemporaryDirectory(prefix="rcnn-look-") as folder:
        name = _served(host, place.getsockname()[1])
        album = Album(load, data, cache_folder("labels"))
        copy = COPIES / (data.stem if data.is_file() else data.resolve().name) if data else COPIES / "labels"
        guard = server.application(
            album,
            name,
            screen.say,
            thumbnails=Thumbnails(cache_folder("thumbnails")),
            dropped=Path(folder),
            corrections=Corrections(album, lambda: fresh_folder(copy), Verdicts(cache_folder("verdicts"))),
            runs=runs,
        )
        album.start()
        _invite(guard.address, host, place.getsockname()[1], browser)
        with suppress(KeyboardInterrupt):
            server.serve(guard, place)
        album.stop()
        screen.say("stopped")


class Subjects(NamedTuple):
    """What to look at: how to load a detector and where the pictures are, None for neither, and the runs."""

    load: "Callable[[], Detector] | None"
    data: Path | None
    runs: "Runs"


def _subjects(words: list[str], device: str | None) -> Subjects:
    """What to load and what to open: a run brings its own data, and what is no model is data, or a folder of runs.

    Raises:
        SettingsError: there are more words, or a run whose data is not known.
        DataError: there is no such data.
    """
    from rcnn.cli.loading import load_detector
    from rcnn.errors import DataError, SettingsError
    from rcnn.look.runs import Runs, holds_runs, is_run
    from rcnn.weights.file import weights_of_run

    names, changes = arguments.split(words)
    if not 1 <= len(names) <= 2:
        raise SettingsError(f"give a run or a model, and data; found {len(names)} words: {' '.join(names)}")
    first = Path(names[0])
    run = is_run(first)
    if len(names) == 1 and holds_runs(first):
        return Subjects(None, None, Runs(first))
    runs = Runs(Path(os.path.relpath(first.resolve().parent)), first) if run else Runs(RUNS if RUNS.is_dir() else None)
    is_model = len(names) == 2 or run or first.suffix in WEIGHTS or not first.exists()
    data = Path(names[-1]) if len(names) == 2 or not is_model else _data_of(first) if run else None
    if data is not None and not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if run and weights_of_run(first) == first:
        screen.note(f"{first}: there are no weights yet, so nothing is detected; they come with its first validation")
        is_model = False
    if not is_model:
        return Subjects(None, data, runs)
    if first.suffix in WEIGHTS and not first.exists():
        from rcnn.errors import WeightsError

        raise WeightsError(f"{first}: there is no such file")
    return Subjects(lambda: load_detector(names[0], changes, device or "auto"), data, runs)


def _data_of(run: Path) -> Path | None:
    """The data that a run was trained on, if it is there."""
    from rcnn.config import read

    told = read(run / "config.yaml").data.path
    if told and Path(told).exists():
        return Path(told)
    screen.note(f"{run}: its data ({told}) is not there; give it as the second word to see its pictures")
    return None


def _served(host: str, port: int) -> str:
    """`name:port` as a browser writes it; of an address that stands for all, the name of this machine."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name.lower()
    return name if port == 80 else f"{name}:{port}"


def _invite(address: str, host: str, port: int, browser: bool) -> None:
    """Say where the page is, and open it unless the user sits at another machine."""
    if host not in LOCAL:
        screen.say(
            f"--host {host}: other machines can reach this server. What they send and get is not encrypted", "yellow"
        )
    screen.say(f"{address}")
    if os.environ.get("SSH_CONNECTION"):
        screen.say("You came by SSH. On your own machine, run this and then open the address above:")
        screen.say(f"  ssh -L {port}:{host}:{port} {os.environ.get('USER', 'you')}@{socket.gethostname()}")
    elif browser:
        webbrowser.open(address)
    screen.note("Ctrl-C stops the server")
