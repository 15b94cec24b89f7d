"""The server of `rcnn look`: pages for the browser of its user alone."""

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rcnn.errors import SettingsError
from rcnn.look.album import Album
from rcnn.look.api import Api
from rcnn.look.corrections import Corrections
from rcnn.look.guard import Guard
from rcnn.look.judging import Judging
from rcnn.look.live import Live
from rcnn.look.runs import Runs
from rcnn.look.thumbnails import Thumbnails
from rcnn.report import templating

HERE = Path(__file__).parent
PORT, PORTS = 8765, 50
"""The first port that is tried, and how many are tried after it."""

THREADS = 6
"""That answer requests; a browser does not send more at a time."""

PAGES = {"/pictures": "Pictures", "/inside/0": "Inside the RPN", "/doubts": "Doubtful labels", "/runs": "Runs"}
"""Addresses of the pages -> their names."""

TEMPLATES = {
    "/pictures": ("look.html", "/pictures"),
    "/pictures/{place:int}": ("look.html", "/pictures"),
    "/inside/{place:int}": ("inside.html", "/inside/0"),
    "/doubts": ("doubts.html", "/doubts"),
    "/runs": ("runs.html", "/runs"),
}
"""Addresses -> their files, and which of the pages they are."""


def application(
    album: Album,
    host: str,
    log: Callable[[str], None],
    *,
    thumbnails: Thumbnails,
    dropped: Path,
    corrections: Corrections,
    runs: Runs,
) -> Guard:
    """The pages, guarded.

    Args:
        album: what they show.
        host: `name:port` that is served.
        log: called with a line for each wrong request.
        thumbnails: of its pictures.
        dropped: folder for pictures that are dropped on the page.
        corrections: of its labels.
        runs: that are shown.
    """
    ending, home = threading.Event(), "/pictures" if album.given else "/runs"
    routes = [
        Route("/", lambda _: RedirectResponse(home, 303)),
        *(Route(path, _page(*template)) for path, template in TEMPLATES.items()),
        *Api(album, thumbnails, dropped).routes(),
        *Judging(corrections).routes(),
        *Live(runs, ending).routes(),
        Mount("/static/report", StaticFiles(directory=templating.HERE / "static")),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _told})
    return Guard(app, host, log, home=home, ending=ending)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this port, or at the next one that is free.

    Raises:
        SettingsError: none is free, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + PORTS, 65536)):
        # With the protocol named, asyncio sends at once what it would else hold back for up to 40 ms (Nagle).
        place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, number))
            place.listen(128)  # who binds second learns it here
        except OSError as error:
            place.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise SettingsError(f"--host {host}: {error}") from None
            continue
        return place
    raise SettingsError(f"the ports from {port} on are taken; give another one: --port")


def serve(guard: Guard, place: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(
        guard,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    Server(config, guard).run(sockets=[place])


class Server(uvicorn.Server):
    """A server that tells its guard when it ends, so that answers that go on end as well."""

    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self._guard = guard

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve with a few threads: each that runs the network or reads pictures keeps memory of its own."""
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C."""
        self._guard.ending.set()
        super().handle_exit(sig, frame)


def _page(template: str, here: str) -> Callable[[Request], Response]:
    text = templating.environment(HERE).get_template(template).render(pages=PAGES, here=here)

    def page(_: Request) -> Response:
        return HTMLResponse(text)

    return page


def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
