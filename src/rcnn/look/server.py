"""The server of `rcnn look`, with pages for the browser of its user only."""

import errno
import mimetypes
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from rcnn.errors import SettingsError
from rcnn.look import labels
from rcnn.look import runs as runs_page
from rcnn.look.album import Album
from rcnn.look.api import PicturesApi
from rcnn.look.connections import ACCEPTED_AT_ONCE, MAX_CONNECTIONS, MAX_FILES, QUEUE, Connection
from rcnn.look.guard import Guard
from rcnn.look.labels import LabelReview
from rcnn.look.runs import Runs
from rcnn.look.thumbnails import Thumbnails
from rcnn.report import templating
from rcnn.signals import TERMINATION

HERE = Path(__file__).parent
MAX_PORTS = 50
"""Number of ports that are tried."""

SWITCH_SECONDS = 0.0005
"""Time for which a thread that computes keeps Python's lock. Python's own 5 ms pass at each call of the event loop that
reads, writes or accepts, of which there are many per request."""

PAGES = {"/pictures": "Pictures", "/explain/0": "Explain", "/labels": "Labels", "/runs": "Runs"}
"""Addresses of the pages -> their names."""

TEMPLATES = {
    "/pictures": ("look.html", "/pictures"),
    "/pictures/{index:int}": ("look.html", "/pictures"),
    "/explain/{index:int}": ("explain.html", "/explain/0"),
    "/labels": ("labels.html", "/labels"),
    "/runs": ("runs.html", "/runs"),
}
"""Addresses -> their templates and pages."""


def application(
    album: Album,
    host: str,
    log: Callable[[str], None],
    *,
    thumbnails: Thumbnails,
    dropped: Path,
    review: LabelReview,
    runs: Runs,
) -> Guard:
    """Return the application with its access control.

    Args:
        album: the pictures of the pages.
        host: `name:port` of the server.
        log: called with a line for each refused request.
        thumbnails: of the pictures.
        dropped: folder for pictures that are dropped on the page.
        review: of the labels.
        runs: of the page "Runs".
    """
    ending, home = threading.Event(), "/pictures" if album.has_subject else "/runs"
    routes = [
        Route("/", lambda _: RedirectResponse(home, 303)),
        *(Route(path, _page(*template)) for path, template in TEMPLATES.items()),
        *PicturesApi(album, thumbnails, dropped).routes(),
        *labels.routes(review),
        *runs_page.routes(runs, ending),
        *_files("/static/report", templating.HERE / "static"),
        *_files("/static", HERE / "static"),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _error, ClientDisconnect: _disconnected})
    return Guard(app, host, log, home=home, ending=ending)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at this port, or at the next free one.

    Raises:
        SettingsError: none is free, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + MAX_PORTS, 65536)):
        # With this protocol named, asyncio turns off the delay of small packets (Nagle), up to 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, number))
            bound.listen(128)  # raises if another program listens at this port
        except OSError as error:
            bound.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise SettingsError(f"--host {host}: {error}") from None
            continue
        return bound
    raise SettingsError(f"the ports from {port} on are taken; choose another with --port")


def serve(guard: Guard, bound: socket.socket) -> None:
    """Serve until Ctrl-C."""
    sys.setswitchinterval(SWITCH_SECONDS)
    LookServer(guard).run(sockets=[bound])


class LookServer(uvicorn.Server):
    """A server with limits for its connections. It notifies its guard when it ends, so that event streams end as well.

    Args:
        guard: the served application.
    """

    def __init__(self, guard: Guard) -> None:
        config = uvicorn.Config(
            guard,
            http=Connection,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=ACCEPTED_AT_ONCE,
        )
        super().__init__(config)
        self._guard = guard
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *TERMINATION)}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start with a long queue of new connections, although few are accepted at once."""
        _allow_files(MAX_FILES)
        await super().startup(sockets)
        for bound in sockets or []:
            bound.listen(QUEUE)

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose clients keep the server waiting, ten times a second."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.check(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at Ctrl-C or SIGTERM, unless the signal was ignored when the server was made."""
        if self._handlers[sig] is signal.SIG_IGN:
            return
        self._guard.ending.set()
        super().handle_exit(sig, frame)


def _allow_files(number: int) -> None:
    """Let this process open so many files, where the system allows it; macOS starts with 256."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < number:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def _page(template: str, here: str) -> Callable[[Request], Awaitable[Response]]:
    text = templating.environment(HERE).get_template(template).render(pages=PAGES, here=here)

    async def page(_: Request) -> Response:
        return HTMLResponse(text)

    return page


def _files(address: str, folder: Path) -> list[Route]:
    """Return the addresses of the files in a folder. They are kept in memory, so that pages need no thread."""

    def handler(file: Path) -> Callable[[Request], Awaitable[Response]]:
        content, (kind, _) = file.read_bytes(), mimetypes.guess_type(file.name)

        async def answer(_: Request) -> Response:
            return Response(content, media_type=kind)

        return answer

    return [Route(f"{address}/{file.name}", handler(file)) for file in sorted(folder.iterdir()) if file.is_file()]


def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _disconnected(request: Request, _: Exception) -> Response:
    """Answer a request whose client is gone, with a status that the guard logs if an upload is incomplete."""
    return Response(status_code=499 if request.method == "POST" else 204)
