"""The child process that runs an exported graph: `rcnn.runtime.process` starts it, and sends it images.

It imports numpy and the package of the runtime, but no PyTorch. Commands and answers are lines of JSON, and arrays are
in shared memory. It sets its own limits before each command; the system enforces them.
"""

import json
import math
import mmap
import os
import queue
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from rcnn.runtime.sessions import SESSIONS, Session

MB = 1_000_000
ALIGNMENT = 64
"""Arrays in the shared memory begin at multiples of this, bytes."""


def serve() -> NoReturn:
    """Execute the commands on stdin until the parent closes it, or ends."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the signal of the time limit would write one
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # libraries may print
    commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, commands), daemon=True).start()
    worker = Worker(json.loads(commands.get()))
    while True:
        command = json.loads(commands.get())
        try:
            answer = worker.run(command) if worker.session else worker.load(command)
        except BaseException as error:
            memory = isinstance(error, MemoryError) or "alloc" in str(error)
            answer = {"error": str(error) or type(error).__name__, "kind": type(error).__name__, "memory": memory}
        usage = resource.getrusage(resource.RUSAGE_SELF)
        answer |= {"cpu": usage.ru_utime + usage.ru_stime, "peak": _status("VmHWM")}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


class Worker:
    """A graph and the shared memory.

    Args:
        setup: `fd` of the shared memory, and the arguments of a session: `session`, `path`, `outputs` (name -> [type,
            axes]), `threads`, `precision`.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.session: Session | None = None
        self.memory = mmap.mmap(-1, 1)
        self.base = 0

    def load(self, limits: dict[str, Any]) -> dict[str, Any]:
        """Compile the graph within the limits `seconds` and `megabytes`."""
        self.base = _status("VmData")
        self._limit(limits)
        setup = self.setup
        make = SESSIONS[setup["session"]]
        self.session = make(setup["path"], list(setup["outputs"]), setup["threads"], setup["precision"])
        self.base = _status("VmData")
        return {}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run the graph within the limits.

        Args:
            command: limits as for `load`; `images` and `sizes`, each the type, the shape and the place of an array in
                the shared memory; `place` where the outputs begin, and `end` of the memory.

        Returns:
            The same of each output.
        """
        assert self.session is not None
        self._limit(command)
        if command["end"] > len(self.memory):
            self.memory = mmap.mmap(self.setup["fd"], command["end"])
        images, sizes = (view(self.memory, *command[name]) for name in ("images", "sizes"))
        arrays = self.session(images, sizes)
        place, places = command["place"], {}
        for name, (dtype, axes) in self.setup["outputs"].items():
            array = np.asarray(arrays[name])
            if (str(array.dtype), array.ndim) != (dtype, axes):
                raise ValueError(f"its output `{name}` is not of {dtype} with {axes} axes")
            if place + array.nbytes > command["end"]:
                raise ValueError(f"its outputs have more rows than its settings allow: `{name}` has {array.shape}")
            places[name] = dtype, array.shape, place
            view(self.memory, *places[name])[...] = array
            place = aligned(place + array.nbytes)
        return {"outputs": places}

    def _limit(self, limits: dict[str, Any]) -> None:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        _set_soft(resource.RLIMIT_CPU, math.ceil(time.process_time() + limits["seconds"]), hard)
        if self.base:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            _set_soft(resource.RLIMIT_DATA, self.base + int(limits["megabytes"]) * MB, hard)


def aligned(place: int) -> int:
    """Return the next place where an array may begin."""
    return -(-place // ALIGNMENT) * ALIGNMENT


def view(memory: mmap.mmap, dtype: str, shape: tuple[int, ...], place: int) -> np.ndarray:
    """Return an array in the shared memory."""
    return np.frombuffer(memory, dtype, math.prod(shape), place).reshape(shape)


def _listen(stdin: BinaryIO, commands: queue.SimpleQueue[bytes]) -> None:
    """Receive commands, and end the process when the parent has gone, also while the graph runs."""
    for line in stdin:
        commands.put(line)
    os._exit(0)


def _set_soft(kind: int, value: int, hard: int) -> None:
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _status(name: str) -> int:
    """Return a figure of this process, bytes; 0 on systems other than Linux.

    `VmData` is what Linux limits. `VmHWM` is the peak; that of `getrusage` includes the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
