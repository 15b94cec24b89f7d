"""Copy batches to a GPU while it works on earlier ones."""

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from rcnn.data.loading.loader import Item
from rcnn.images.stream import ahead
from rcnn.model.structures import pinned, to_device


def uploaded(items: Generator[Item, None, None], device: torch.device) -> Generator[Item, None, None]:
    """Yield batches on a device; `Item.index` stays on the host.

    For a GPU, a thread copies the next batches to pinned memory, and a separate stream copies each of them to the
    device while the previous step runs. For the CPU they are yielded unchanged.

    Args:
        items: of `Loader.epoch`; closed at the end.
        device: where they will be used, on its current stream.
    """
    with closing(items):
        if device.type != "cuda":
            yield from items
            return
        stream, before = torch.cuda.Stream(device), None
        with closing(ahead(_pinned, items, 1)) as ready:
            for item in ready:
                with torch.cuda.stream(stream):
                    batch, targets = to_device(item.batch, device), to_device(item.targets, device)
                    proposals = None if item.proposals is None else to_device(item.proposals, device)
                    seeds = item.seeds.to(device, non_blocking=True)
                    item = item._replace(batch=batch, targets=targets, seeds=seeds, proposals=proposals)
                copied = torch.cuda.Event()
                copied.record(stream)
                if before is not None:
                    yield _usable(*before, device)
                before = item, copied
            if before is not None:
                yield _usable(*before, device)


def _pinned(item: Item) -> Item:
    proposals = None if item.proposals is None else pinned(item.proposals)
    batch, targets, seeds = pinned(item.batch), pinned(item.targets), item.seeds.pin_memory()
    return item._replace(batch=batch, targets=targets, seeds=seeds, proposals=proposals)


def _usable(item: Item, copied: torch.cuda.Event, device: torch.device) -> Item:
    """Make the device's current stream wait for the copies, and keep their memory until it has used them."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    tensors: list[Tensor] = [*item.batch, *item.targets, item.seeds, *(item.proposals or ())]
    for tensor in tensors:
        tensor.record_stream(current)
    return item
