"""Run an exported graph of unknown origin in a child process (`rcnn.runtime.child`) with limits of time and memory.

The child is a new interpreter, started by `subprocess`: a forked one would lack the threads of the libraries, and
`multiprocessing` would run an unguarded script again. It ends with this process, whose pipe it reads. It has its own
session, so that Ctrl-C reaches only this process, which ends it.
"""

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from rcnn.config import Predict
from rcnn.errors import UnavailableError, WeightsError
from rcnn.runtime.own_exports import digest_of
from rcnn.runtime.sessions import CannotCompile

PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from rcnn.runtime.child import serve; serve()"
)
COMMAND = [sys.executable, "-I", "-S", "-c", PROGRAM]
"""The command line of the child. It takes its search path from this process, never from the working folder."""
SUPPORTED = os.name == "posix" and bool(sys.executable) and not getattr(sys, "frozen", False)
"""Whether a child can be started: not on Windows, nor by a frozen program, which is its own interpreter."""
LOAD_SECONDS, LOAD_MEGABYTES, LOAD_FACTOR = 10, 2000, 6
"""Limits while a graph is compiled: CPU seconds, and MB in addition to six times the size of the file. The largest
presets take 1.3 s and 1.2 times their size."""
WAITS = 15
"""Seconds that may pass per second of CPU time that is allowed."""
ALIGNMENT = 64
"""As in `rcnn.runtime.child`, which can't be imported on Windows."""


class Limits(NamedTuple):
    """Limits of a prediction, per megapixel of an image; a smaller image counts as one.

    Attributes:
        seconds: CPU seconds.
        megabytes: memory in addition to that of the compiled graph.
    """

    seconds: float
    megabytes: int

    @classmethod
    def of(cls, predict: Predict) -> "Limits":
        """Return the limits in the settings."""
        return cls(predict.graph_seconds, predict.graph_memory)


class GraphTask(NamedTuple):
    """What a child runs.

    Attributes:
        files: the exported file, and those that belong to it.
        digest: of their content.
        session: name of a class in `rcnn.runtime.sessions.SESSIONS`.
        outputs: name -> type and number of axes.
        threads: number of threads.
        precision: `float32` or `bf16`.
        bytes_per_image: largest size of the outputs for an image.
    """

    files: list[Path]
    digest: str
    session: str
    outputs: Mapping[str, tuple[str, int]]
    threads: int
    precision: str
    bytes_per_image: int


class Overrun(WeightsError):
    """A graph exceeded a limit, or ended its process."""


class OutOfMemory(MemoryError):
    """A graph asked for more memory than its limit.

    Attributes:
        hint: the limits.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class GraphProcess:
    """A child process that runs a graph. Threads and forked processes may share it.

    If the child ends, the next call starts another one.

    Args:
        task: what it runs.

    Attributes:
        cpu: CPU seconds that the child has used so far.
        peak: its peak memory so far, bytes; 0 on systems other than Linux.

    Raises:
        Overrun: the graph exceeds the limits of loading.
        CannotCompile: as for `OpenVinoSession`.
        UnavailableError: the runtime's package is not installed.
        OutOfMemory, RuntimeError: the graph can't be loaded.
    """

    def __init__(self, task: GraphTask) -> None:
        self.task = task
        self.cpu, self.peak = 0.0, 0
        self._lock = threading.Lock()
        self._child: _Interpreter | None = None
        self._started()

    @property
    def pid(self) -> int | None:
        """The process id of the child; None if it has ended."""
        return self._child.process.pid if self._child else None

    def run(self, images: np.ndarray, sizes: np.ndarray, limits: Limits) -> dict[str, np.ndarray]:
        """Run the graph.

        Args:
            images: as for `Session`.
            sizes: likewise.
            limits: of this call.

        Returns:
            The outputs by name.

        Raises:
            Overrun: the graph exceeded a limit, or its process ended.
            OutOfMemory: it asked for more memory than the limit.
            RuntimeError: it failed.
        """
        count, _, height, width = images.shape
        units = count * max(1.0, height * width / 1e6)
        places, end = {}, 0
        for name, array in (("images", images), ("sizes", sizes)):
            places[name] = str(array.dtype), array.shape, end
            end = -(-(end + array.nbytes) // ALIGNMENT) * ALIGNMENT
        last = end + count * self.task.bytes_per_image + ALIGNMENT * len(self.task.outputs)
        seconds, megabytes = limits.seconds * units, int(limits.megabytes * units)
        command = {**places, "place": end, "end": last, "seconds": seconds, "megabytes": megabytes}
        with self._lock:
            child = self._started()
            memory = child.room(last)
            for name, array in (("images", images), ("sizes", sizes)):
                _view(memory, *places[name])[...] = array
            hint = (
                f"the limits per megapixel are predict.graph_seconds={limits.seconds:g} and "
                f"predict.graph_memory={limits.megabytes}; raise them if you trust the file"
            )
            answer = self._ask(child, command, hint)
            try:
                return {name: _view(memory, *place).copy() for name, place in answer["outputs"].items()}
            finally:
                del memory

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _started(self) -> "_Interpreter":
        """Return the child of this process, with its graph loaded."""
        if self._child is not None and self._child.owner == os.getpid():
            return self._child
        files, task = self.task.files, self.task
        if digest_of(files) != task.digest:
            raise WeightsError(f"{files[0]} has changed since it was loaded; load it again")
        self._child = child = _Interpreter()
        setup = {"path": str(files[0].absolute()), "outputs": dict(task.outputs), "fd": child.memory}
        child.send(setup | {"session": task.session, "threads": task.threads, "precision": task.precision})
        megabytes = LOAD_MEGABYTES + LOAD_FACTOR * sum(file.stat().st_size for file in files) // 1_000_000
        hint = f"the limits of loading are {LOAD_SECONDS} s and {megabytes:,} MB"
        try:
            self._ask(child, {"seconds": LOAD_SECONDS, "megabytes": megabytes}, hint)
        except Exception:
            self.close()
            raise
        return child

    def _ask(self, child: "_Interpreter", command: dict[str, Any], hint: str) -> dict[str, Any]:
        """Send a command and return the answer; anything but an answer ends the child, whose pipe would be confused."""
        try:
            child.send(command)
            line = child.answer(WAITS * command["seconds"])
        except BaseException:
            self.close()
            raise
        if line is None:
            self.close()
            raise Overrun(f"{self.task.files[0]}: its graph {self._reason(child, command['seconds'])}; {hint}")
        answer = json.loads(line)
        self.cpu, self.peak = answer["cpu"], answer["peak"]
        if "error" in answer:
            _raise(answer, hint)
        return answer

    @staticmethod
    def _reason(child: "_Interpreter", seconds: float) -> str:
        code = child.process.returncode
        if code == -signal.SIGXCPU:
            return f"took more than {seconds:.0f} CPU seconds and was stopped"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"exit code {code}"
        return f"ended its process ({name}), perhaps for lack of memory, or gave no answer"


class _Interpreter:
    """A process, the pipes to it, and the memory that it shares."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        if hasattr(os, "memfd_create"):
            self.memory = os.memfd_create("rcnn")
        else:
            with TemporaryFile() as file:
                self.memory = os.dup(file.fileno())
        self.view = mmap.mmap(-1, 1)
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(self.memory,),
            start_new_session=True,
        )
        self.end = weakref.finalize(self, _end, self.process, self.memory, self.owner)
        home = str(Path(__file__).absolute().parents[2])
        self.send([str(Path(entry).absolute()) for entry in (*filter(None, sys.path), home)])

    def room(self, size: int) -> mmap.mmap:
        """Return the shared memory with at least this number of bytes."""
        if size > len(self.view):
            os.ftruncate(self.memory, size)
            self.view = mmap.mmap(self.memory, size)
        return self.view

    def send(self, document: Any) -> None:
        """Send a line of JSON. That of a child that has ended is lost."""
        pipe = _pipe(self.process.stdin)
        with suppress(BrokenPipeError):
            pipe.write(json.dumps(document).encode() + b"\n")
            pipe.flush()

    def answer(self, seconds: float) -> bytes | None:
        """Return the next line; None if the child ended, or did not answer within these seconds."""
        pipe, poll = _pipe(self.process.stdout), select.poll()
        poll.register(pipe, select.POLLIN)
        line = pipe.readline() if poll.poll(seconds * 1000) else b""
        if line.endswith(b"\n"):
            return line
        try:
            self.process.wait(timeout=1)  # for its exit code
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return None


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _view(memory: mmap.mmap, dtype: str, shape: tuple[int, ...], place: int) -> np.ndarray:
    return np.frombuffer(memory, dtype, int(np.prod(shape)), place).reshape(shape)


def _raise(answer: Mapping[str, Any], hint: str) -> NoReturn:
    """Raise the error of the child."""
    message = answer["error"]
    if answer["memory"]:
        raise OutOfMemory(message, hint)
    kinds = {kind.__name__: kind for kind in (CannotCompile, UnavailableError)}
    raise kinds.get(answer["kind"], RuntimeError)(message)


def _end(process: subprocess.Popen[bytes], memory: int, owner: int) -> None:
    """End a child, and close what belongs to it. A forked process closes only its own ends."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            _pipe(pipe).close()
    os.close(memory)
