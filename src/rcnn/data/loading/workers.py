"""Choose how many processes or threads load batches."""

import shutil
import sys
from typing import Literal, NamedTuple

import torch

from rcnn.cores import spare_cores
from rcnn.errors import plural

MAX_DEFAULT_WORKERS = 8
"""Maximum number of loader processes that are started for a GPU by default."""
MIN_SHARED_BYTES = 1 << 30
"""Shared memory that loader processes need, bytes; by default a Docker container has 64 MB."""


class Workers(NamedTuple):
    """The processes or threads that load the batches. With a number of 0, the main thread loads them."""

    number: int
    kind: Literal["process", "thread"]

    def __str__(self) -> str:
        if not self.number:
            return "the main thread"
        return plural(self.number, self.kind)


def choose_workers(requested: int | None, device: torch.device) -> Workers:
    """Return the loaders of batches for a device.

    Args:
        requested: number of processes, as in `data.workers`. None: for a GPU, one per core except one, at most 8, or
            threads where there is little shared memory; for the CPU, the main thread. All cores of the CPU compute, and
            a second thread would slow the network down: OpenMP then has more threads than cores, and lets them sleep
            between operations (measured on two cores: 1.4 times the time per step, and 1.07 with one process).
        device: where the batches are used.
    """
    kind = "process" if may_fork() else "thread"
    if requested is not None:
        return Workers(requested, kind if requested else "thread")
    if device.type != "cuda":
        return Workers(0, "thread")
    if kind == "process" and shutil.disk_usage("/dev/shm").free < MIN_SHARED_BYTES:
        kind = "thread"
    return Workers(min(MAX_DEFAULT_WORKERS, max(1, spare_cores())), kind)


def may_fork() -> bool:
    """Return whether loader processes can be forked. Spawned ones would run an unguarded script or notebook again.

    A process with threads of libvips or of a runtime for exported detectors may crash when it is forked.
    """
    return sys.platform == "linux" and not {"onnxruntime", "openvino", "pyvips"} & sys.modules.keys()
