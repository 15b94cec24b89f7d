"""`rcnn look [RUN|MODEL] [DATA]`: serve pages with pictures, truth and detections to the user's own browser."""

import os
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.config import read
from rcnn.config.files import cache_folder
from rcnn.errors import DataError, SettingsError, UnavailableError, WeightsError

if TYPE_CHECKING:
    from rcnn.detector import Detector
    from rcnn.look.runs import Runs

WEIGHTS = (".safetensors", ".onnx", ".xml", ".pth", ".pt", ".pkl", ".caffemodel")
COPIES = Path("runs/look")
"""Folder for copies of annotations with corrected labels."""

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
    host: Annotated[str, typer.Option(help="Address to serve. Any but 127.0.0.1 lets other machines connect.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    device: arguments.Device = None,
) -> None:
    """Look at pictures with their truth and detections, on pages that this machine serves to its own browser.

    Example: rcnn look runs/train/exp-1
    """
    try:
        from rcnn.look import server
        from rcnn.look.thumbnails import Thumbnails
    except ImportError as error:
        raise UnavailableError(f"rcnn look needs a web server ({error}): pip install 'rcnn[look]'") from None
    from rcnn.cli.files import fresh_folder
    from rcnn.look.album import Album
    from rcnn.look.labels import LabelReview, VerdictFile
    from rcnn.signals import Terminated

    load, data, runs = _subjects(words, device)
    bound = server.bind(host, port)
    with bound, TemporaryDirectory(prefix="rcnn-look-") as folder:
        port = bound.getsockname()[1]
        album = Album(load, data)
        copy = COPIES / (data.stem if data.is_file() else data.resolve().name) if data else COPIES / "labels"
        guard = server.application(
            album,
            _browser_host(host, port),
            screen.say,
            thumbnails=Thumbnails(cache_folder("thumbnails")),
            dropped=Path(folder),
            review=LabelReview(album, lambda: fresh_folder(copy), VerdictFile(cache_folder("verdicts"))),
            runs=runs,
        )
        album.start()
        _announce(guard.address, host, port, browser)
        try:
            server.serve(guard, bound)
        except Terminated:
            raise
        except KeyboardInterrupt:
            screen.say("stopped")
        finally:
            album.stop()


def _subjects(words: list[str], device: str | None) -> "tuple[Callable[[], Detector] | None, Path | None, Runs]":
    """Return a function that loads the detector, the data (None where there is none) and the runs.

    A run brings the data that it was trained on. A word that is not a model is data, or a folder of runs.

    Raises:
        SettingsError: there are no words, or more than two.
        DataError: there is no such data.
    """
    from rcnn.cli.loading import load_detector
    from rcnn.look.runs import Runs, holds_runs, is_run
    from rcnn.weights.file import weights_of_run

    names, changes = arguments.split(words)
    if not 1 <= len(names) <= 2:
        raise SettingsError(f"give a run or a model, and data; got {len(names)} words: {' '.join(names)}")
    arguments.refuse_addresses(names, "rcnn look shows local data; download it, and give its folder")
    first = Path(names[0])
    run = is_run(first)
    if len(names) == 1 and holds_runs(first):
        return None, None, Runs(first)
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
        return None, data, runs
    if first.suffix in WEIGHTS and not first.exists():
        raise WeightsError(f"{first}: there is no such file")
    return lambda: load_detector(names[0], changes, device or "auto"), data, runs


def _data_of(run: Path) -> Path | None:
    """Return the data that a run was trained on, or None if it does not exist."""
    path = read(run / "config.yaml").data.path
    if path and Path(path).exists():
        return Path(path)
    screen.note(f"{run}: its data ({path}) does not exist here; give the data as the second word to see its pictures")
    return None


def _browser_host(host: str, port: int) -> str:
    """Return `name:port` as a browser writes it, with the name of this machine if all its addresses are served."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name.lower()
    return name if port == 80 else f"{name}:{port}"


def _announce(address: str, host: str, port: int, browser: bool) -> None:
    """Print the address of the page, and open it unless the user is connected by SSH."""
    if host not in LOCAL:
        screen.say(f"--host {host}: other machines can reach this server, without encryption", "yellow")
    screen.say(address)
    if os.environ.get("SSH_CONNECTION"):
        screen.say("You are connected by SSH. Run this on your own machine, then open the address above:")
        screen.say(f"  ssh -L {port}:{host}:{port} {os.environ.get('USER', 'you')}@{socket.gethostname()}")
    elif browser:
        webbrowser.open(address)
    screen.note("Ctrl-C stops the server")
