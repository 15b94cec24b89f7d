"""ONNX files in onnxruntime."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import Contents, GraphRuntime, check_digest, read_entries
from rcnn.runtime.graph_check import Declared, Ports, check_number_of_nodes
from rcnn.runtime.onnx_bytes import check_parts
from rcnn.weights.file import reading

_KINDS = """
Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Conv Cos CumSum Div Elu Equal Erf Exp Expand Flatten
Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid
HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
MatMul Max MaxPool MaxRoiPool Min Mish Mod Mul Neg NonMaxSuppression NonZero Not Or PRelu Pad Pow Range Reciprocal
ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize RoiAlign Round ScatterElements
ScatterND Selu Shape Sigmoid Sign Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze
Where
"""
KINDS = frozenset(_KINDS.split())
"""Kinds of nodes in exports of all presets and settings, and of the layers of other backbones."""


class OnnxRuntime(GraphRuntime):
    """An ONNX file in onnxruntime. Arguments and errors are those of `GraphRuntime`."""

    name = "onnxruntime"
    session = "onnxruntime"
    kinds = KINDS
    max_bytes = 2_148 * MB  # the format's own limit
    format = "no ONNX file"
    package = staticmethod(packages.onnxruntime)

    @classmethod
    def read(cls, path: Path) -> tuple[Contents, Declared]:
        """As `GraphRuntime.read`."""
        package = packages.onnx()
        with reading(path, cls.max_bytes, cls.format):
            data = path.read_bytes()
            check_parts(data)
            model = package.ModelProto.FromString(data)
            if not model.graph.node:
                raise ValueError("it holds no graph")
            found = {entry.key: entry.value for entry in model.metadata_props}
            metadata = read_entries(found, path, f"{model.producer_name} {model.producer_version}".strip())
            tensors = model.graph.initializer
            check_digest(found, (tensor.raw_data for tensor in tensors), path)
            check_number_of_nodes(len(model.graph.node), path)
            for tensor in tensors:
                _check_tensor(tensor, path)
            floats = [(tensor.dims, _dtype(tensor.data_type)) for tensor in tensors]
            floats = [(shape, dtype) for shape, dtype in floats if dtype.startswith(("float", "bfloat"))]
            parameters = sum(int(np.prod(shape, dtype=object)) for shape, _ in floats)
            types = tuple(sorted({dtype for _, dtype in floats}))
            contents = Contents(metadata, path.stat().st_size, len(tensors), parameters, types)
            return contents, Declared(_ports(model.graph.input), _ports(model.graph.output), frozenset(_kinds(model)))


def _check_tensor(tensor: Any, path: Path) -> None:
    """Check that a tensor has as many numbers as its shape says, and that these are in the file itself."""
    if tensor.data_location or tensor.external_data:
        raise WeightsError(f"{path}: its weights are in other files, which is not so in files exported by rcnn")
    count = 1
    for side in tensor.dims:
        count = min(count * side, 1 << 63)
    if min(tensor.dims, default=0) < 0 or count > tensor.ByteSize():
        raise ValueError(f"the weights `{tensor.name[:100]}` have fewer numbers than their shape {list(tensor.dims)}")


def _kinds(model: Any) -> Iterator[str]:
    """Yield the kinds of all nodes, and of everything that exports do not have."""
    domains = {entry.domain for entry in model.opset_import}
    yield from (f"{domain}.*" for domain in domains - {"", "ai.onnx"})
    yield from (f"function {function.name}" for function in model.functions)
    if model.training_info or model.graph.sparse_initializer or model.graph.quantization_annotation:
        yield "training or sparse weights"
    simple = {"FLOAT", "INT", "STRING", "FLOATS", "INTS"}
    types = packages.onnx().AttributeProto
    numbers = {types.AttributeType.Value(name) for name in simple}
    for node in model.graph.node:
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        yield f"{domain}{node.op_type}"
        for attribute in node.attribute:
            held = attribute.HasField("g") or attribute.HasField("t") or attribute.HasField("sparse_tensor")
            if attribute.type not in numbers or held or attribute.ref_attr_name:
                yield f"{node.op_type} with the attribute {attribute.name}"


def _ports(values: Iterable[Any]) -> Ports:
    kinds = [(value.name, value.type.tensor_type) for value in values]
    return {
        name: (
            _dtype(kind.elem_type),
            tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim),
        )
        for name, kind in kinds
    }


def _dtype(number: int) -> str:
    """Return the numpy name of an ONNX type, or the number if ONNX has no such type."""
    try:
        return str(packages.onnx().helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, ValueError, TypeError):
        return str(number)
