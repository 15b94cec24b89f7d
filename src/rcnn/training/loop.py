"""One optimiser step.

Losses come as (sum, count). Counts are summed over the processes before the division, so that n processes with a batch
of b each do the same as one process with n * b. Accumulated batches are each divided by their own counts and then
averaged: when the gradients of the first are computed, the counts of the next are not known yet.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rcnn.config import Train
from rcnn.data.loading.loader import Item
from rcnn.errors import TrainingError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import to_device
from rcnn.runtime.precision import has_bf16
from rcnn.training.distributed import Distributed, without_sync
from rcnn.training.ema import EMA
from rcnn.training.optim import learning_rate, set_learning_rate


@dataclass(frozen=True)
class Engine:
    """Everything that a step needs.

    Attributes:
        model: the network that is trained.
        loss: the scheme's loss around it, wrapped for several processes.
        total: steps of the whole run.
        image_names: indices of a batch -> names of its images, for messages.
        fixed: parts of the model that are not trained and stay in eval mode: no dropout, no new statistics of norms.
        ahead: steps that are queued before the oldest is read: with 1 a GPU always has work. On a CPU a step is done
            when `train_step` returns.
    """

    model: FasterRCNN
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    settings: Train
    distributed: Distributed
    total: int
    image_names: Callable[[Tensor], list[str]]
    fixed: Sequence[nn.Module] = ()
    ahead: int = 0


@dataclass
class Progress:
    """Where a run stands. All of it is in a checkpoint.

    Attributes:
        step: optimiser steps done.
        epoch: epochs done.
        place: batches done in the current epoch.
        sums: name -> sum of the loss over the batches of the current epoch.
        best_ap: highest validation AP so far (for an RPN alone: recall), with `train.keep=last` the latest; None
            before the first.
        best_epoch: epoch (1, 2, ...) that reached it.
        seconds: time spent on training so far.
        stage: current stage of the scheme, 0, 1, ...; everything but `seconds` counts within it.
    """

    step: int = 0
    epoch: int = 0
    place: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_ap: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    stage: int = 0

    def means(self) -> dict[str, float]:
        """Mean losses of the current epoch so far, the RPN's first: a checkpoint does not keep their order."""
        return {name: self.sums[name] / self.place for name in sorted(self.sums, reverse=True)}


class Numbers(NamedTuple):
    """Of a step: its losses summed over its batches, and the number of processes behind each request."""

    sums: dict[str, float]
    requests: tuple[float, ...]


@dataclass(frozen=True)
class Losses:
    """The losses of a batch over all processes, on their way to the host while a GPU goes on.

    Attributes:
        names: of the losses.
        values: on the host: the losses, then the summed requests; float64.
        copied: when they are there; None: at once.
    """

    names: tuple[str, ...]
    values: Tensor
    copied: torch.cuda.Event | torch.Event | None = None

    def read(self) -> Numbers:
        """Wait for them."""
        if self.copied:
            self.copied.synchronize()
        values = self.values.tolist()
        return Numbers(dict(zip(self.names, values, strict=False)), tuple(values[len(self.names) :]))


@dataclass(frozen=True)
class Step:
    """An optimiser step that a GPU may still be busy with.

    Attributes:
        number: steps done before it.
        lr: learning rate.
        losses: of each accumulated batch.
        index: images of each accumulated batch.
    """

    number: int
    lr: float
    losses: Sequence[Losses]
    index: Sequence[Tensor]

    def read(self, engine: Engine) -> Numbers:
        """Wait for its losses. Reading them after the next step has begun leaves the device no gap.

        Raises:
            TrainingError: a loss is not finite, on all processes at once. The weights are no longer of use.
        """
        sums: dict[str, float] = {}
        asked: tuple[float, ...] = ()
        for losses, index in zip(self.losses, self.index, strict=True):
            batch, asked = losses.read()
            if bad := [f"{name} = {value}" for name, value in batch.items() if not math.isfinite(value)]:
                images = [name for part in engine.distributed.gather(engine.image_names(index)) for name in part]
                raise TrainingError(
                    f"the loss is not finite at step {self.number + 1}: {', '.join(bad)} "
                    f"(learning rate {self.lr:.3g}). Images of the step: {', '.join(images)}. "
                    "A lower train.lr or train.clip often mends this"
                )
            for name, value in batch.items():
                sums[name] = sums.get(name, 0.0) + value
        return Numbers(sums, asked)


def train_step(engine: Engine, items: list[Item], number: int, requests: tuple[bool, ...] = ()) -> Step:
    """Compute the gradients of some batches, then update the weights and their average once.

    Nothing waits for a GPU here. Weights are to be used or saved only after the step has been read.

    Args:
        engine: what is trained.
        items: the batches whose gradients are averaged.
        number: steps done before.
        requests: of this process; all processes learn of them when they read the same step.
    """
    lr = learning_rate(number, engine.total, engine.settings)
    set_learning_rate(engine.optimizer, lr)
    losses: list[Losses] = []
    for index, item in enumerate(items):
        seed_step(engine.settings.seed, number, index, engine.distributed.rank)
        with nullcontext() if index == len(items) - 1 else without_sync(engine.loss):
            losses.append(backward(engine, item, len(items), requests))
    if engine.settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(engine.model.parameters(), engine.settings.clip, foreach=True)
    engine.optimizer.step()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.distributed.average_norms(engine.model)
    if engine.ema:
        engine.ema.update(number + 1)
    return Step(number, lr, losses, [item.index for item in items])


def backward(engine: Engine, item: Item, batches: int, requests: tuple[bool, ...]) -> Losses:
    """Add the gradients of a batch; return its losses over all processes and the summed requests."""
    device = engine.distributed.device
    batch, targets = to_device(item.batch, device), to_device(item.targets, device)
    keys = engine.model.keys(batch, targets, item.seeds, item.proposals)
    more = [] if item.proposals is None else [to_device(item.proposals, device)]
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(engine.settings, device)):
        losses = engine.loss(batch, targets, keys, *more)
    sums = torch.stack([total for total, _ in losses.values()])
    counts = torch.stack([count for _, count in losses.values()])
    requested = torch.tensor(requests, dtype=torch.float64).to(device, non_blocking=True)
    shared = engine.distributed.sum(torch.cat((sums.detach().double(), counts.double(), requested)))
    all_sums, all_counts, asked = shared.split((len(sums), len(sums), len(requests)))
    divisors = torch.where(all_counts > 0, all_counts, 1.0)
    # Copied before the backward pass is queued, so that a GPU has them long before the step ends.
    values = torch.cat((all_sums / divisors, asked)).to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
    # DDP averages gradients over processes, but their sum is wanted: hence `world`.
    ((sums / divisors.to(sums)).sum() * engine.distributed.world / batches).backward()
    return Losses(tuple(losses), values, copied)


def seed_step(*numbers: int) -> None:
    """Seed torch's generators (dropout) from the numbers alone, so that a resumed run needs no generator state.

    Loaders also draw from these generators at the start of an epoch, or of the rest of one.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


@contextmanager
def tf32_allowed(settings: Train, device: torch.device) -> Iterator[None]:
    """On a GPU, compute what is float32 in TF32 where its hardware has it, unless `train.amp` asks for float32."""
    if device.type != "cuda":
        yield
        return
    allowed = settings.amp != "float32"
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def uses_bf16(settings: Train, device: torch.device) -> bool:
    """Does the network run in bfloat16? Losses and boxes are float32 either way."""
    return settings.amp == "bf16" or (settings.amp == "auto" and has_bf16(device))
