"""Graphs compiled by onnxruntime and OpenVINO, with numpy arrays as inputs and outputs.

This module and what it imports do without PyTorch, since the child processes of `rcnn.runtime.process` import it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from rcnn.errors import WeightsError
from rcnn.runtime import packages

PRECISIONS = {"float32": "f32", "bf16": "bf16"}
"""Names of precisions in the settings -> OpenVINO's."""


class CannotCompile(WeightsError):
    """A graph was read, so it is probably undamaged, but can't be compiled for this CPU."""


class Session(Protocol):
    """A compiled graph."""

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """Run the graph and return its outputs by name. Threads may share the session."""
        ...


class OnnxSession:
    """A graph in onnxruntime.

    Args:
        path: the .onnx file.
        outputs: names of the outputs to return.
        threads: number of threads.
        precision: `float32`.

    Raises:
        UnavailableError: onnxruntime is not installed.
        Exception: of any type, if the file can't be run.
    """

    def __init__(self, path: str, outputs: Sequence[str], threads: int, precision: str) -> None:
        runtime = packages.onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors are raised; by default it also prints them
        self.outputs = list(outputs)
        self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `Session`."""
        found = self.session.run(self.outputs, {"images": images, "sizes": sizes})
        return dict(zip(self.outputs, found, strict=True))


class OpenVinoSession:
    """A graph in OpenVINO. Arguments and errors are those of `OnnxSession`; the weights are in the .bin beside it.

    The precision is always passed to OpenVINO, which by default uses bf16 on CPUs that have instructions for it.

    Raises:
        CannotCompile: OpenVINO has no kernels for the graph on this CPU, or too little memory.
    """

    def __init__(self, path: str, outputs: Sequence[str], threads: int, precision: str) -> None:
        core = packages.openvino_core()
        self.outputs = list(outputs)
        self._lock = threading.Lock()  # the compiled model has one request, which serves one thread at a time
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        with short_errors(RuntimeError):
            model = core.read_model(path)
        with short_errors(CannotCompile):
            self.compiled = core.compile_model(model, "CPU", options)

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `Session`."""
        with self._lock, short_errors(RuntimeError):
            found = self.compiled({"images": images, "sizes": sizes})
            return {name: found[name] for name in self.outputs}


SESSIONS: dict[str, Callable[[str, Sequence[str], int, str], Session]] = {
    "onnxruntime": OnnxSession,
    "openvino": OpenVinoSession,
}
"""Name -> class with the arguments of `OnnxSession`. To add a runtime, add its class here."""


@contextmanager
def short_errors(kind: type[Exception]) -> Iterator[None]:
    """Reduce OpenVINO's messages to their last line; the lines above are locations in its source code."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise kind((str(error).strip() or type(error).__name__).splitlines()[-1]) from error
