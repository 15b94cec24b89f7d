"""The losses and gradients of one batch.

Losses come as (sum, count). Counts are summed over the processes before the division, so that n processes with a batch
of b each compute the same as one process with n * b. Accumulated batches are each divided by their own counts and then
averaged, because the counts of later batches are not known yet when the gradients of the first are computed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rcnn.config import Train
from rcnn.cores import METER
from rcnn.data.loading.loader import FILLER, Item
from rcnn.errors import TrainingError
from rcnn.model.structures import to_device
from rcnn.runtime.precision import has_bf16
from rcnn.training.distributed import Distributed
from rcnn.training.stages import TrainState


@dataclass(frozen=True)
class BatchLosses:
    """The losses of a batch over all processes, which a GPU may still be computing.

    Attributes:
        names: names of the losses.
        values: losses, then the number of processes that made each request; float64, on the host.
        index: (B,) images of the batch in this process.
        copied: event after the copy of `values` to the host. None: they are there.
    """

    names: tuple[str, ...]
    values: Tensor
    index: Tensor
    copied: torch.cuda.Event | torch.Event | None = None

    def read(self) -> tuple[dict[str, float], tuple[float, ...]]:
        """Wait for the losses; return them, and the number of processes that made each request."""
        if self.copied:
            self.copied.synchronize()
        values = self.values.tolist()
        return dict(zip(self.names, values, strict=False)), tuple(values[len(self.names) :])


@dataclass(frozen=True)
class StepLosses:
    """The losses of an optimiser step, which a GPU may still be computing.

    Attributes:
        number: number of steps before it.
        lr: learning rate.
        batches: losses of each accumulated batch.
    """

    number: int
    lr: float
    batches: Sequence[BatchLosses]

    def read(self, state: TrainState, distributed: Distributed) -> tuple[dict[str, float], tuple[float, ...]]:
        """Wait for the losses; return their sums over the batches, and the number of processes that made each request.

        To keep a GPU busy, call this after the next step has been queued.

        Raises:
            TrainingError: a loss is not finite, so the weights are useless. All processes raise this together.
        """
        sums: dict[str, float] = {}
        requests: tuple[float, ...] = ()
        for batch in self.batches:
            losses, requests = batch.read()
            if bad := [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]:
                records = state.loader.dataset.records
                names = [records[i].name for i in batch.index.tolist() if i != FILLER]
                images = [name for part in distributed.gather(names) for name in part]
                distributed.part()
                raise TrainingError(
                    f"the loss is not finite at step {self.number + 1}: {', '.join(bad)} "
                    f"(learning rate {self.lr:.3g}). Images of the step: {', '.join(images)}. "
                    "Try a lower train.lr or train.clip"
                )
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums, requests


def backward(
    state: TrainState, distributed: Distributed, item: Item, batches: int = 1, requests: tuple[bool, ...] = ()
) -> BatchLosses:
    """Add the gradients of a batch, divided by the number of accumulated batches; return its losses.

    This does not synchronise with a GPU.
    """
    device = distributed.device
    # A process that waits for a GPU or for others is not computing.
    with METER.computing(torch.get_num_threads()) if device.type == "cpu" and distributed.world == 1 else nullcontext():
        batch, targets = to_device(item.batch, device), to_device(item.targets, device)
        keys = state.model.keys(batch, targets, item.seeds, item.proposals)
        proposals = [] if item.proposals is None else [to_device(item.proposals, device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(state.train, device)):
            losses = state.loss(batch, targets, keys, *proposals)
        sums = torch.stack([total for total, _ in losses.values()])
        counts = torch.stack([count for _, count in losses.values()])
        requested = torch.tensor(requests, dtype=torch.float64).to(device, non_blocking=True)
        shared = distributed.sum(torch.cat((sums.detach().double(), counts.double(), requested)))
        all_sums, all_counts, all_requests = shared.split((len(sums), len(sums), len(requests)))
        divisors = torch.where(all_counts > 0, all_counts, 1.0)
        # Copied before the backward pass is queued, so that they arrive long before the step ends.
        values = torch.cat((all_sums / divisors, all_requests)).to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        # DDP averages gradients over the processes; the factor `world` makes this a sum.
        ((sums / divisors.to(sums)).sum() * distributed.world / batches).backward()
        return BatchLosses(tuple(losses), values, item.index, copied)


@contextmanager
def tf32_allowed(settings: Train, device: torch.device) -> Iterator[None]:
    """Allow TF32 for float32 products and convolutions on a GPU, unless `train.amp` is float32."""
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
    """Return True if the network runs in bfloat16. Losses and boxes are always float32."""
    return settings.amp == "bf16" or (settings.amp == "auto" and has_bf16(device))
