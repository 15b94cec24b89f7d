"""Limits of time and number for the connections of `rcnn look`, so that a bad client never keeps out another.

A connection has a limited time for the header of each request, for its body and for reading the answer. Those that
have not sent a request that the guard accepted are few: the oldest are closed for new ones. uvicorn limits only the
time between requests, and the number of all connections together.
"""

import asyncio
import time
from typing import cast

import anyio
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from rcnn.config.files import MB

HEADER_SECONDS = 10.0
"""Seconds in which the header of a request must arrive, from the start of the connection or the last answer."""

BODY_SECONDS = 20.0
"""Seconds for which the server waits for the body of a request, beyond the time that it takes at `BODY_RATE`."""

BODY_RATE = 0.1 * MB
"""Slowest transfer of the body of a request, bytes per second."""

STALLED_SECONDS = 60.0
"""Seconds for which a client may leave over 64 kB of an answer unread."""

MAX_STRANGERS = 300
"""Number of connections without an accepted request."""

MAX_CONNECTIONS = 700
"""Number of all connections above which requests are answered with 503."""

MAX_FILES = 1024
"""Number of files that the server may have open, with its connections."""

ACCEPTED_AT_ONCE = 8
"""Number of connections that are accepted before requests are read. With many more, a new connection could be closed
before its request is read."""

QUEUE = 2048
"""Number of connections that the system holds until they are accepted. Beyond it, clients repeat after a second."""


def accept(scope: Scope) -> None:
    """Mark a request as one of the user's browser, so that its connection is not closed for others."""
    scope.setdefault("state", {})["accepted"] = True


class Connection(H11Protocol):
    """A connection that ends if its client keeps the server waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the tenth of the strangers that have waited longest, if there are too many."""
        if len(self.connections) >= MAX_STRANGERS:
            strangers = [one for one in cast("set[Connection]", self.connections) if not one.accepted]
            if len(strangers) >= MAX_STRANGERS:  # several at once, since to look for them takes time
                for one in sorted(strangers, key=lambda one: one.waiting_since)[: MAX_STRANGERS // 10]:
                    one.abort()
        super().connection_made(transport)
        self.waiting_since = time.monotonic()
        """Time since which the server waits for a request."""
        self.known = False
        """Whether the guard has accepted an earlier request."""
        self.stalled_since: float | None = None
        """Time since which the client does not read its answer; None if it does."""

    @property
    def accepted(self) -> bool:
        """Whether the guard has accepted a request. It has not seen a request whose header has just arrived."""
        return self.known or (self.scope is not None and "accepted" in self.scope["state"])

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.known = self.accepted
        self.waiting_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Remember when the client stopped reading."""
        self.stalled_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Forget it when the client reads again."""
        self.stalled_since = None
        super().resume_writing()

    def check(self, now: float) -> None:
        """Close the connection if its client keeps the server waiting."""
        answering = self.cycle is not None and not self.cycle.response_complete
        sending = self.transport.get_write_buffer_size() > 0
        if self.stalled_since is not None:
            late = now - self.stalled_since > STALLED_SECONDS
        else:
            late = not answering and not sending and now - self.waiting_since > HEADER_SECONDS
        if late:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once, without sending the rest of an answer."""
        self.connections.discard(self)
        self.transport.abort()


def timed(receive: Receive) -> Receive:
    """Return `receive` with a limit on the time for which it waits for the body of a request.

    Only waiting for the client counts, not the time between the calls. The result raises HTTPException 408.
    """
    waited, received, complete = 0.0, 0, False

    async def receive_in_time() -> Message:
        nonlocal waited, received, complete
        if complete:
            return await receive()
        start = time.monotonic()
        try:
            with anyio.fail_after(BODY_SECONDS + received / BODY_RATE - waited):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "The request arrives too slowly.") from None
        waited += time.monotonic() - start
        received += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        return message

    return receive_in_time
