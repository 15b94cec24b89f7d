"""How many processes or threads load batches."""

import shutil
import sys
from typing import Literal, NamedTuple

import torch

from rcnn.errors import plural
from rcnn.images.stream import spare_cores

MAX_UNASKED = 8
"""Loader processes that are started for a GPU by default."""
ROOM = 1 << 30
"""Bytes of shared memory that loader processes need; by default a Docker container has 64 MB."""


class Workers(NamedTuple):
    """The processes or threads that load the batches; with none, the main thread does."""

    number: int
    kind: Literal["process", "thread"]

    def __str__(self) -> str:
        if not self.number:
            return "the main thread"
        return plural(self.number, self.kind)


def choose_workers(asked: int | None, device: torch.device) -> Workers:
    """Return the loaders of batches for a device.

    Args:
        asked: number of processes, as `data.workers` has it. None: for a GPU one per core but one, at most 8, and
            threads where there is little shared memory; for the CPU, whose cores all compute, the main thread. There a
            second thread slows the network down: with its threads OpenMP has more than there are cores, and lets them
            sleep between operations (measured on two cores: 1.4 times the time per step, and 1.07 with one process).
        device: where the batches are used.
    """
    kind = "process" if may_fork() else "thread"
    if asked is not None:
        return Workers(asked, kind if asked else "thread")
    if device.type != "cuda":
        return Workers(0, "thread")
    if kind == "process" and shutil.disk_usage("/dev/shm").free < ROOM:
        kind = "thread"
    return Workers(min(MAX_UNASKED, max(1, spare_cores())), kind)


def may_fork() -> bool:
    """Return whether loader processes can be forked. Spawned ones would run an unguarded script or a notebook again.

    A process that holds threads of libvips or of a runtime for exported detectors may crash when it is forked.
    """
    return sys.platform == "linux" and not {"onnxruntime", "openvino", "pyvips"} & sys.modules.keys()
