"""OpenVINO's files: a graph as .xml, and its weights beside it as .bin."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import (
    DIGEST,
    ENTRY,
    NAMES,
    Contents,
    GraphRuntime,
    Ports,
    check_digest,
    read_entries,
    size_beside,
)
from rcnn.weights.file import first_line, reading

MAX_XML_BYTES = 200 * MB
KIND = "no model of OpenVINO"
SECTION = "model_info"
"""Section of a model's runtime information that holds the metadata entries, by convention."""
PRECISIONS = {"float32": "f32", "bf16": "bf16"}


class OpenVinoRuntime(GraphRuntime):
    """An OpenVINO model on the CPU. Arguments and errors are those of `GraphRuntime`.

    The precision is always passed to OpenVINO, which by default uses bf16 on CPUs that have instructions for it.
    """

    name = "openvino"
    precisions = tuple(PRECISIONS)
    companions = (".bin",)
    package = staticmethod(packages.openvino)

    @staticmethod
    def read(path: Path) -> tuple[Contents, Any]:
        """As `GraphRuntime.read`; the graph is an `openvino.Model`."""
        core = packages.openvino_core()
        with reading(path, MAX_XML_BYTES, KIND), _short_errors():
            with path.open("rb") as file:
                root = re.search(rb"<([A-Za-z][\w.:-]*)", file.read(10_000))
            if root is None or root[1] != b"net":
                what = f"an XML file of <{root[1].decode(errors='replace')[:40]}>" if root else "no XML file"
                raise WeightsError(f"{path}: is {what}, but detectors in .xml files are models of OpenVINO, of <net>")
            weights = path.with_suffix(".bin")
            size = path.stat().st_size + size_beside(path, weights)
            model = core.read_model(path, weights)
            known = [name for name in (ENTRY, DIGEST) if model.has_rt_info([SECTION, name])]
            found = {name: model.get_rt_info([SECTION, name]).astype(str) for name in known}
            metadata = read_entries(found, path)
            check_digest(found, pieces(weights), path)
            constants = [node.output(0) for node in model.get_ops() if node.get_type_name() == "Constant"]
            floats = [constant for constant in constants if constant.element_type.is_real()]
            parameters = sum(int(np.prod(tuple(constant.shape), dtype=object)) for constant in floats)
            types = tuple(sorted({_dtype(constant.element_type) for constant in floats}))
            return Contents(metadata, size, len(constants), parameters, types), model

    @staticmethod
    def ports(model: Any) -> tuple[Ports, Ports]:
        """As `GraphRuntime.ports`."""
        return _ports(model.inputs), _ports(model.outputs)

    def compile(self, model: Any) -> None:
        """As `GraphRuntime.compile`."""
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with _short_errors():
                self._compiled = packages.openvino_core().compile_model(model, "CPU", options)
        except (MemoryError, RuntimeError) as error:  # the file could be read, so it is probably undamaged
            raise WeightsError(
                f"{self.path}: OpenVINO can't compile it for this CPU: {first_line(error)}. If the file has not been "
                "changed since the export, use the .onnx or .safetensors file on this machine; otherwise export the "
                "detector again"
            ) from None

    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `GraphRuntime.infer`."""
        with _short_errors():
            arrays = self._compiled({"images": images, "sizes": sizes})
        return {name: arrays[name] for name in self.outputs}


def add_entries(model: Any, entries: Mapping[str, str]) -> None:
    """Add the metadata entries of an export (see `rcnn.runtime.graph`) to an `openvino.Model`."""
    for name, text in entries.items():
        model.set_rt_info(text, [SECTION, name])


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file of weights in pieces, for `rcnn.runtime.graph.digest`."""
    with path.open("rb") as file:
        while piece := file.read(MB):
            yield piece


@contextmanager
def _short_errors() -> Iterator[None]:
    """Reduce OpenVINO's messages to their last line; the lines above are locations in its source code."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError((str(error).strip() or type(error).__name__).splitlines()[-1]) from error


def _ports(values: Iterable[Any]) -> Ports:
    """Return the ports under those of their names that are ours, or under any name if none is."""
    ports = {}
    for value in values:
        rank = value.partial_shape.rank
        port = _dtype(value.element_type), rank.get_length() if rank.is_static else -1
        ports |= dict.fromkeys(value.names & NAMES or sorted(value.names)[:1] or ["without a name"], port)
    return ports


def _dtype(kind: Any) -> str:
    """Return the numpy name of an OpenVINO type, or OpenVINO's own name if numpy has no such type."""
    try:
        return str(np.dtype(kind.to_dtype()))
    except (RuntimeError, TypeError):
        return kind.get_type_name()
