"""ONNX files in onnxruntime."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import Contents, GraphRuntime, Ports, check_digest, read_entries, size_beside
from rcnn.weights.file import reading

MAX_FILE_BYTES = 2_148 * MB
"""The format's own limit."""
KIND = "no ONNX file"


class OnnxRuntime(GraphRuntime):
    """An ONNX file in onnxruntime. Arguments and errors are those of `GraphRuntime`."""

    name = "onnxruntime"
    package = staticmethod(packages.onnxruntime)

    @staticmethod
    def read(path: Path) -> tuple[Contents, Any]:
        """As `GraphRuntime.read`; the graph is an `onnx.ModelProto` without the weights in files beside it."""
        package = packages.onnx()
        with reading(path, MAX_FILE_BYTES, KIND):
            model = package.ModelProto.FromString(path.read_bytes())
            if not model.graph.node:
                raise ValueError("it holds no graph")
            found = {entry.key: entry.value for entry in model.metadata_props}
            metadata = read_entries(found, path, f"{model.producer_name} {model.producer_version}".strip())
            tensors = model.graph.initializer
            check_digest(found, (tensor.raw_data for tensor in tensors), path)
            external = [tensor.external_data for tensor in tensors if tensor.data_location]
            names = {entry.value for entries in external for entry in entries if entry.key == "location"}
            for name in names:
                if Path(name).name != name:
                    raise WeightsError(
                        f"{path}: its weights are in {name}, which is no file beside it; such a file is not read"
                    )
            size = path.stat().st_size + sum(size_beside(path, path.parent / name) for name in names)
            floats = [(tensor.dims, _dtype(tensor.data_type)) for tensor in tensors]
            floats = [(shape, dtype) for shape, dtype in floats if dtype.startswith(("float", "bfloat"))]
            parameters = sum(int(np.prod(shape, dtype=object)) for shape, _ in floats)
            types = tuple(sorted({dtype for _, dtype in floats}))
            return Contents(metadata, size, len(tensors), parameters, types), model

    @staticmethod
    def ports(model: Any) -> tuple[Ports, Ports]:
        """As `GraphRuntime.ports`."""
        return _ports(model.graph.input), _ports(model.graph.output)

    def compile(self, model: Any) -> None:
        """As `GraphRuntime.compile`; onnxruntime reads the file itself."""
        runtime = packages.onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4  # errors are raised; by default it also prints them
        with reading(self.path, MAX_FILE_BYTES, KIND):
            self._session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """As `GraphRuntime.infer`."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, {"images": images, "sizes": sizes}), strict=True))


def _ports(values: Iterable[Any]) -> Ports:
    kinds = [(value.name, value.type.tensor_type) for value in values]
    return {name: (_dtype(kind.elem_type), len(kind.shape.dim)) for name, kind in kinds}


def _dtype(number: int) -> str:
    """Return the numpy name of an ONNX type, or the number if ONNX has no such type."""
    try:
        return str(packages.onnx().helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, ValueError, TypeError):
        return str(number)
