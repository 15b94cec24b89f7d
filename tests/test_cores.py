import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcnn import cores
from rcnn.config import Data
from rcnn.cores import CoreMeter, advised_threads, cpu_quota, spare_cores, usable_cores
from rcnn.data.formats.find import open_splits
from rcnn.data.loading.workers import choose_workers
from rcnn.runtime.eager import choose_device
from rcnn.runtime.precision import limit_threads
from tests.training.pieces import shapes

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write what Linux shows of the control groups of a process."""
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v1(root: str = "/", where: str = "/sys/fs/cgroup/cpu,cpuacct") -> str:
    memory = "32 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    return f"{memory}33 31 0:29 {root} {where} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def limits(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    where = f"sys/fs/cgroup/cpu,cpuacct{folder}"
    return {f"{where}/cpu.cfs_quota_us": f"{quota}\n", f"{where}/cpu.cfs_period_us": f"{period}\n"}


CASES = {
    "version 2, a container's own group": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "version 2, no limit": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
    "version 2, the group above has the limit": (
        *("0::/slurm/job/step\n", V2),
        {
            "sys/fs/cgroup/slurm/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/slurm/job/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/slurm/job/step/cpu.max": "max 100000\n",
        },
        2.0,
    ),
    "version 2, the group has the lowest limit": (
        *("0::/a/b\n", V2),
        {"sys/fs/cgroup/a/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, a name with blanks": (
        *("0::/a b\n", V2.replace("/sys/fs/cgroup", r"/sys/fs/c\040group")),
        {"sys/fs/c group/a b/cpu.max": "300000 100000\n"},
        3.0,
    ),
    "version 2, a group outside the namespace": (
        *("0::/../other\n", V2),
        {"sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "version 1": ("4:cpu,cpuacct:/\n0::/\n", v1(), limits("", 250_000), 2.5),
    "version 1, no limit": ("4:cpu,cpuacct:/\n", v1(), limits("", -1), math.inf),
    "version 1, another period": ("4:cpu,cpuacct:/\n", v1(), limits("", 20_000, 10_000), 2.0),
    "version 1, nested": (
        "9:memory:/m\n4:cpu,cpuacct:/docker/1\n",
        v1(),
        limits("", -1) | limits("/docker", 300_000) | limits("/docker/1", 400_000),
        3.0,
    ),
    "version 1, a container without a namespace": (
        "4:cpu,cpuacct:/docker/1\n",
        v1(root="/docker/1"),
        limits("", 200_000),
        2.0,
    ),
    "both versions, the limit in version 1": (
        "4:cpu,cpuacct:/\n0::/\n",
        v1() + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        limits("", 200_000),
        2.0,
    ),
    "the files are missing": ("0::/gone\n", V2, {}, math.inf),
    "not numbers": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "two cores\n"}, math.inf),
    "a period of zero": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "1000 0\n"}, math.inf),
    "no groups": ("", "", {}, math.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_is_the_lowest_of_the_group_and_those_above(case: str, tmp_path: Path) -> None:
    groups, mounts, files, quota = CASES[case]
    assert cpu_quota(tree(tmp_path, groups, mounts, files)) == quota


def test_a_system_without_proc_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf
    assert cpu_quota() > 0


@given(groups=st.text(), mounts=st.text(), quota=st.text())
def test_no_text_of_the_system_raises(
    groups: str, mounts: str, quota: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("root")
    for cgroups, mountinfo in ((groups, mounts), ("0::/\n" + groups, V2 + mounts)):
        files = {"sys/fs/cgroup/cpu.max": quota}
        cpu_quota.cache_clear()
        assert cpu_quota(tree(folder, cgroups, mountinfo, files)) > 0


@pytest.mark.parametrize(
    ("visible", "quota", "processes", "cores"),
    [
        (8, math.inf, 1, 8),
        (8, 2.0, 1, 2),
        (8, 2.9, 1, 2),
        (2, 6.0, 1, 2),
        (8, 0.5, 1, 1),
        (8, 4.0, 2, 2),
        (2, 2.0, 8, 1),
    ],
)
def test_cores_are_limited_by_the_quota_and_shared_by_the_processes(
    visible: int, quota: float, processes: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(visible)), raising=False)
    monkeypatch.setattr("rcnn.cores.cpu_quota", lambda: quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usable_cores() == cores
    assert spare_cores() == cores - 1


@pytest.mark.parametrize(
    ("threads", "variables", "limited"),
    [
        (8, {}, 2),
        (1, {}, 1),
        (8, {"OMP_NUM_THREADS": "8"}, 8),
        (16, {}, 16),  # more than there are cores: chosen by someone
    ],
)
def test_pytorch_computes_in_as_many_threads_as_the_quota_allows(
    threads: int, variables: dict[str, str], limited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = threads

    def set_number(wanted: int) -> None:
        nonlocal number
        number = wanted

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("rcnn.cores.cpu_quota", lambda: 2.0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    monkeypatch.setattr(torch, "set_num_threads", set_number)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    limit_threads.cache_clear()
    try:
        choose_device("cpu")
        assert number == limited
        number = 7
        choose_device("cpu")
        assert number == 7  # a number that is set later stays
    finally:
        limit_threads.cache_clear()


@pytest.mark.parametrize(
    ("ran", "waited", "threads", "advised"),
    [
        (10.0, 0.1, 2, None),  # alone
        (4.0, 6.0, 2, 1),  # two busy processes on the same two cores
        (8.0, 8.0, 16, 8),
        (1.0, 99.0, 64, 1),
        (4.0, 6.0, 1, None),  # one thread waits for no other
        (1.0, 2.0, 2, None),  # too short to judge
        (7.5, 2.5, 2, None),  # the least share is enough
    ],
)
def test_fewer_threads_are_advised_if_they_do_not_get_their_time(
    ran: float, waited: float, threads: int, advised: int | None
) -> None:
    assert advised_threads(ran, waited, threads) == advised


@given(ran=st.floats(0, 1e6), waited=st.floats(0, 1e6), threads=st.integers(1, 512))
def test_the_advice_is_fewer_threads_and_at_least_one(ran: float, waited: float, threads: int) -> None:
    advised = advised_threads(ran, waited, threads)
    assert advised is None or 1 <= advised < threads


def test_the_remark_is_told_once_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(0.0, 0.0), (1.0, 1.0), (1.0, 9.0), (2.0, 10.0)])
    monkeypatch.setattr(cores, "_times", lambda: next(times))
    meter = CoreMeter()
    with meter.computing(2):
        pass
    assert meter.remarks(2) == []  # two seconds do not tell
    with meter.computing(2):  # eight seconds between the steps do not count
        pass
    assert meter.remarks(2) == []
    monkeypatch.setattr(cores, "MEASURED_SECONDS", 4.0)
    (remark,) = meter.remarks(2)
    assert "the 2 threads of this process get only 50% of the CPU time" in remark
    assert remark.endswith("OMP_NUM_THREADS=1 before the command")
    assert meter.remarks(2) == []
    with meter.computing(2):  # enough is known: the times are not read again
        pass


def test_time_on_the_cpu_counts_as_run_and_sleep_as_waiting_where_linux_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "TASKS", tmp_path)
    ran, waited = cores._times()
    time.sleep(0.05)
    slept, after = cores._times()
    assert after - waited >= 0.04
    while time.thread_time() < slept + 0.05:
        pass
    assert cores._times()[0] - ran >= 0.05


def test_linux_tells_how_long_each_thread_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in enumerate(("3000000000 1000000000 7\n", "500000000 2000000000 9\n")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(text)
    (tmp_path / "ended").mkdir()
    monkeypatch.setattr(cores, "TASKS", tmp_path)
    assert cores._times() == (3.5, 3.0)


def test_threads_are_counted_in_one_place() -> None:
    """Other numbers of cores know neither the quota nor the other processes of the machine."""
    source, counts = Path(cores.__file__).parent, re.compile(r"cpu_count\(|sched_getaffinity\(")
    files = {path for path in source.rglob("*.py") if counts.search(path.read_text(encoding="utf-8"))}
    assert files == {source / "cores.py", source / "training" / "run_folder.py"}  # the second describes the machine


def test_pools_have_the_share_of_their_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def ahead(make: Callable[[Any], Any], arguments: Iterable[Any], threads: int) -> Iterator[Any]:
        started.append(threads)
        yield from map(make, arguments)

    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("rcnn.cores.cpu_quota", lambda: math.inf)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("rcnn.data.image_checks.ahead", ahead)
    open_splits(shapes(tmp_path, 1, 1), Data())
    assert {*started} == {0, 2}  # 0: headers are read in the calling thread
    assert choose_workers(None, torch.device("cuda")).number == 1
