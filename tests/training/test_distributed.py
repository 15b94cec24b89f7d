import os
import socket
import threading
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rcnn.data.loading.loader import Item
from rcnn.training.distributed import join_processes, new_store, with_strides
from rcnn.training.step import backward
from tests.model import tiny
from tests.training import pieces
from tests.training.pieces import ALONE

CHANGES = {"anchors": {"border": 0}, "roi": {"samples": 24}}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def uneven(dtype: torch.dtype) -> Item:
    """Return four tiny images, with few anchors inside and few proposals, then four larger ones without objects."""
    whole = pieces.item(count=8, dtype=dtype)
    whole.batch.sizes[:4] = 20
    whole.targets.boxes[:4] = torch.tensor([3.0, 2, 19, 18], dtype=dtype)
    whole.targets.valid[:] = False
    whole.targets.valid[:4, 0] = True
    return whole


def counts(model: torch.nn.Module, item: Item) -> dict[str, float]:
    keys = model.keys(item.batch, item.targets, item.seeds)
    return {name: count.item() for name, (_, count) in model.loss(item.batch, item.targets, keys).items()}


def worker(folder: Path, meeting: dict[str, str]) -> None:
    """Write the gradients and losses of one of two processes on its half of the batch."""
    os.environ.update(meeting)
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    with join_processes("cpu") as pair:
        for dtype in TOLERANCE:
            model = tiny.model(CHANGES).to(dtype)
            half = pieces.part(uneven(dtype), slice(4 * pair.rank, 4 * pair.rank + 4))
            state = pieces.state(model, distributed=pair)
            losses, requests = backward(state, pair, half, 1, (pair.rank == 1,)).read()
            assert requests == (1,)
            torch.save((tiny.gradients(model), losses), folder / f"{pair.rank}-{dtype}.pt")
        assert pair.gather(pair.rank) == [0, 1]
        assert pair.collect(pair.rank) == ([0, 1] if pair.writer else [])
        assert pair.share(str(pair.rank)) == "0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two gloo processes on the two halves."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = get_context("fork" if hasattr(os, "fork") else "spawn")
    running = [processes.Process(target=worker, args=(folder, {**meeting, "RANK": str(rank)})) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    return folder


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_two_processes_have_the_gradients_of_one_with_both_halves(folder: Path, dtype: torch.dtype) -> None:
    model = tiny.model(CHANGES).to(dtype)
    losses, _ = backward(pieces.state(model), ALONE, uneven(dtype)).read()
    expected = tiny.gradients(model)
    for rank in range(2):
        found, shared = torch.load(folder / f"{rank}-{dtype}.pt")
        assert pieces.difference(found, expected) < TOLERANCE[dtype]
        assert shared == pytest.approx(losses, rel=TOLERANCE[dtype])


def test_averaging_the_losses_of_the_halves_gives_other_gradients() -> None:
    model = tiny.model(CHANGES).double()
    whole = uneven(torch.float64)
    halves = [pieces.part(whole, slice(0, 4)), pieces.part(whole, slice(4, 8))]
    first, second = (pieces.gradients(model, half) for half in halves)
    mean = {name: (gradient + second[name]) / 2 for name, gradient in first.items()}
    assert pieces.difference(mean, pieces.gradients(model, whole)) > 0.01
    few, many = (counts(model, half) for half in halves)
    assert few["rpn_objectness"] != many["rpn_objectness"]
    assert few["roi_class"] != many["roi_class"]


def test_only_strides_of_axes_of_length_1_are_changed() -> None:
    kernel = torch.randn(12, 16, 1, 1)
    found = with_strides((16, 1, 16, 16), kernel)
    assert found.stride() == (16, 1, 16, 16)
    assert found.data_ptr() == kernel.data_ptr()
    assert torch.equal(found, kernel)
    assert with_strides((1, 12, 12, 12), kernel) is kernel


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_each_start_uses_a_part_of_the_store_of_its_own(order: tuple[int, ...]) -> None:
    """Torchrun keeps the store when it restarts the processes."""

    def join(rank: int) -> None:
        parts[rank] = new_store(clients[rank], rank, 3, 60)

    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    clients = [dist.TCPStore("localhost", server.port, timeout=timedelta(seconds=60)) for _ in range(3)]
    for start in range(3):
        parts = dict[int, dist.Store]()
        joining = [threading.Thread(target=join, args=(rank,)) for rank in order]
        for thread in joining:
            thread.start()
        for thread in joining:
            thread.join()
        assert not parts[1].check(["key"])
        parts[0].set("key", str(start))
        assert [parts[rank].get("key") for rank in (1, 2)] == [b"%d" % start] * 2
