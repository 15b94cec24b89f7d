"""The server of `rcnn look`: pages for the browser of its user alone."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rcnn.errors import SettingsError
from rcnn.page.album import Album
from rcnn.page.api import Api
from rcnn.page.guard import Guard
from rcnn.page.thumbnails import Thumbnails

HERE = Path(__file__).parent
PORT, PORTS = 8765, 50
"""The first port that is tried, and how many are tried after it."""

PAGES = {"/pictures": "look.html", "/pictures/{place:int}": "look.html", "/inside/{place:int}": "inside.html"}
"""Addresses of the pages and their files."""


def application(album: Album, host: str, thumbnails: Thumbnails, dropped: Path, log: Callable[[str], None]) -> Guard:
    """The pages, guarded.

    Args:
        album: what they show.
        host: `name:port` that is served.
        thumbnails: of its pictures.
        dropped: folder for pictures that are dropped on the page.
        log: called with a line for each wrong request.
    """
    routes = [
        Route("/", _home),
        *(Route(path, _page(template)) for path, template in PAGES.items()),
        *Api(album, thumbnails, dropped).routes(),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _told}), host, log)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this port, or at the next one that is free.

    Raises:
        SettingsError: none is free, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + PORTS, 65536)):
        place = socket.socket(family, socket.SOCK_STREAM)
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
    uvicorn.Server(config).run(sockets=[place])


def _home(_: Request) -> Response:
    return RedirectResponse("/pictures", 303)


def _page(template: str) -> Callable[[Request], Response]:
    def page(_: Request) -> Response:
        return FileResponse(
            HERE / "templates" / template, media_type="text/html", headers={"Cache-Control": "no-store"}
        )

    return page


def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
