"""Read the description of an OpenVINO model, without OpenVINO, in a time and memory that are bounded by its size."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from rcnn.config.files import MB
from rcnn.runtime.graph_check import Shape, check_number_of_nodes

MAX_XML_BYTES = 16 * MB
"""Maximum size of the description. That of the largest preset has 0.65 MB."""
MAX_ELEMENTS, MAX_DEPTH = 1_000_000, 100
"""Maximum number of elements, and how deep they may be nested."""
SECTION = "model_info"
"""Section of a model's runtime information that holds the metadata entries, by convention."""

_TYPES = {
    **{"f64": ("float64", 8), "f32": ("float32", 4), "f16": ("float16", 2), "bf16": ("bfloat16", 2)},
    **{f"i{bits}": (f"int{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (f"uint{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    "boolean": ("bool", 1),
}
"""Types of constants -> names in numpy, and bytes of a number."""
_PRECISIONS = {"FP64": "float64", "FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
"""Types of ports -> names in numpy, if these are not the same in lower case."""


class Constant(NamedTuple):
    """A constant of a model: the numpy name of its type, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass
class Layer:
    """A layer with its ports.

    Attributes:
        kind: such as `Convolution`, or `com.stranger.Own` if it is not OpenVINO's.
        dtype, shape: of its last port; the ends of a model have one.
        names: of the tensor.
    """

    kind: str
    dtype: str = ""
    shape: list[int | None] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


@dataclass
class Description:
    """The content of an .xml file.

    Attributes:
        ends: the layers `Parameter` and `Result`, in the order of the file.
        kinds: kinds of all layers.
        constants: in the order of the file.
        entries: the metadata, as name -> text.
    """

    ends: list[tuple[str, set[str], str, Shape]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    constants: list[Constant] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)


def read_description(path: Path, weights: int) -> Description:
    """Read an .xml file of at most `MAX_XML_BYTES`.

    Args:
        path: the file.
        weights: bytes of the file with its constants.

    Raises:
        WeightsError: it has too many layers.
        ValueError, ExpatError: it is malformed, declares entities, has too many elements, or a constant lies outside
            the weights.
    """
    reader = _LayerReader(path, weights)
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = reader.text, _refuse_entity
    parser.buffer_text = True
    parser.Parse(path.read_bytes(), True)
    return reader.description()


def _refuse_entity(*_: object) -> None:
    raise ValueError("it declares entities, which a model has no use for")


class _LayerReader:
    """Collects a `Description` from the events of a parser."""

    def __init__(self, path: Path, weights: int) -> None:
        self.path, self.weights = path, weights
        self.found = Description()
        self.elements = self.layers = 0
        self.above: list[str] = []
        self.layer = Layer("")
        self.number = ""
        self.written = ""
        self.ends: list[tuple[str, Layer]] = []
        self.tensors: dict[tuple[str, str], set[str]] = {}
        self.sources: dict[str, tuple[str, str]] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if self.elements > MAX_ELEMENTS or len(self.above) > MAX_DEPTH:
            raise ValueError(f"it has over {MAX_ELEMENTS:,} elements, or they are nested more than {MAX_DEPTH} deep")
        get, parent = attributes.get, self.above[-1] if self.above else ""
        if tag == "layer":
            self._start_layer(attributes)
        elif tag == "data" and parent == "layer" and self.layer.kind == "Const":
            self.found.constants.append(self._constant(attributes))
        elif tag == "port":
            precision = get("precision", "")
            self.layer.dtype, self.layer.shape = _PRECISIONS.get(precision, precision.lower()), []
            self.layer.dtype = re.sub(r"^([iu])(\d+)$", _numpy_integer, self.layer.dtype)
            names = set(get("names", "").split(",")) - {""}
            self.layer.names |= names
            if names:
                self.tensors[self.number, get("id", "")] = names
        elif tag == "edge":
            self.sources[get("to-layer", "")] = get("from-layer", ""), get("from-port", "")
        elif parent == SECTION:
            self.found.entries[tag] = get("value", "")
        self.above.append(tag)
        self.written = ""

    def end(self, tag: str) -> None:
        self.above.pop()
        if tag == "dim":
            side = int(self.written)
            self.layer.shape.append(None if side < 0 else side)
        elif tag == "layer" and self.layer.kind in ("Parameter", "Result"):
            self.ends.append((self.number, self.layer))

    def text(self, data: str) -> None:
        if self.above and self.above[-1] == "dim":
            self.written += data

    def description(self) -> Description:
        for number, layer in self.ends:
            names = layer.names | self.tensors.get(self.sources.get(number, ("", "")), set())
            self.found.ends.append((layer.kind, names, layer.dtype, tuple(layer.shape)))
        return self.found

    def _start_layer(self, attributes: dict[str, str]) -> None:
        self.layers += 1
        check_number_of_nodes(self.layers, self.path)
        kind, version = attributes.get("type", ""), attributes.get("version", "")
        self.layer = Layer(kind if re.fullmatch(r"opset\d+", version) else f"{version}.{kind}")
        self.layer.names = set(attributes.get("output_names", "").split(",")) - {""}
        self.number = attributes.get("id", "")
        self.found.kinds.add(self.layer.kind)

    def _constant(self, attributes: dict[str, str]) -> Constant:
        kind = attributes.get("element_type", "")
        if kind not in _TYPES:
            raise ValueError(f"it has constants of the type `{kind[:20]}`")
        dtype, width = _TYPES[kind]
        shape = tuple(int(side) for side in attributes.get("shape", "").split(",") if side.strip())
        offset, size = int(attributes["offset"]), int(attributes["size"])
        total = width
        for side in shape:
            total = min(total * side, 1 << 63)
        if min(offset, size, *shape, 0) < 0 or total > size or offset + size > self.weights:
            raise ValueError(f"a constant of shape {str(shape)[:100]} is not in {self.path.with_suffix('.bin').name}")
        return Constant(dtype, shape)


def _numpy_integer(match: re.Match[str]) -> str:
    return f"{'u' if match[1] == 'u' else ''}int{match[2]}"
