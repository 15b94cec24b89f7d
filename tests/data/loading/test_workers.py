"""The processes or threads that load the batches, by device and machine."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from rcnn.data.loading import workers
from rcnn.data.loading.workers import Workers, choose_workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")
REALLY = workers.may_fork


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, plenty of shared memory, and processes that can be forked."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("rcnn.cores.cpu_quota", lambda: math.inf)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 33))
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: True)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_a_gpu_gets_processes_and_the_cpu_the_main_thread() -> None:
    assert choose_workers(None, GPU) == Workers(7, "process")
    assert choose_workers(None, CPU) == Workers(0, "thread")
    assert choose_workers(3, CPU) == Workers(3, "process")
    assert choose_workers(0, GPU).number == 0
    assert [str(Workers(count, "process")) for count in (1, 2)] == ["1 process", "2 processes"]
    assert [str(Workers(count, "thread")) for count in (1, 2)] == ["1 thread", "2 threads"]


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_workers(None, GPU).number == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (choose_workers(None, GPU).number, choose_workers(None, CPU).number) == (1, 0)


def test_threads_where_processes_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 26))
    assert choose_workers(None, GPU) == Workers(7, "thread")
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: False)
    assert choose_workers(4, GPU) == Workers(4, "thread")


def test_processes_are_not_forked_beside_a_runtime_or_where_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())  # type: ignore[arg-type]
    assert not REALLY()
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not REALLY()
