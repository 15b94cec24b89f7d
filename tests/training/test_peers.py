"""Real groups of processes, one of which is lost or told to end: the others end too, and the run can be resumed."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rcnn.cli.app import main
from rcnn.errors import TrainingError
from rcnn.signals import StopRequest
from rcnn.training import peers
from rcnn.training.distributed import join_processes
from rcnn.training.peers import LOST, Peers, ProcessLost, connect
from rcnn.training.trainer import Trainer
from rcnn.weights.file import load_weights
from tests.training.pieces import FEW_PROPOSALS, SMALL, assert_equal, rows, without_pictures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="loader processes are forked on Linux only")
SERVER = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
"""Forks processes from one that has imported all libraries and started no thread."""
PRELOADED = ("rcnn.cli.app", "rcnn.training.train", "rcnn.report.page", "tests.training.test_peers")
WORDS = [
    *("--model", "tiny-fpn", "--init", "none", "--epochs", "2", "--batch", "2", "--device", "cpu", "--lr", "0.02"),
    *(*SMALL, *FEW_PROPOSALS, "roi.dropout=0.2"),
]
"""Three steps in each of two epochs."""
NEW = ("--name", "try", "--out")
SECONDS = 120
RUN = Path("runs/try-1")


class Ended(NamedTuple):
    code: int
    output: str


def together(
    folder: Path,
    do: Callable[[int], object],
    meanwhile: Callable[[Sequence[int]], object] = lambda _: None,
    world: int = 2,
) -> list[Ended]:
    """Call a function in new processes with their rank, each in its own process group.

    Args:
        folder: where their output is written.
        do: what they do, with the environment of torchrun.
        meanwhile: what this process does then, with their numbers.
        world: number of processes.
    """
    with socket.create_server(("localhost", 0)) as server:
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.getsockname()[1]), "WORLD_SIZE": str(world)}
    SERVER.set_forkserver_preload([*PRELOADED])
    running = [SERVER.Process(target=live, args=(rank, folder, meeting, do)) for rank in range(world)]
    for process in running:
        process.start()
    meanwhile([process.pid or 0 for process in running])
    ended, end = [], time.monotonic() + SECONDS
    for rank, process in enumerate(running):
        while (code := process.exitcode) is None and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        assert code is not None, f"process {rank} has not ended"
        ended.append(Ended(code, (folder / f"{rank}.out").read_text(encoding="utf-8")))
    return ended


def live(rank: int, folder: Path, meeting: dict[str, str], do: Callable[[int], object]) -> None:
    os.setpgid(0, 0)
    os.environ.update(meeting, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = (folder / f"{rank}.out").open("w", encoding="utf-8", buffering=1)
    do(rank)


def before(owner: Any, name: str, number: int, do: Callable[[], object]) -> None:
    """Call `do` before the call of a function with this number, 1, 2, ...."""
    function, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            do()
        return function(*arguments, **options)

    setattr(owner, name, counted)


def train(words: Sequence[object], _: int) -> None:
    with without_pictures():
        main(["train", *map(str, words)])


def train_until_killed(words: Sequence[object], name: str, number: int, killed: int, rank: int) -> None:
    """Train; one process is killed in a call of a method of `Trainer`."""
    if rank == killed:
        before(Trainer, name, number, partial(os.kill, os.getpid(), signal.SIGKILL))
    train(words, rank)


def lose(folder: Path, words: Sequence[object], name: str, number: int, killed: int) -> None:
    """Train until one process is killed, and check how the other ends."""
    ended = together(folder, partial(train_until_killed, words, name, number, killed))
    assert ended[killed].code == -signal.SIGKILL, ended[killed].output
    assert ended[1 - killed].code == 1, ended[1 - killed].output
    message = " ".join(ended[1 - killed].output.partition("error: ")[2].split())
    assert message.startswith("another process of this training was lost")
    assert f"Resume with: rcnn train --resume {folder / RUN}" in message
    assert "Traceback" not in ended[1 - killed].output


def train_until_told(words: Sequence[object], folder: Path, told: Sequence[int], rank: int) -> None:
    """Train; before the second step, some processes wait for a signal."""
    received = threading.Event()
    before(StopRequest, "set", 1, received.set)

    def wait() -> None:
        if rank in told:
            (folder / f"{rank}.ready").touch()
            assert received.wait(SECONDS)

    before(Trainer, "is_late", 2, wait)
    train(words, rank)


def stop(folder: Path, words: Sequence[object], number: signal.Signals, told: Sequence[int]) -> None:
    """Train until the second step, then send a signal twice to the process groups of some ranks."""

    def send(processes: Sequence[int]) -> None:
        files, end = [folder / f"{rank}.ready" for rank in told], time.monotonic() + SECONDS
        while not all(file.exists() for file in files) and time.monotonic() < end:
            time.sleep(0.01)
        for _ in range(2):  # torchrun and schedulers send it more than once
            for rank in told:
                os.killpg(processes[rank], number)
        for file in files:
            file.unlink()

    ended = together(folder, partial(train_until_told, words, folder, told), send)
    assert [process.code for process in ended] == [128 + number] * 2, ended
    for process in ended:
        assert f"stopped by {number.name}. Resume with: rcnn train --resume" in " ".join(process.output.split())


def wait_until_ended(rank: int) -> None:
    """Wait, except in process 2: it forks a process that has its connection, and is killed."""
    peers.GRACE_SECONDS = 0.1
    with join_processes("cpu") as processes:
        processes.resumable(RUN)
        if rank == 2:
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10 * SECONDS)


def test_a_process_that_waits_for_a_lost_one_is_ended(tmp_path: Path) -> None:
    """Process 0 passes the loss on to process 1."""
    ended = together(tmp_path, wait_until_ended, world=3)
    assert [process.code for process in ended] == [1, 1, -signal.SIGKILL]
    expected = f"error: {LOST}. Resume with: rcnn train --resume {RUN}\n"
    assert [process.output for process in ended] == [expected, expected, ""]


def fail_together(agreed: bool, rank: int) -> None:
    peers.GRACE_SECONDS = 1.0
    try:
        with join_processes("cpu") as processes:
            if agreed:
                processes.part()
            if rank == 0:
                time.sleep(3 if agreed else 10 * SECONDS)  # it saves a checkpoint
            raise InterruptedError
    except InterruptedError:
        sys.exit(3)


@pytest.mark.parametrize("agreed", [True, False])
def test_a_process_that_ends_is_lost_unless_all_end(tmp_path: Path, agreed: bool) -> None:
    ended = together(tmp_path, partial(fail_together, agreed))
    assert [process.code for process in ended] == ([3, 3] if agreed else [1, 3])


def test_a_stranger_is_not_taken_for_a_process() -> None:
    def exchange(meeting: tuple[int, bytes]) -> list[tuple[int, bytes]]:
        for token in (b"", b"x" * 16, meeting[1]):
            callers.append(socket.create_connection(("localhost", meeting[0])))
            callers[-1].sendall(token)
            if not token:
                callers[-1].close()
        return [meeting]

    callers = list[socket.socket]()
    others = connect(0, 2, 60, exchange)
    others.part()
    assert callers[1].recv(1) == b""
    others.close()
    assert b"".join(iter(partial(callers[2].recv, 1), b"")).endswith(peers.DONE)
    for caller in callers:
        caller.close()


def test_a_process_at_work_is_waited_for_longer_than_a_silent_one() -> None:
    timeout = 0.2
    first, second = (Peers([end], timeout, first=number == 0) for number, end in enumerate(ends()))
    waiting = threading.Thread(target=second.meet)
    waiting.start()
    waiting.join(5 * timeout)
    assert waiting.is_alive()
    first.meet()
    waiting.join()
    for peer in (first, second):
        peer.part()
    for peer in (first, second):
        peer.meet()  # those that have parted do not come any more
        peer.close()


@pytest.mark.parametrize("first", [True, False])
def test_a_silent_process_is_lost(first: bool) -> None:
    mine, theirs = ends()
    others = Peers([mine], 0.2, first=first)
    with pytest.raises(ProcessLost, match=r"nothing was heard .* for 0\.2 seconds \(train\.timeout\)"):
        others.meet()
    others.close()
    theirs.close()


def ends() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_can_not_be_reached_is_an_error(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(peers, "CONNECT_SECONDS", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(TrainingError, match=r"process 0 at port .* must reach each other"):
        connect(rank, 3, 60, lambda _: [(port, b"token")])


def checkpoint(run: Path) -> list[str]:
    return [path.stem for path in (run / "checkpoints").iterdir()]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = together(folder, partial(train, (data, *WORDS, "--out", folder)))
    assert [process.code for process in ended] == [0, 0], ended
    return folder / "shapes-1"


def assert_ends_alike(folder: Path, run: Path, undisturbed: Path) -> None:
    ended = together(folder, partial(train, ("--resume", run)))
    assert [process.code for process in ended] == [0, 0], ended
    assert rows(run) == rows(undisturbed)
    for kind in ("weights/best", "weights/last", "checkpoints/step-6"):
        assert_equal(*(load_weights(path / f"{kind}.safetensors")[0] for path in (run, undisturbed)))


def test_a_group_that_loses_a_process_ends_and_resumes_to_the_bit(
    data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / RUN
    lose(tmp_path, (data, *WORDS, *NEW, run.parent, "--workers", 1), "step", 2, killed=1)
    assert checkpoint(run) == ["step-0"]
    lose(tmp_path, ("--resume", run), "validate", 1, killed=0)
    assert checkpoint(run) == ["step-3"]
    assert_ends_alike(tmp_path, run, undisturbed)


@pytest.mark.more
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize(
    ("name", "number", "saved"),
    [("step", 1, 0), ("step", 5, 3), ("save_checkpoint", 2, 0), ("validate", 2, 6), ("score_kept", 1, 6)],
)
def test_no_process_outlives_another(
    data: Path, tmp_path: Path, undisturbed: Path, killed: int, name: str, number: int, saved: int
) -> None:
    run = tmp_path / RUN
    lose(tmp_path, (data, *WORDS, *NEW, run.parent), name, number, killed)
    if name != "save_checkpoint" or not killed:  # process 0 may save before it notices
        assert checkpoint(run) == [f"step-{saved}"]
    assert_ends_alike(tmp_path, run, undisturbed)


def test_signals_to_process_groups_keep_the_finished_step(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """The loader processes receive them too. A signal to one process ends all of them."""
    run = tmp_path / RUN
    stop(tmp_path, (data, *WORDS, *NEW, run.parent, "--workers", 1), signal.SIGTERM, told=[0, 1])
    assert checkpoint(run) == ["step-2"]
    stop(tmp_path, ("--resume", run), signal.SIGHUP, told=[1])
    assert checkpoint(run) == ["step-4"]
    assert_ends_alike(tmp_path, run, undisturbed)


@pytest.mark.more
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_torchrun_that_receives_a_signal_keeps_the_finished_step(
    data: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals
) -> None:
    """The agent passes it on to the process groups of its processes, repeatedly."""
    run = tmp_path / RUN
    words = [*map(str, (data, *WORDS, *NEW, run.parent, "--workers", 1))]
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom pathlib import Path\nfrom tests.training.test_peers import train_until_told\n"
        f"train_until_told({words}, Path({str(tmp_path)!r}), [0, 1], int(os.environ['RANK']))\n"
    )
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, *module, str(program)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as agent:
        files, end = [tmp_path / f"{rank}.ready" for rank in range(2)], time.monotonic() + SECONDS
        while not all(file.exists() for file in files) and time.monotonic() < end:
            time.sleep(0.05)
        agent.send_signal(number)
        output = " ".join(agent.communicate(timeout=SECONDS)[1].split())
    assert output.count(f"stopped by {number.name}. Resume with: rcnn train --resume") == 2, output
    assert checkpoint(run) == ["step-2"]
    assert_ends_alike(tmp_path, run, undisturbed)
