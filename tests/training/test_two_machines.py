"""Two agents of torchrun train together, each in a network namespace of its own, and the link between them is cut.

Without the right to make namespaces, or without `ip`, both agents run on this host, and no link is cut.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rcnn.training.trainer import Trainer
from tests.torture.compare import differences
from tests.training.test_peers import before, train
from tests.training.test_restarts import PROGRAM, ROOT, WORDS, Moment, torchrun, train_until_killed

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
]
SECONDS = 240
TIMEOUT = 5
"""Value of `train.timeout`, seconds."""


class Machine(NamedTuple):
    """A place in which an agent runs.

    Attributes:
        prefix: command that runs another one there.
        address: its address.
        environment: variables to set.
    """

    prefix: tuple[str, ...]
    address: str
    environment: dict[str, str]


class Machines(NamedTuple):
    """Two machines.

    Attributes:
        machines: they.
        port: of the rendezvous, on the first one.
        link: sets the link between them `up` or `down`. None: there is none.
    """

    machines: list[Machine]
    port: int
    link: Callable[[str], object] | None


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def namespaces() -> Iterator[Machines]:
    """Two network namespaces with a link between them."""
    names = [f"rcnn-{os.getpid()}-{number}" for number in (1, 2)]
    ends = [f"rcnn{os.getpid()}{letter}" for letter in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        machines = []
        for name, end, address in zip(names, ends, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
            machines.append(Machine(("ip", "netns", "exec", name), address, {"GLOO_SOCKET_IFNAME": end}))
        yield Machines(machines, 29500, lambda state: ip("-n", names[1], "link", "set", ends[1], state))
    finally:
        for name in names:  # the processes of a killed agent outlive it
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in map(int, pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(namespaces())
        except (OSError, subprocess.CalledProcessError):
            with socket.create_server(("localhost", 0)) as server:
                port = server.getsockname()[1]
            found = Machines([Machine((), "127.0.0.1", {})] * 2, port, None)
        yield found


class Agent:
    """A torchrun in a process group of its own, on one of the machines."""

    def __init__(self, folder: Path, machines: Machines, number: int, run_id: str, words: Sequence[str]) -> None:
        machine = machines.machines[number]
        self.output = folder / f"agent-{number}.out"
        options = (
            *("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", f"--rdzv-id={run_id}", "--rdzv-backend=c10d"),
            *(f"--rdzv-endpoint={machines.machines[0].address}:{machines.port}", f"--local-addr={machine.address}"),
            f"--rdzv-conf=is_host={int(number == 0)}",  # by default found out from the name of the host
        )
        command = [*machine.prefix, sys.executable, "-m", "torch.distributed.run", *options, *words]
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "NO_COLOR": "1"}
        environment = {**os.environ, **variables, "COLUMNS": "1000", **machine.environment}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End the agent and its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()


@contextmanager
def agents(folder: Path, machines: Machines, function: Callable[..., None], *arguments: Any) -> Iterator[list[Agent]]:
    """Call a function with torchrun on both machines."""
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    words = ["program.py", f"{function.__module__}:{function.__name__}", json.dumps(arguments)]
    running = list[Agent]()
    try:
        for number in range(2):
            running.append(Agent(folder, machines, number, folder.name, words))
        yield running
    finally:
        for agent in running:
            agent.stop()


def wait(what: Callable[[], bool], running: Sequence[Agent]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "\n".join(agent.text for agent in running)
        time.sleep(0.05)


def train_until_cut(words: Sequence[str]) -> None:
    """Train; in the first life, process 0 waits in its fifth step until the link is cut."""

    def wait_for_cut() -> None:
        Path("ready").touch()
        while not Path("cut").exists():
            time.sleep(0.05)

    if os.environ["RANK"] == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        before(Trainer, "step", 5, wait_for_cut)
    train(words, int(os.environ["RANK"]))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes on one machine."""
    return torchrun(tmp_path_factory.mktemp("one-machine") / "undisturbed", data, [])


def assert_ends_alike(folder: Path, running: Sequence[Agent], undisturbed: Path) -> None:
    wait(lambda: all(agent.process.poll() is not None for agent in running), running)
    assert [agent.process.returncode for agent in running] == [0, 0], "\n".join(agent.text for agent in running)
    (run,) = (folder / "runs").glob("[!.]*")
    assert not list(differences(run, undisturbed))


def test_two_machines_restart_and_end_to_the_bit(
    data: Path, tmp_path: Path, machines: Machines, undisturbed: Path
) -> None:
    moments = [Moment("Trainer", "step", 5, killed=1)]
    with agents(tmp_path / "killed", machines, train_until_killed, [str(data), *WORDS], moments) as running:
        assert_ends_alike(tmp_path / "killed", running, undisturbed)
    assert (tmp_path / "killed" / "killed-0").exists()


def test_a_cut_link_is_noticed_on_both_sides(data: Path, tmp_path: Path, machines: Machines, undisturbed: Path) -> None:
    """Both sides name the command that resumes the run. When the link is back, torchrun continues it."""
    if machines.link is None:
        pytest.skip("no network namespaces can be made here: this needs root, `ip` (iproute2) and the right to do so")
    folder, words = tmp_path / "cut", [str(data), *WORDS, f"train.timeout={TIMEOUT}"]
    with agents(folder, machines, train_until_cut, words) as running:
        wait((folder / "ready").exists, running)
        machines.link("down")
        (folder / "cut").touch()
        resume = "Resume with: rcnn train --resume runs/try-1"
        wait(lambda: all(resume in agent.text for agent in running), running)
        machines.link("up")
        assert_ends_alike(folder, running, undisturbed)
    for agent in running:
        assert agent.text.count(resume) == 1
