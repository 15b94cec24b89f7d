"""Notice within seconds that another process of a distributed training has died, whatever this process is doing.

Process 0 has a connection to every other process. The system closes it when a process is killed, and the keep-alive of
TCP when a host is lost. Usually the exchange of numbers then fails at once, which ends this process in order. Otherwise
a thread ends the process: with NCCL an exchange may wait for minutes, and process 0 may be busy with a validation.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

GRACE_SECONDS = 8.0
"""Time in which this process can end in order after another one was lost."""
CONNECT_SECONDS = 20.0
"""Time in which the processes must connect. Those that can't are not watched."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4}
"""Options of TCP with which the loss of a host is noticed after 3 + 1 * 4 seconds without an answer of its system."""
DONE = b"."
"""Message of a process from which no further answers are expected."""
LOST = "another process of this training was lost; its own messages may say why"

_open: "WeakSet[socket.socket]" = WeakSet()
"""Connections of this process. Loader processes close their copies, which would keep a connection open."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [connection.close() for connection in tuple(_open)] and None)


class Peers:
    """The other processes of a training.

    Args:
        connections: from process 0 to all others, or from another process to process 0.
    """

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self._connections = connections
        self._message: str | None = None
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    @contextmanager
    def watched(self, message: str) -> Iterator[None]:
        """End this process with a message, and exit code 1, if the block lasts too long after a loss."""
        self._message = message
        try:
            yield
        finally:
            self._message = None

    def part(self) -> None:
        """Tell the others that they need no further answers: all of them end, or this process has done its share."""
        for connection in self._connections:
            with suppress(OSError):  # it may have ended already
                connection.send(DONE)

    def close(self) -> None:
        """Close the connections, which is a loss for the others unless `part` was called, and stop watching."""
        self._left.set()
        self._shut(socket.SHUT_RDWR)
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def hang_up(self) -> None:
        """Let the others know that this process fails, unless `part` was called, and keep watching them."""
        self._shut(socket.SHUT_WR)

    def _shut(self, how: int) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(how)

    def _watch(self) -> None:
        """Wait until every other process is done or one of them is lost, which process 0 passes on to the others."""
        with selectors.DefaultSelector() as waiting:
            for connection in self._connections:
                waiting.register(connection, selectors.EVENT_READ, connection)
            while waiting.get_map():
                for key, _ in waiting.select():
                    try:
                        message = key.data.recv(1)
                    except OSError:
                        message = b""
                    if message != DONE:
                        self._end()
                        return
                    waiting.unregister(key.fileobj)

    def _end(self) -> None:
        self.hang_up()
        self._left.wait(GRACE_SECONDS)
        while not self._left.wait(0.1):
            if self._message is not None:
                with suppress(OSError):
                    print(f"error: {self._message}", file=sys.stderr, flush=True)
                os._exit(1)


def connect(rank: int, world: int, exchange: Callable[[Any], list[Any]]) -> Peers:
    """Connect process 0, at the address `MASTER_ADDR`, with the others.

    Args:
        rank: number of this process.
        world: number of processes.
        exchange: returns the arguments of all processes.
    """
    if rank:
        port, token = exchange(None)[0]
        connections = _call(os.environ["MASTER_ADDR"], port, token)
    else:
        token = secrets.token_bytes(16)
        with socket.create_server(("", 0), backlog=world) as server:
            exchange((server.getsockname()[1], token))
            connections = _answer(server, token, world - 1)
    for connection in connections:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _open.update(connections)
    return Peers(connections)


def _call(host: str, port: int, token: bytes) -> list[socket.socket]:
    """Return the connection to process 0, or nothing if it can't be reached."""
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
        connection.sendall(token)
    except OSError:
        return []
    return [connection]


def _answer(server: socket.socket, token: bytes, count: int) -> list[socket.socket]:
    """Return the connections to at most `count` processes that know the token."""
    connections: list[socket.socket] = []
    end = time.monotonic() + CONNECT_SECONDS
    with suppress(TimeoutError):
        while len(connections) < count:
            server.settimeout(max(0.01, end - time.monotonic()))
            connection, _ = server.accept()
            connection.settimeout(max(0.01, end - time.monotonic()))
            with suppress(ConnectionError):
                if secrets.compare_digest(connection.recv(len(token), socket.MSG_WAITALL), token):
                    connections.append(connection)
                    continue
            connection.close()
    return connections
