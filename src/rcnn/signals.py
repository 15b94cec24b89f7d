"""SIGTERM and SIGHUP end a command as Ctrl-C does: finished work is kept, and the exit code depends on the signal.

Signals that the parent process ignores, as with `nohup`, stay ignored. Handlers of the caller are not replaced.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATION = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """The process was told to end by SIGTERM or SIGHUP.

    Attributes:
        exit_code: 128 plus the number of the signal, as shells report it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopRequest(threading.Event):
    """Set when a signal asks to stop after the current step.

    Attributes:
        number: of the first signal.
    """

    number: int = signal.SIGINT

    def error(self) -> KeyboardInterrupt:
        """Return the error that the signal means."""
        return interruption(self.number)


def interruption(number: int) -> KeyboardInterrupt:
    """Return the error that a signal means."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise `Terminated` in the block for the first SIGTERM or SIGHUP, and ignore later ones: senders repeat them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = [number for number in TERMINATION if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def patient() -> Iterator[StopRequest]:
    """Make signals set the request instead of interrupting a step. Only a second Ctrl-C interrupts it."""
    request, presses = StopRequest(), 0
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def remember(number: int, _: FrameType | None) -> None:
        nonlocal presses
        presses += number == signal.SIGINT
        if presses > 1:
            raise KeyboardInterrupt
        if not request.is_set():
            request.number = number
            request.set()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *TERMINATION)}
    replaced = {
        number: handler
        for number, handler in previous.items()
        if handler in (_terminate, _ignore) or (number == signal.SIGINT and handler is not signal.SIG_IGN)
    }
    for number in replaced:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def workers_unheard() -> Iterator[None]:
    """Postpone the handler of SIGCHLD to the end of the block, unless the block raises.

    torch's handler raises an error if a loader process was lost, and would interrupt a step in the middle.
    """
    number = getattr(signal, "SIGCHLD", None)
    handler = None if number is None else signal.getsignal(number)
    if number is None or not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received = list[int]()
    signal.signal(number, lambda *_: received.append(number))
    try:
        yield
    finally:
        signal.signal(number, handler)
    if received:
        handler(number, None)


def _terminate(number: int, _: FrameType | None) -> None:
    for other in TERMINATION:
        if signal.getsignal(other) is _terminate:
            signal.signal(other, _ignore)
    raise Terminated(number)


def _ignore(number: int, _: FrameType | None) -> None:
    """Do nothing. Unlike `SIG_IGN`, programs that are started now do not inherit it."""
