"""OpenVINO's files: a graph as .xml, and its weights beside it as .bin."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.runtime import packages
from rcnn.runtime.graph import NAMES, Contents, GraphRuntime, check_digest, read_entries, size_beside
from rcnn.runtime.graph_check import Declared, Ports, Shape
from rcnn.runtime.openvino_xml import MAX_XML_BYTES, SECTION, read_description
from rcnn.runtime.sessions import PRECISIONS
from rcnn.weights.file import reading

_KINDS = """
Abs AdaptiveAvgPool Add AvgPool BatchNormInference Broadcast Ceiling Clamp Concat Const Convert Convolution Cos CumSum
Divide Elu Equal Erf Exp FakeQuantize Floor FloorMod Gather GatherElements GatherND Gelu Greater GreaterEqual
GroupConvolution GroupNormalization HSigmoid HSwish HardSigmoid Identity Interpolate IsInf IsNaN Less LessEqual Log
LogSoftmax LogicalAnd LogicalNot LogicalOr MVN MatMul MaxPool Maximum Minimum Mish Mod Multiply Negative
NonMaxSuppression NonZero NormalizeL2 PReLU Pad Parameter Power ROIAlign ROIPooling Range ReLU ReduceL2 ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum Reshape Result Round ScaledDotProductAttention ScatterElementsUpdate
ScatterNDUpdate Select Selu ShapeOf Sigmoid Sign Sin Slice SoftMax SoftPlus Split Sqrt Squeeze StridedSlice Subtract
Swish Tanh Tile TopK Transpose Unsqueeze VariadicSplit
"""
KINDS = frozenset(_KINDS.split())
"""Kinds of layers in exports of all presets and settings, and of the layers of other backbones."""


class OpenVinoRuntime(GraphRuntime):
    """An OpenVINO model on the CPU. Arguments and errors are those of `GraphRuntime`."""

    name = "openvino"
    session = "openvino"
    precisions = tuple(PRECISIONS)
    companions = (".bin",)
    kinds = KINDS
    max_bytes = MAX_XML_BYTES
    format = "no model of OpenVINO"
    package = staticmethod(packages.openvino)

    @classmethod
    def read(cls, path: Path) -> tuple[Contents, Declared]:
        """As `GraphRuntime.read`. OpenVINO itself, whose reader has no limits, is not used."""
        with reading(path, cls.max_bytes, cls.format):
            with path.open("rb") as file:
                root = re.search(rb"<([A-Za-z][\w.:-]*)", file.read(10_000))
            if root is None or root[1] != b"net":
                what = f"an XML file of <{root[1].decode(errors='replace')[:40]}>" if root else "no XML file"
                raise WeightsError(f"{path}: is {what}, but detectors in .xml files are models of OpenVINO, of <net>")
            weights = path.with_suffix(".bin")
            beside = size_beside(path, weights)
            found = read_description(path, beside)
            metadata = read_entries(found.entries, path)
            check_digest(found.entries, pieces(weights), path)
            floats = [one for one in found.constants if "float" in one.dtype or one.dtype == "int8"]
            parameters = sum(math.prod(constant.shape) for constant in floats)
            types = tuple(sorted({constant.dtype for constant in floats}))
            contents = Contents(metadata, path.stat().st_size + beside, len(found.constants), parameters, types)
            inputs, outputs = (
                _ports((names, dtype, shape) for end, names, dtype, shape in found.ends if end == kind)
                for kind in ("Parameter", "Result")
            )
            return contents, Declared(inputs, outputs, frozenset(found.kinds))


def add_entries(model: Any, entries: Mapping[str, str]) -> None:
    """Add the metadata entries of an export (see `rcnn.runtime.graph`) to an `openvino.Model`."""
    for name, text in entries.items():
        model.set_rt_info(text, [SECTION, name])


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file of weights in pieces, for `rcnn.runtime.graph.digest`."""
    with path.open("rb") as file:
        while piece := file.read(MB):
            yield piece


def _ports(ends: Iterable[tuple[set[str], str, Shape]]) -> Ports:
    """Return the ports under those of their names that are ours, or under any name if none is."""
    ports = {}
    for names, dtype, shape in ends:
        ports |= dict.fromkeys(names & NAMES or sorted(names)[:1] or ["without a name"], (dtype, shape))
    return ports
