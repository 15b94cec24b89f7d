"""What the page "Runs" asks the server for, and how it hears of what changes."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rcnn.errors import printable
from rcnn.look.runs import Runs

EVERY = 0.5
"""Seconds between looks at the files."""

BEAT = 20
"""Looks after which something is sent though nothing has changed, by which a browser that has gone is noticed."""

SIDE_BY_SIDE = 2


class Live:
    """The answers, as methods that are routes.

    Args:
        runs: that are shown.
        ending: set when the server ends, and with it the streams.
    """

    def __init__(self, runs: Runs, ending: threading.Event) -> None:
        self.runs, self.ending = runs, ending

    def routes(self) -> list[Route]:
        """Addresses and their answers."""
        return [
            Route("/api/runs", self.table),
            Route("/api/runs/events", self.events),
            Route("/api/runs/shown", self.shown),
            Route("/api/runs/{run:int}/pictures/{place:int}", self.picture),
        ]

    def table(self, request: Request) -> Response:
        """A row for each run."""
        return JSONResponse(self.runs.table())

    async def events(self, request: Request) -> Response:
        """The same table as a server-sent event, now and whenever it changes."""
        return StreamingResponse(self.stream(), media_type="text/event-stream")

    async def stream(self) -> AsyncIterator[str]:
        """Events."""
        last, quiet = "", 0
        while not self.ending.is_set():
            table = json.dumps(await run_in_threadpool(self.runs.table))
            quiet = 0 if table != last else quiet + 1
            if table != last:
                yield f"data: {table}\n\n"
            elif quiet % BEAT == 0:
                yield ":\n\n"
            last = table
            await asyncio.sleep(EVERY)

    def shown(self, request: Request) -> Response:
        """One run, or two side by side: losses, scores, pictures and settings as HTML."""
        words = request.query_params.get("runs", "").split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
            raise HTTPException(400, "runs: numbers of runs, with commas.")
        if len(words) > SIDE_BY_SIDE:
            raise HTTPException(400, f"At most {SIDE_BY_SIDE} runs side by side.")
        try:
            return JSONResponse({"html": self.runs.shown([int(word) for word in words])})
        except KeyError:
            raise HTTPException(404, "There is no such run.") from None

    def picture(self, request: Request) -> Response:
        """A picture of a run."""
        try:
            content, kind = self.runs.picture(request.path_params["run"], request.path_params["place"])
        except LookupError:
            raise HTTPException(404, "There is no such picture.") from None
        except OSError as error:
            raise HTTPException(404, printable(f"The picture can't be read: {error.strerror or error}")) from None
        return Response(content, media_type=kind)
