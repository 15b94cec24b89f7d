"""What the page "Doubtful labels" asks the server for, and what it tells it."""

import json
from json import JSONDecodeError

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rcnn.errors import printable
from rcnn.look.corrections import VERDICTS, Corrections, Key

LARGEST = 1000
"""Bytes of a verdict."""


class Judging:
    """The answers, as methods that are routes.

    Args:
        corrections: what is doubted and said.
    """

    def __init__(self, corrections: Corrections) -> None:
        self.corrections = corrections

    def routes(self) -> list[Route]:
        """Addresses and their answers."""
        return [
            Route("/api/doubts", self.doubts),
            Route("/api/doubts", self.judge, methods=["POST"]),
            Route("/api/doubts/undo", self.undo, methods=["POST"]),
        ]

    def doubts(self, request: Request) -> Response:
        """The next doubts; the one of this place and detection comes first, if it is among them."""
        words = [request.query_params.get(name, "") for name in Key._fields]
        numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 12]
        return self._told(Key(*numbers) if len(numbers) == 2 else None)

    async def judge(self, request: Request) -> Response:
        """Say right, wrong or skip to a doubt: {"place": 0, "detection": 0, "verdict": "right"}."""
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST:
                raise HTTPException(413, "This is too long for a verdict.")
        try:
            said = json.loads(content)
            key, verdict = Key(said["place"], said["detection"]), said["verdict"]
        except (JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            raise HTTPException(400, "A verdict has a place, a detection and a verdict.") from None
        if type(key.place) is not int or type(key.detection) is not int or verdict not in VERDICTS:
            raise HTTPException(400, f"A verdict is one of {', '.join(VERDICTS)}, and places are numbers.")
        return await run_in_threadpool(self._say, key, verdict)

    def undo(self, request: Request) -> Response:
        """Take back what was said last; its doubt is told first."""
        self._ready()
        try:
            key = self.corrections.undo()
        except LookupError:
            raise HTTPException(409, "There is nothing to take back.") from None
        except (OSError, UnicodeEncodeError) as error:
            raise self._unwritten(error) from None
        return self._told(key)

    def _say(self, key: Key, verdict: str) -> Response:
        try:
            self.corrections.say(key, verdict)
        except KeyError:
            raise HTTPException(404, "There is no such doubt.") from None
        except (OSError, UnicodeEncodeError) as error:
            raise self._unwritten(error) from None
        return self._told(None)

    def _told(self, first: Key | None) -> Response:
        self._ready()
        return JSONResponse(self.corrections.told(first))

    def _ready(self) -> None:
        if not self.corrections.album.ready:
            raise HTTPException(409, "The pictures are still being read.")

    def _unwritten(self, error: Exception) -> HTTPException:
        return HTTPException(507, printable(f"The copy can't be written, so nothing has changed: {error}"))
