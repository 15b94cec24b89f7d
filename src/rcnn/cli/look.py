"""`rcnn look [RUN|MODEL|AUDIT] [DATA]`: serve pages with pictures, truth and detections to the user's own browser."""

import os
import socket
import webbrowser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.config.files import cache_folder
from rcnn.errors import UnavailableError

COPIES = Path("runs/look")
"""Folder for copies of annotations with corrected labels."""

LOCAL = ("127.0.0.1", "localhost", "::1")


def look(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN|MODEL|AUDIT] [DATA]",
            help="A run, or a model and a data set or folder, or one of them, or a folder of runs, or an audit.",
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
    from rcnn.cli.look_subjects import find_subjects
    from rcnn.look.album import Album
    from rcnn.look.labels import LabelReview, VerdictFile
    from rcnn.signals import Terminated

    load, data, runs = find_subjects(words, device)
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
