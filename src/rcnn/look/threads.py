"""Threads that compute answers, a few for each kind of request, so that one kind never delays another."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

T = TypeVar("T")


class FewThreads:
    """A few threads for the requests of one kind.

    Requests beyond their number wait without a thread. The newest goes first: a client with one request waits for the
    computation that is running, regardless of how many requests another client has sent before.

    Args:
        threads: number of threads.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self._free = threads
        self._waiting: list[asyncio.Future[None]] = []

    def handler(self, answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that computes the answer in a thread, unless the client is gone by then."""

        async def handle(request: Request) -> Response:
            return await self.run(request, answer, request)

        return handle

    async def run(self, request: Request | None, do: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that runs in a thread.

        Args:
            request: nothing is computed if its client is gone when a thread becomes free; None to compute in any case.
            do: the function.
            args: its arguments.

        Raises:
            ClientDisconnect: the client is gone.
        """
        await self._turn()
        try:
            if request is not None and await request.is_disconnected():
                raise ClientDisconnect
            return await asyncio.get_running_loop().run_in_executor(self._executor, do, *args)
        finally:
            self._release()

    async def _turn(self) -> None:
        """Wait for a thread."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        """Give the thread to the newest request that waits."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
