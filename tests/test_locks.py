"""A folder of a run or shard has one owner, and a folder of results one command."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcnn import locks
from rcnn.errors import SettingsError
from rcnn.locks import FILE_NAME, lock

HOLD = """
import os, sys
from pathlib import Path
from rcnn.locks import lock
with lock(Path(sys.argv[1])):
    worker = os.fork()
    if worker == 0:
        os._exit(0)  # a worker's end, which closes its copies of all descriptors, leaves the lock to its parent
    os.waitpid(worker, 0)
    print("held", flush=True)
    sys.stdin.readline()
"""

CLAIM = """
import os, sys
from pathlib import Path
from rcnn.cli.files import fresh_folder
out, rounds, processes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
barrier = [os.pipe() for _ in range(rounds)]
for number in range(processes):
    if os.fork() == 0:
        claimed = []
        for round, (reader, writer) in enumerate(barrier):
            os.read(reader, 1)
            claimed.append(str(fresh_folder(out / str(round))))
        (out / f"claims-{number}").write_text("\\n".join(claimed))
        os._exit(0)
for reader, writer in barrier:
    os.write(writer, b"." * processes)
for number in range(processes):
    assert os.wait()[1] == 0
"""


@contextmanager
def held_by_another_process(folder: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, env=os.environ | environment, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_free_after_its_owner_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path):
            assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()
        assert not list(tmp_path.iterdir())


def test_a_second_owner_in_the_same_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    message = "is being trained in this process already"
    with lock(tmp_path / "run"), pytest.raises(SettingsError, match=message), lock(tmp_path / "link"):
        pass


def test_a_second_process_is_refused_and_told_whose_it_is(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as process:
        message = rf"by process {process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        with pytest.raises(SettingsError, match=message), lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with lock(tmp_path):  # the lock of a killed process has ended with it
            pass
    assert not list(tmp_path.iterdir())


def write_owner(folder: Path, age: float, host: str = "elsewhere") -> None:
    owner = {"pid": 7, "host": host, "started": "2026-01-01 00:00:00+00:00"}
    (folder / FILE_NAME).write_text(json.dumps(owner))
    os.utime(folder / FILE_NAME, (time.time() - age,) * 2)


def test_an_owner_on_another_host_counts_until_its_heart_stops(tmp_path: Path) -> None:
    write_owner(tmp_path, age=30)
    message = r"by process 7 on elsewhere .* can be resumed in (2\d|30) s"
    with pytest.raises(SettingsError, match=message), lock(tmp_path):
        pass
    write_owner(tmp_path, age=90)
    with lock(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["host"] == socket.gethostname()


def test_a_file_system_without_locks_has_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    write_owner(tmp_path, age=30, host=socket.gethostname())
    with pytest.raises(SettingsError, match="by process 7"), lock(tmp_path):
        pass


@pytest.mark.parametrize("contents", [b"", b"[", b"{}", b"\xff" * 20_000])
def test_a_damaged_file_without_a_lock_is_replaced(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(contents)
    with lock(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()


def test_the_owner_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    with lock(tmp_path):
        os.utime(tmp_path / FILE_NAME, (0, 0))
        deadline = time.monotonic() + 60
        while not (tmp_path / FILE_NAME).stat().st_mtime:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_restart_by_the_same_torchrun_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    with held_by_another_process(tmp_path) as process:
        timer = threading.Timer(1.0, process.kill)
        timer.start()
        with lock(tmp_path):
            assert process.wait() < 0
    other_job = held_by_another_process(tmp_path, TORCHELASTIC_RUN_ID="job-2")
    with other_job, pytest.raises(SettingsError, match="is being trained already"), lock(tmp_path):
        pass


@pytest.mark.parametrize("repeats", [1, pytest.param(10, marks=pytest.mark.more)])
def test_no_two_commands_write_into_one_folder(tmp_path: Path, repeats: int) -> None:
    rounds, processes = 100, 8
    for repeat in range(repeats):
        out = tmp_path / str(repeat)
        out.mkdir()
        subprocess.run([sys.executable, "-c", CLAIM, str(out), str(rounds), str(processes)], check=True, timeout=100)
        claims = [line for number in range(processes) for line in (out / f"claims-{number}").read_text().split("\n")]
        assert len(claims) == rounds * processes
        assert len(set(claims)) == len(claims)
