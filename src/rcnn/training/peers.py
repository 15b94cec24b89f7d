"""Notice that another process of a distributed training has died or is silent, whatever this process is doing.

Process 0 has a connection to every other process. The system closes it when a process is killed. Through it, both sides
also send a byte every few seconds, which stops when a host loses its power or its network. Usually the exchange of
numbers then fails as well, which ends this process in order. Otherwise a thread ends the process: with NCCL an exchange
may wait for minutes, and process 0 may be busy with a validation.

The connections also serve to wait for a process that is busy with work of its own, for as long as its bytes arrive
(`Peers.meet`). An exchange of gloo or NCCL has a limit of time, whatever the other process is doing.
"""

import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from rcnn.errors import TrainingError

GRACE_SECONDS = 8.0
"""Time in which this process can end in order after another one was lost."""
CONNECT_SECONDS, TOKEN_SECONDS = 20.0, 2.0
"""Time in which all processes must connect, and in which one that has called must show its token."""
HEARTBEATS, MAX_HEARTBEAT_SECONDS = 5, 2.0
"""Minimum number of heartbeats in the time after which a silent process is lost, and maximum time between two."""
BEAT, HERE, DONE = b"~", b"h", b"."
"""Messages: a heartbeat; of a process that has come to a meeting; of one from which no further answers are expected."""
LOST = "another process of this training was lost; its own messages may say why"

_open: "WeakSet[socket.socket]" = WeakSet()
"""Connections of this process. Loader processes close their copies, which would keep a connection open."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [connection.close() for connection in tuple(_open)] and None)


class ProcessLost(RuntimeError):
    """Another process of the training has died or is silent."""


class Peers:
    """The other processes of a training.

    Args:
        connections: from process 0 to all others, or from another process to process 0.
        timeout: seconds after which a silent process is lost.
        first: True in process 0.

    Attributes:
        remedy: what the user can do after a loss.
    """

    def __init__(self, connections: Sequence[socket.socket], timeout: float, *, first: bool) -> None:
        self.remedy = "Run the command again"
        self._connections, self._timeout, self._first = connections, timeout, first
        self._arrivals = dict[socket.socket, float](dict.fromkeys(connections, 0))
        self._meetings = 0
        self._parted, self._loss = False, ""
        self._changed, self._sending, self._left = threading.Condition(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """Wait until all processes that have not parted are here, for as long as none of them is lost.

        Raises:
            ProcessLost: one of them is.
        """
        if self._parted:
            return
        self._meetings += 1
        if not self._first:
            self._send(HERE)
        with self._changed:
            self._changed.wait_for(lambda: self._loss or min(self._arrivals.values()) >= self._meetings)
            if self._loss:
                raise ProcessLost(self._loss)
        if self._first:
            self._send(HERE)

    def part(self) -> None:
        """Tell the others that they need no further answers: all of them end, or this process has done its share."""
        self._send(DONE)

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

    def _send(self, message: bytes) -> None:
        """Send a message to the others. After `DONE` they do not read any more, so nothing is sent to them."""
        with self._sending:
            for connection in () if self._parted else self._connections:
                with suppress(OSError):  # it may have ended already
                    connection.send(message)
            self._parted |= message == DONE

    def _shut(self, how: int) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(how)

    def _watch(self) -> None:
        """Wait until every other process is done or one of them is lost, which process 0 passes on to the others."""
        interval = min(MAX_HEARTBEAT_SECONDS, self._timeout / HEARTBEATS)
        due = time.monotonic()
        heard = dict.fromkeys(self._connections, due)
        with selectors.DefaultSelector() as waiting:
            for connection in self._connections:
                waiting.register(connection, selectors.EVENT_READ, connection)
            while waiting.get_map():
                if (now := time.monotonic()) >= due:
                    self._send(BEAT)
                    due = now + interval
                for key, _ in waiting.select(due - now):
                    try:
                        messages = key.data.recv(1024)
                    except OSError:
                        messages = b""
                    if not messages:
                        self._end(LOST)
                        return
                    heard[key.data] = time.monotonic()
                    with self._changed:
                        self._arrivals[key.data] += math.inf if DONE in messages else messages.count(HERE)
                        self._changed.notify_all()
                    if DONE in messages:
                        waiting.unregister(key.fileobj)
                # All that has arrived is read by now, also if this process was stopped for a while.
                last = min((heard[key.data] for key in waiting.get_map().values()), default=math.inf)
                if time.monotonic() - last > self._timeout:
                    self._end(silence(self._timeout))
                    return

    def _end(self, loss: str) -> None:
        """Let this process end in order, or else end it with a message and exit code 1."""
        with self._changed:
            self._loss = loss
            self._changed.notify_all()
        self.hang_up()
        if not self._left.wait(GRACE_SECONDS):
            with suppress(OSError):
                print(f"error: {loss}. {self.remedy}", file=sys.stderr, flush=True)
            os._exit(1)


def silence(timeout: float) -> str:
    """Return a sentence about a process from which nothing was heard for some seconds."""
    return (
        f"nothing was heard from another process of this training for {timeout:g} seconds (train.timeout); its host or "
        "the network may be down"
    )


def connect(rank: int, world: int, timeout: float, exchange: Callable[[Any], list[Any]]) -> Peers:
    """Connect process 0, at the address `MASTER_ADDR`, with the others.

    Args:
        rank: number of this process.
        world: number of processes.
        timeout: seconds after which a silent process is lost.
        exchange: returns the arguments of all processes.

    Raises:
        TrainingError: not all processes could be connected.
    """
    if rank:
        port, token = exchange(None)[0]
        connections = _call(os.environ["MASTER_ADDR"], port, token)
    else:
        token = secrets.token_bytes(16)
        both = socket.has_dualstack_ipv6()
        with socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, backlog=world, dualstack_ipv6=both
        ) as server:
            exchange((server.getsockname()[1], token))
            connections = _answer(server, token, world - 1)
    for connection in connections:
        _set_options(connection, timeout)
    _open.update(connections)
    return Peers(connections, timeout, first=rank == 0)


def _set_options(connection: socket.socket, timeout: float) -> None:
    """Send messages at once, and let the network be away for as long as a process may be silent."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; by default it gives up after some 15 minutes
        milliseconds = round(1000 * (timeout + GRACE_SECONDS))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _call(host: str, port: int, token: bytes) -> list[socket.socket]:
    """Return the connection to process 0.

    Raises:
        TrainingError: it can't be reached.
    """
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
        connection.sendall(token)
    except OSError as error:
        raise TrainingError(
            f"process {os.environ['RANK']} can't reach process 0 at port {port} of {host} (MASTER_ADDR): {error}. "
            "The machines of a training must reach each other at all ports"
        ) from None
    return [connection]


def _answer(server: socket.socket, token: bytes, count: int) -> list[socket.socket]:
    """Return the connections to `count` processes that know the token.

    Raises:
        TrainingError: fewer processes have called.
    """
    connections: list[socket.socket] = []
    end = time.monotonic() + CONNECT_SECONDS
    while len(connections) < count and (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        with suppress(TimeoutError, ConnectionError):
            connection, _ = server.accept()
            connection.settimeout(min(left, TOKEN_SECONDS))
            try:
                known = secrets.compare_digest(connection.recv(len(token), socket.MSG_WAITALL), token)
            except OSError:
                known = False
            if known:
                connections.append(connection)
            else:
                connection.close()
    if len(connections) < count:
        raise TrainingError(
            f"only {len(connections)} of {count} processes have reached process 0 at port {server.getsockname()[1]} of "
            f"{os.environ['MASTER_ADDR']} (MASTER_ADDR). The machines of a training must reach each other at all ports"
        )
    return connections
