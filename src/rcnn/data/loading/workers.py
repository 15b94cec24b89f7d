"""How many processes or threads load batches."""

import shutil
import sys
from typing import Literal, NamedTuple

import torch

from rcnn.images.stream import spare_cores

PLURAL = {"process": "processes", "thread": "threads"}
MAX_UNASKED = 8
"""Loader processes of a GPU that are started unasked."""
ROOM = 1 << 30
"""Bytes of shared memory with which they do: a container of Docker's has 64 MB unless it is told otherwise."""


class Workers(NamedTuple):
    """Who loads the batches: the main thread of the program if there are none."""

    number: int
    kind: Literal["process", "thread"]

    def __str__(self) -> str:
        if not self.number:
            return "the main thread"
        return f"{self.number} {self.kind if self.number == 1 else PLURAL[self.kind]}"


def choose_workers(asked: int | None, device: torch.device) -> Workers:
    """The loaders of batches for a device.

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
    """Can loader processes be forked? Others would run an unguarded script or a notebook once more.

    With the threads of libvips or of a runtime for exported detectors in it, a process that is forked may crash.
    """
    return sys.platform == "linux" and not {"onnxruntime", "openvino", "pyvips"} & sys.modules.keys()
