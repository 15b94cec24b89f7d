"""ONNX files in onnxruntime."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rcnn.config.files import MB, check_regular
from rcnn.errors import SettingsError, WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import Contents, GraphRuntime
from rcnn.runtime.graph_metadata import check_digest, read_entries
from rcnn.weights.file import LARGEST, reading

MOST = 2_148 * MB
"""Bytes; the format's own limit."""
KIND = "no ONNX file"


class OnnxRuntime(GraphRuntime):
    """An ONNX file in onnxruntime.

    Args:
        path: the file.
        precision: `float32`; None: what the file says.

    Raises:
        WeightsError: the file is missing, damaged, of another program or version, or its graph can't be run.
        UnavailableError: a WeightsError: onnx or onnxruntime is not installed.
        SettingsError: the precision is not float32.
    """

    name = "onnxruntime"

    def __init__(self, path: str | Path, precision: str | None = None) -> None:
        path = Path(path)
        runtime = packages.onnxruntime()
        contents, model = read(path)
        metadata = contents.metadata
        super().__init__(path, metadata, precision or metadata.settings.predict.precision)
        if self.precision != "float32":
            raise SettingsError(
                f"predict.precision={self.precision}: onnxruntime computes in float32; leave it out, or export the "
                "detector for OpenVINO"
            )
        self.check_ports(_ports(model.graph.input), _ports(model.graph.output))
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4  # errors are raised; it would print them as well
        with reading(path, MOST, KIND):
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def at_precision(self, precision: str) -> Self:
        """As `GraphRuntime.at_precision`."""
        return type(self)(self.path, precision)

    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `GraphRuntime.infer`."""
        names = list(self._outputs())
        return dict(zip(names, self._session.run(names, {"images": images, "sizes": sizes}), strict=True))


def read(path: Path) -> tuple[Contents, Any]:
    """What an ONNX file holds, and its `onnx.ModelProto` without weights that lie in files beside it. Nothing is run.

    Raises:
        WeightsError: the file is missing, damaged, of another program or of another version.
        UnavailableError: a WeightsError: onnx is not installed.
    """
    package = packages.onnx()
    with reading(path, MOST, KIND):
        model = package.ModelProto.FromString(path.read_bytes())
        if not model.graph.node:
            raise ValueError("it holds no graph")
        found = {entry.key: entry.value for entry in model.metadata_props}
        metadata = read_entries(found, path, f"{model.producer_name} {model.producer_version}".strip())
        tensors = model.graph.initializer
        check_digest(found, weights_of(tensors), path)
        beside = sum(_size(path, name) for name in _files(tensors))
        floats = [(tensor, _dtype(tensor.data_type)) for tensor in tensors]
        floats = [(tensor, dtype) for tensor, dtype in floats if dtype.startswith(("float", "bfloat"))]
        parameters = sum(int(np.prod(tensor.dims, dtype=object)) for tensor, _ in floats)
        types = tuple(sorted({dtype for _, dtype in floats}))
        return Contents(metadata, path.stat().st_size + beside, len(tensors), parameters, types), model


def weights_of(tensors: Iterable[Any]) -> Iterator[bytes]:
    """The bytes of the tensors of a graph, for `rcnn.runtime.graph_metadata.digest`."""
    return (tensor.raw_data for tensor in tensors)


def _files(tensors: Iterable[Any]) -> set[str]:
    """Names of the files that hold tensors, as the ONNX file gives them."""
    return {
        entry.value
        for tensor in tensors
        if tensor.data_location
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _size(path: Path, name: str) -> int:
    """Bytes of a file beside the ONNX file.

    Raises:
        WeightsError: it lies elsewhere, is missing, or is no file.
    """
    beside = path.parent / name
    if Path(name).name != name:
        raise WeightsError(f"{path}: its weights are in {name}, which is no file beside it; such a file is not read")
    try:
        return check_regular(beside, LARGEST).st_size
    except OSError as error:
        raise WeightsError(
            f"{path}: its weights are in {beside}, which can't be read ({error.strerror or error}); copy both files"
        ) from None


def _ports(values: Iterable[Any]) -> dict[str, tuple[str, int]]:
    kinds = [(value.name, value.type.tensor_type) for value in values]
    return {name: (_dtype(kind.elem_type), len(kind.shape.dim)) for name, kind in kinds}


def _dtype(number: int) -> str:
    """The name in numpy of a type of ONNX; of one that there is not, its number."""
    try:
        return str(packages.onnx().helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, ValueError, TypeError):
        return str(number)
