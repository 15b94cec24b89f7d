"""OpenVINO's files: a graph as .xml, and its weights beside it as .bin."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rcnn.config.files import MB, check_regular
from rcnn.errors import SettingsError, WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import NAMES, Contents, GraphRuntime
from rcnn.runtime.graph_metadata import DIGEST, ENTRY, check_digest, read_entries
from rcnn.weights.file import LARGEST, first_line, reading

MOST = 200 * MB
"""Bytes of an .xml file."""
KIND = "no model of OpenVINO"
PLACE = "model_info"
"""Where entries are in a model's runtime information, for us and for others."""
PRECISIONS = {"float32": "f32", "bf16": "bf16"}


class OpenVinoRuntime(GraphRuntime):
    """A model of OpenVINO, on the CPU.

    Args:
        path: the .xml file.
        precision: `float32`, or `bf16`, which is faster where the CPU has instructions for it; None: what the file
            says. It is always told to OpenVINO, whose own choice is bf16 on such CPUs.

    Raises:
        WeightsError: the file is missing, damaged, of another program or version, or OpenVINO can't run its graph on
            this CPU.
        UnavailableError: a WeightsError: openvino is not installed.
        SettingsError: the precision is fp16.
    """

    name = "openvino"

    def __init__(self, path: str | Path, precision: str | None = None) -> None:
        path = Path(path)
        contents, model = read(path)
        metadata = contents.metadata
        super().__init__(path, metadata, precision or metadata.settings.predict.precision)
        if self.precision not in PRECISIONS:
            raise SettingsError(f"predict.precision={self.precision}: OpenVINO computes in float32 or bf16 on a CPU")
        self.check_ports(_ports(model.inputs), _ports(model.outputs))
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with _plainly():
                self._compiled = packages.openvino_core().compile_model(model, "CPU", options)
        except (MemoryError, RuntimeError) as error:  # the file was read, so it may well be sound
            raise WeightsError(
                f"{path}: OpenVINO can't compile it for this CPU: {first_line(error)}. If the file is as it was "
                "exported, take the .onnx or .safetensors file on this machine; if not, export the detector again"
            ) from None

    def at_precision(self, precision: str) -> Self:
        """As `GraphRuntime.at_precision`."""
        return type(self)(self.path, precision)

    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `GraphRuntime.infer`."""
        with _plainly():
            found = self._compiled({"images": images, "sizes": sizes})
        return {name: found[name] for name in self._outputs()}


def add_entries(model: Any, entries: Mapping[str, str]) -> None:
    """Put the entries of an export (see `rcnn.runtime.graph_metadata`) into an `openvino.Model`."""
    for name, text in entries.items():
        model.set_rt_info(text, [PLACE, name])


def read(path: Path) -> tuple[Contents, Any]:
    """What a file holds, and its `openvino.Model`. Nothing is run.

    Raises:
        WeightsError: the file is missing, damaged, of another program or of another version.
        UnavailableError: a WeightsError: openvino is not installed.
        SettingsError: the precision is fp16.
    """
    core = packages.openvino_core()
    with reading(path, MOST, KIND), _plainly():
        with path.open("rb") as file:
            root = re.search(rb"<([A-Za-z][\w.:-]*)", file.read(10_000))
        if root is None or root[1] != b"net":
            what = f"an XML file of <{root[1].decode(errors='replace')[:40]}>" if root else "no XML file"
            raise WeightsError(f"{path}: is {what}, but detectors in .xml files are models of OpenVINO, of <net>")
        beside = path.with_suffix(".bin")
        try:
            weights = check_regular(beside, LARGEST).st_size
        except OSError as error:
            raise WeightsError(
                f"{path}: its weights are in {beside}, which can't be read ({error.strerror or error}); copy both files"
            ) from None
        model = core.read_model(path, beside)
        known = [name for name in (ENTRY, DIGEST) if model.has_rt_info([PLACE, name])]
        found = {name: model.get_rt_info([PLACE, name]).astype(str) for name in known}
        metadata = read_entries(found, path)
        check_digest(found, pieces(beside), path)
        constants = [node.output(0) for node in model.get_ops() if node.get_type_name() == "Constant"]
        floats = [constant for constant in constants if constant.element_type.is_real()]
        parameters = sum(int(np.prod(tuple(constant.shape), dtype=object)) for constant in floats)
        types = tuple(sorted({_dtype(constant.element_type) for constant in floats}))
        return Contents(metadata, path.stat().st_size + weights, len(constants), parameters, types), model


def pieces(path: Path) -> Iterator[bytes]:
    """A file of weights in pieces, for `rcnn.runtime.graph_metadata.digest`."""
    with path.open("rb") as file:
        while piece := file.read(MB):
            yield piece


@contextmanager
def _plainly() -> Iterator[None]:
    """Cut OpenVINO's messages to their last line: places in its source come first."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError((str(error).strip() or type(error).__name__).splitlines()[-1]) from error


def _ports(values: Iterable[Any]) -> dict[str, tuple[str, int]]:
    """Of the names that a tensor may have, those that we know; else any."""
    ports = {}
    for value in values:
        rank = value.partial_shape.rank
        port = _dtype(value.element_type), rank.get_length() if rank.is_static else -1
        ports |= dict.fromkeys(value.names & NAMES or sorted(value.names)[:1] or ["without a name"], port)
    return ports


def _dtype(kind: Any) -> str:
    """The name in numpy of a type of OpenVINO, or its own where there is none."""
    try:
        return str(np.dtype(kind.to_dtype()))
    except (RuntimeError, TypeError):
        return kind.get_type_name()
