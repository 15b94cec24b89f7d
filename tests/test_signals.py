import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rcnn.signals import TERMINATION, Terminated, patient, termination_interrupts, workers_unheard


@pytest.mark.parametrize("number", TERMINATION)
def test_a_signal_to_end_interrupts_once(number: signal.Signals) -> None:
    before = [signal.getsignal(other) for other in TERMINATION]
    with termination_interrupts():
        with pytest.raises(Terminated, match=number.name) as ended:
            signal.raise_signal(number)
        for other in TERMINATION:
            signal.raise_signal(other)  # repeated, for example while results are being written
    assert ended.value.exit_code == 128 + number
    assert [signal.getsignal(other) for other in TERMINATION] == before


def test_only_a_second_ctrl_c_interrupts_a_step() -> None:
    before = signal.getsignal(signal.SIGINT)
    with termination_interrupts(), patient() as request:
        assert not request.is_set()
        for number in (*TERMINATION, *TERMINATION, signal.SIGINT):
            signal.raise_signal(number)
        assert (request.is_set(), request.number) == (True, TERMINATION[0])
        assert isinstance(request.error(), Terminated)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_a_plain_interrupt() -> None:
    with patient() as request:
        signal.raise_signal(signal.SIGINT)
        assert not isinstance(request.error(), Terminated)


@pytest.mark.parametrize("ignored", [signal.SIGINT, *TERMINATION])
def test_an_ignored_signal_stays_ignored(ignored: signal.Signals) -> None:
    code = (
        "import signal, sys; from rcnn.signals import patient, termination_interrupts\n"
        "with termination_interrupts(), patient() as request:\n"
        f"    signal.raise_signal({int(ignored)})\n"
        "    sys.exit(request.is_set())\n"
    )
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
    finally:
        signal.signal(ignored, before)


def test_a_handler_of_the_caller_stays() -> None:
    received = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with termination_interrupts(), patient() as request:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert not request.is_set()


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """A handler of SIGCHLD like torch's, and the signals that it has received."""
    received = list[int]()

    def lost(number: int, _: object) -> None:
        received.append(number)
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    before = signal.signal(signal.SIGCHLD, lost)
    yield received
    signal.signal(signal.SIGCHLD, before)


def test_the_loss_of_a_worker_is_reported_after_the_block(handled: list[int]) -> None:
    def block() -> None:
        with workers_unheard():
            with workers_unheard():
                signal.raise_signal(signal.SIGCHLD)
            signal.raise_signal(signal.SIGCHLD)
            assert not handled

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        block()
    assert handled == [signal.SIGCHLD]
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        signal.raise_signal(signal.SIGCHLD)


def test_an_error_of_the_block_is_not_replaced_by_the_loss_of_a_worker(handled: list[int]) -> None:
    def block() -> None:
        with workers_unheard():
            signal.raise_signal(signal.SIGCHLD)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert not handled
