"""Several processes that train as one: ranks, seeds, and how they exchange numbers. `torchrun` starts them.

NCCL on CUDA, gloo on the CPU. A single process is a world of 1 and runs the same code.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rcnn.errors import SettingsError
from rcnn.runtime.eager import choose_device

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Distributed:
    """The processes of a run.

    Attributes:
        device: where this process computes.
        rank: number of this process, 0..world - 1; 0 writes files and prints.
        world: number of processes.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def writer(self) -> bool:
        """True if this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, thing: Thing) -> list[Thing]:
        """The objects of all processes, by rank, on every process."""
        if self.world == 1:
            return [thing]
        things: list[Thing] = [thing] * self.world
        dist.all_gather_object(things, thing)
        return things

    def wrap(self, module: nn.Module, accumulate: int = 1) -> nn.Module:
        """Wrap a module whose forward is a loss: gradients are averaged over processes after each backward pass.

        Every trained parameter takes part in the loss, whatever the batch.

        Args:
            module: the same in all processes.
            accumulate: batches per step, all but the last of them `without_sync`.
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
            static_graph=accumulate == 1,  # of which no pass may be without exchange
        )
        # Buffers are constants, or statistics of norms: see `average_norms`. What the argument is called depends on
        # the version of torch.
        wrapped.broadcast_buffers = False
        return wrapped

    def average_norms(self, module: nn.Module) -> None:
        """Average the statistics of trained batch norms, which each process has measured on its own images.

        All processes then validate with the weights that the writer saves and that a resumed run starts from.
        """
        norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d) and norm.training]
        measured = [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
        if self.world == 1 or not measured:
            return
        mean = self.sum(torch.cat(measured)) / self.world
        for part, shared in zip(measured, mean.split([len(part) for part in measured]), strict=True):
            part.copy_(shared)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Keep the gradients of the block in this process: for all accumulated batches but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    """A gradient with the strides of its parameter also for axes of length 1, such as those of a 1x1 kernel.

    Strides of such axes are never used, so an operator may return any, but DDP compares them and takes a difference for
    another memory layout. If the layout really differs, autograd copies the gradient into the parameter's.
    """
    pairs = zip(gradient.shape, gradient.stride(), strides, strict=True)
    same = all(length == 1 or theirs == ours for length, theirs, ours in pairs)
    return gradient.as_strided(gradient.shape, strides) if same else gradient


def seed_generators(*numbers: int) -> None:
    """Seed torch's generators (dropout) from the numbers alone, so that a resumed run needs no generator state.

    Loaders also draw from these generators at the start of an epoch, or of the rest of one.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one. Each process of a machine takes the GPU of its `LOCAL_RANK`."""
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def join_processes(device: str, batches: Sequence[int] = ()) -> Iterator[Distributed]:
    """The processes that `torchrun` started (it sets RANK, WORLD_SIZE, LOCAL_RANK), or this process alone.

    Raises:
        SettingsError: there is no such device, or one of the `batches` of steps can't be shared evenly.
    """
    chosen, world = pick_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    for batch in batches:
        if batch % world:
            name = "train.batch" if len(batches) == 1 else "train.batches"
            raise SettingsError(f"{name}={batch} can't be shared by {world} processes evenly")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Distributed(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Distributed(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
        # DDP leaks the group. A thread of it that waits for the GIL, to drop the tensors of the last exchange, when the
        # interpreter ends aborts the process: let it have the GIL now.
        time.sleep(0.1)
