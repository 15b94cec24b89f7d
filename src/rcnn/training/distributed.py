"""Processes that train together, started by `torchrun`: ranks, seeds, and the exchange of numbers.

They use NCCL on CUDA and gloo on the CPU. A single process is a world of size 1 and runs the same code.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from rcnn.config import Settings
from rcnn.errors import DataError, SettingsError, StorageError, TrainingError, WeightsError
from rcnn.runtime.eager import choose_device
from rcnn.training.peers import GRACE_SECONDS, LOST, Peers, ProcessLost, connect

Item = TypeVar("Item")
FAILURES = (DataError, SettingsError, WeightsError, StorageError, OSError)
"""Errors of the user's files, which are the same in all processes that read them."""

START_SECONDS = 300.0
"""Minimum time in which all processes must have started, whatever `train.timeout` is."""


@dataclass(frozen=True)
class Distributed:
    """The processes of a run.

    Attributes:
        device: device of this process.
        rank: number of this process, 0..world - 1; process 0 writes files and prints.
        world: number of processes.
        peers: watch over the other processes. None: there are no others.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    peers: Peers | None = None

    @property
    def writer(self) -> bool:
        """True if this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def meet(self) -> None:
        """Wait until all processes are here, even if one of them works for longer than an exchange may take.

        Every exchange that may follow such work of process 0 (reading data, validation, drawing, reports) begins with
        this. `gather`, `collect` and `share` do so by themselves.

        Raises:
            ProcessLost: another process is lost or silent.
        """
        if self.peers:
            self.peers.meet()

    def gather(self, item: Item) -> list[Item]:
        """Return the items of all processes by rank, on every process."""
        if self.world == 1:
            return [item]
        self.meet()
        items: list[Item] = [item] * self.world
        dist.all_gather_object(items, item)
        return items

    def resumable(self, folder: Path) -> None:
        """Remember that the run in a folder can be resumed, for the message after the loss of another process."""
        if self.peers:
            self.peers.remedy = f"Resume with: rcnn train --resume {folder}"

    def part(self) -> None:
        """End the exchange in agreement with all other processes, none of which is lost when it ends."""
        if self.peers:
            self.peers.part()

    def collect(self, item: Item) -> list[Item]:
        """Return the items of all processes by rank in process 0, and an empty list in the others."""
        if self.world == 1:
            return [item]
        self.meet()
        items: list[Item] = [item] * self.world if self.writer else []
        dist.gather_object(item, items if self.writer else None)
        return items

    def share(self, item: Item) -> Item:
        """Return the item of process 0, in every process."""
        items = [item]
        if self.world > 1:
            self.meet()
            dist.broadcast_object_list(items)
        return items[0]

    def wrap(self, module: nn.Module, accumulate: int = 1) -> nn.Module:
        """Wrap a module whose forward is a loss: gradients are averaged over processes after each backward pass.

        Every trained parameter must take part in the loss of every batch.

        Args:
            module: loss module, the same in all processes.
            accumulate: batches per step, all but the last of which run in `without_sync`.
        """
        if self.world == 1:
            return module
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(with_strides, parameter.stride()))
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=accumulate == 1,  # requires that every pass exchanges gradients
        )
        # Buffers are constants, or statistics of norms (see `average_norms`). This is an attribute because the name of
        # the argument depends on the version of torch.
        wrapped.broadcast_buffers = False
        return wrapped

    def average_norms(self, module: nn.Module) -> None:
        """Average the statistics of trained batch norms, which each process has measured on its own images.

        All processes then validate with the weights that the writer saves and a resumed run loads.
        """
        norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d) and norm.training]
        measured = [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
        if self.world == 1 or not measured:
            return
        mean = self.sum(torch.cat(measured)) / self.world
        for part, shared in zip(measured, mean.split([len(part) for part in measured]), strict=True):
            part.copy_(shared)


def once(distributed: Distributed, compute: Callable[[], Item]) -> Item:
    """Return what process 0 computes, in every process.

    Raises:
        DataError, SettingsError, WeightsError, StorageError, OSError: `compute` raised it; all processes raise it.
    """
    item, error = None, None
    if distributed.writer:
        try:
            item = compute()
        except FAILURES as failure:
            error = failure
    shared, failed = distributed.share((item, error))
    if failed is not None:
        raise failed
    return shared  # type: ignore[return-value]  # the item of process 0


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context without exchange of gradients, for all accumulated batches but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    """Return a gradient with its parameter's strides on axes of length 1 too, such as those of a 1x1 kernel.

    Operators may return any stride for such axes, since it is never used, but DDP compares strides and takes a
    difference for another memory layout. If the layout really differs, autograd copies the gradient.
    """
    pairs = zip(gradient.shape, gradient.stride(), strides, strict=True)
    same = all(length == 1 or theirs == ours for length, theirs, ours in pairs)
    return gradient.as_strided(gradient.shape, strides) if same else gradient


def seed_generators(*numbers: int) -> None:
    """Seed torch's generators (for dropout) with the numbers, so that checkpoints need no state of generators.

    Loaders also draw from these generators when an epoch starts or resumes.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


@contextmanager
def join_processes(
    device: str, batches: Sequence[int] = (), timeout: float = Settings().train.timeout
) -> Iterator[Distributed]:
    """Join the processes that `torchrun` started (it sets RANK, WORLD_SIZE, LOCAL_RANK), or use this process alone.

    The device `cuda` is the GPU with this process's LOCAL_RANK; `auto` is `cuda` if there is one.

    Args:
        device: device of this process.
        batches: numbers of images per step, over all processes.
        timeout: seconds after which a silent process is lost, and which an exchange of a step may take.

    Raises:
        SettingsError: there is no such device, or one of the `batches` can't be shared evenly.
        TrainingError: another process is lost, or can't be reached.
    """
    chosen, world = choose_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    for batch in batches:
        if batch % world:
            name = "train.batch" if len(batches) == 1 else "train.batches"
            raise SettingsError(f"{name}={batch} can't be shared by {world} processes evenly")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Distributed(chosen)
        return
    remedy = "Run the command again"
    try:
        # NCCL ends the process without a message, so `Peers` has to be first.
        backend, more = ("nccl", 2 * GRACE_SECONDS) if chosen.type == "cuda" else ("gloo", 0.0)
        limit = timedelta(seconds=timeout + more)
        start = max(timeout, START_SECONDS)
        store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=start)))
        store = new_store(store, rank, world, start)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        alone = Distributed(chosen, dist.get_rank(), dist.get_world_size())
        peers = connect(alone.rank, alone.world, timeout, alone.gather)
        try:
            yield replace(alone, peers=peers)
            peers.meet()  # torchrun ends the others if a machine is done long before them
            peers.part()
        finally:
            remedy = peers.remedy
            peers.hang_up()
            dist.destroy_process_group()
            # DDP leaks the group. One of its threads waits for the GIL to drop the tensors of the last exchange,
            # and aborts the process if it still waits when the interpreter ends. The pause lets it take the GIL.
            time.sleep(0.1)
            peers.close()
    except TrainingError:
        raise
    except RuntimeError as error:
        if (reason := lost_process(error)) is None:
            raise
        raise TrainingError(f"{reason}. {remedy}") from None


def new_store(store: dist.Store, rank: int, world: int, timeout: float) -> dist.Store:
    """Return a part of a store that only the processes of this start use.

    torchrun keeps its store, with all entries, when it restarts the processes. gloo would find the addresses of
    processes that have ended, and fail to connect to them. So process 0 draws a name for the new part, and the others
    learn it as the answer to a random word of theirs. The words that process 0 finds may be old; it answers all until
    every process has the name.

    Raises:
        TrainingError: a process does not come.
    """
    store = dist.PrefixStore("rcnn", store)
    if rank > 0:
        word = secrets.token_hex()
        store.set(f"word-{rank}", word)
        name = store.get(f"name-{word}").decode()
        store.add(name, 1)
        return dist.PrefixStore(name, store)
    name, answered, end = secrets.token_hex(), set[str](), time.monotonic() + timeout
    while store.add(name, 0) < world - 1:
        if time.monotonic() > end:
            raise TrainingError("not all processes of this training have started. Run the command again")
        for other in range(1, world):
            if store.check([f"word-{other}"]) and (word := store.get(f"word-{other}").decode()) not in answered:
                store.set(f"name-{word}", name)
                answered.add(word)
        time.sleep(0.02)
    return dist.PrefixStore(name, store)


def lost_process(error: Exception) -> str | None:
    """Return a sentence about a lost process of the training; None: the error is about something else."""
    text = str(error).partition("\n")[0]
    if isinstance(error, ProcessLost):
        return text
    if isinstance(error, dist.DistError) or "gloo" in text or "Connection closed by peer" in text:
        reason = re.sub(r"^\[[^]]*\] *", "", text).partition(". ")[0]  # without the line of source code, and advice
        return f"{LOST} ({reason.rstrip('.')})"
    return None
