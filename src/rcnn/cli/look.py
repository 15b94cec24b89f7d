"""`rcnn look [RUN|MODEL] [DATA]`: pages to look at pictures, truth and detections, served to one's own browser."""

import os
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.detector import Detector

WEIGHTS = (".safetensors", ".onnx", ".xml", ".pth", ".pt", ".pkl", ".caffemodel")
LOCAL = ("127.0.0.1", "localhost", "::1")


def look(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN|MODEL] [DATA]", help="A run, or a model and a data set or folder, or one of them."
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
        from rcnn.page import server
        from rcnn.page.thumbnails import Thumbnails, cache_folder
    except ImportError as error:
        from rcnn.errors import UnavailableError

        raise UnavailableError(f"rcnn look needs a web server ({error}); get it by: pip install 'rcnn[look]'") from None
    from rcnn.page.album import Album

    load, data = _subjects(words, device)
    place = server.bind(host, port)
    with place, TemporaryDirectory(prefix="rcnn-look-") as folder:
        name = _served(host, place.getsockname()[1])
        album = Album(load, data)
        guard = server.application(album, name, Thumbnails(cache_folder()), Path(folder), screen.say)
        album.start()
        _invite(guard.address, host, place.getsockname()[1], browser)
        with suppress(KeyboardInterrupt):
            server.serve(guard, place)
        album.stop()
        screen.say("stopped")


def _subjects(words: list[str], device: str | None) -> "tuple[Callable[[], Detector] | None, Path | None]":
    """What to load and what to open: a run brings its own data, and what is no model is data.

    Raises:
        SettingsError: there are more words, or a run whose data is not known.
        DataError: there is no such data.
    """
    from rcnn.cli.loading import load_detector
    from rcnn.config import read
    from rcnn.errors import DataError, SettingsError

    names, changes = arguments.split(words)
    if not 1 <= len(names) <= 2:
        raise SettingsError(f"give a run or a model, and data; found {len(names)} words: {' '.join(names)}")
    first = Path(names[0])
    run = (first / "config.yaml").is_file() and (first / "weights").is_dir()
    is_model = len(names) == 2 or run or first.suffix in WEIGHTS or not first.exists()
    data = Path(names[-1]) if len(names) == 2 or not is_model else None
    if data is None and run:
        told = read(first / "config.yaml").data.path
        data = Path(told) if told and Path(told).exists() else None
        if data is None:
            screen.note(f"{first}: its data ({told}) is not there; give it as the second word to see its pictures")
    if data is not None and not data.exists():
        raise DataError(f"{data}: there is no such file or folder")
    if not is_model:
        return None, data
    if first.suffix in WEIGHTS and not first.exists():
        from rcnn.errors import WeightsError

        raise WeightsError(f"{first}: there is no such file")
    return (lambda: load_detector(names[0], changes, device or "auto")), data


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
