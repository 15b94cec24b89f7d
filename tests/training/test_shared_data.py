"""One process of each host reads the data; the others receive the same data, or the same error."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.config import Data
from rcnn.data.formats.find import open_splits
from rcnn.errors import DataError
from rcnn.training import shared_data
from rcnn.training.distributed import Distributed, once
from rcnn.training.shared_data import Splits, open_shared
from tests.data.test_list_cache import make, text_of

Environment = dict[str, str]


class Exchange:
    """The exchange of some threads in place of processes."""

    def __init__(self, world: int) -> None:
        self.items: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def member(self, rank: int) -> Distributed:
        """Return the `Distributed` of a thread."""
        exchange = self

        class Member(Distributed):
            def gather(self, item: Any) -> list[Any]:
                exchange.items[rank] = item
                exchange.barrier.wait()
                items = [*exchange.items]
                exchange.barrier.wait()
                return items

            def share(self, item: Any) -> Any:
                return self.gather(item)[0]

        return Member(torch.device("cpu"), rank, len(self.items))


def hosts(*processes: int) -> list[Environment]:
    """Return what `torchrun` sets in the processes of hosts with so many processes each."""
    return [
        {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(number)} for number in processes for local in range(number)
    ]


def run(environments: Sequence[Environment], open_data: Callable[[], Splits]) -> tuple[list[Any], list[int]]:
    """Return what `open_shared` returned or raised in every process, and the processes that read."""
    exchange, readers = Exchange(len(environments)), list[int]()

    def process(rank: int) -> Any:
        def read() -> Splits:
            readers.append(rank)
            return open_data()

        try:
            return open_shared(exchange.member(rank), read, environments[rank])
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(environments)) as pool:
        results = [*pool.map(process, range(len(environments)))]
    return results, sorted(readers)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return make(tmp_path / "data", "coco")


@pytest.mark.parametrize(
    ("environments", "readers"),
    [
        (hosts(3), [0]),
        (hosts(2, 1, 2), [0, 2, 3]),
        ([{}, {}], [0, 1]),
        ([{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}], [0, 1]),
        ([*hosts(2), {}], [0, 2]),
        ([{}], [0]),
        ([{"LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "2"}, {"LOCAL_RANK": "9", "LOCAL_WORLD_SIZE": "2"}], [0, 1]),
    ],
    ids=str,
)
def test_one_process_of_each_host_reads(
    environments: list[Environment], readers: list[int], root: Path, tmp_path: Path
) -> None:
    expected = text_of([*open_splits(root, Data())])
    results, found = run(environments, lambda: open_splits(root, Data()))
    assert found == readers
    assert [text_of([*splits]) for splits in results] == [expected] * len(environments)
    assert not [*(tmp_path / "temporary").iterdir()]


def test_a_fault_is_the_same_error_in_every_process(root: Path, tmp_path: Path) -> None:
    (root / "images/a.jpg").unlink()
    results, readers = run(hosts(2, 2), lambda: open_splits(root, Data()))
    assert readers == [0, 2]
    with pytest.raises(DataError) as expected:
        open_splits(root, Data())
    for error in results:
        assert type(error) is DataError
        assert str(error) == str(expected.value)
        assert error.faults == expected.value.faults
    assert not [*(tmp_path / "temporary").iterdir()]


def test_all_read_if_the_temporary_folder_is_full_or_another_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_data, "save_datasets", full)
        results, readers = run(hosts(2), lambda: open_splits(root, Data()))
    assert readers == [0, 1]
    assert len({text_of([*splits]) for splits in results}) == 1
    monkeypatch.setattr(shared_data, "save_datasets", lambda *_: None)
    assert run(hosts(2), lambda: open_splits(root, Data()))[1] == [0, 1]


def test_an_error_of_a_process_that_reads_for_itself_reaches_the_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_data, "save_datasets", lambda *_: None)
    turns = iter(range(2))

    def read() -> Splits:
        if next(turns):
            raise DataError("gone")
        return open_splits(root, Data())

    results, _ = run(hosts(2), read)
    assert [str(error) for error in results] == ["gone", "gone"]


@pytest.mark.parametrize("failure", [None, DataError("gone"), OSError(5, "Input/output error")])
def test_process_0_computes_for_all(failure: Exception | None) -> None:
    exchange = Exchange(3)

    def compute() -> str:
        if failure is not None:
            raise failure
        return threading.current_thread().name

    def process(rank: int) -> Any:
        threading.current_thread().name = f"process {rank}"
        try:
            return once(exchange.member(rank), compute)
        except Exception as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(process, range(3))] == [failure or "process 0"] * 3


def test_a_change_in_one_process_does_not_reach_the_others(root: Path) -> None:
    """The file is mapped for each process separately, and is gone once all have opened it."""
    results, _ = run(hosts(3), lambda: open_splits(root, Data()))
    first, second, third = (splits[0].records for splits in results)
    second.boxes[:] = 0
    assert (third.boxes == first.boxes).all()
    assert not (second.boxes == first.boxes).all()
