"""Well-formed graphs that do something hostile, made from the small graphs of `graphs`.

Those of `REFUSED` have what no export has. Those of `STOPPED` have only the usual kinds of nodes.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rcnn.detector import Detector
from rcnn.runtime import onnx as onnx_format
from rcnn.runtime import openvino as openvino_format
from rcnn.runtime import packages
from rcnn.runtime.graph import entries
from rcnn.runtime.openvino import add_entries
from tests.runtime import graphs

Attack = Callable[[onnx.ModelProto, int], object]
"""(a model, size of the attack) -> None; the model is changed."""

MANY, MAX_CHANGED = 10**7, 2_000_000


def constant(made: onnx.ModelProto, name: str, values: Any, dtype: Any = np.int64) -> str:
    made.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def add(made: onnx.ModelProto, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
    made.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
    return output


def take(made: onnx.ModelProto, output: str) -> str:
    """Rename an output within the graph, so that a node that is added can make it, and return its new name."""
    for node in made.graph.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = f"{output}_before" if name == output else name
    return f"{output}_before"


def unknown(made: onnx.ModelProto, values: Any, name: str = "extent") -> str:
    """Return an int64 tensor of these values that no compiler knows: it depends on the sizes of the images."""
    add(made, "ReduceMax", ["sizes"], f"{name}_top", keepdims=0)
    add(made, "Min", [f"{name}_top", constant(made, f"{name}_zero", 0, np.float32)], f"{name}_least")
    add(made, "Cast", [f"{name}_least"], f"{name}_number", to=TensorProto.INT64)
    return add(made, "Add", [f"{name}_number", constant(made, f"{name}_values", values)], name)


def finish(made: onnx.ModelProto, tensor: str) -> None:
    """Make the objectness scores depend on a float tensor, so that it is computed."""
    add(made, "ReduceMax", [tensor], "hostile_peak", keepdims=0)
    add(made, "Min", ["hostile_peak", constant(made, "hostile_zero", 0, np.float32)], "hostile_least")
    add(made, "Add", [take(made, "proposal_scores"), "hostile_least"], "proposal_scores")


def body(steps: Sequence[onnx.NodeProto] = ()) -> onnx.GraphProto:
    """Return the body of a loop that never ends."""
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), *steps],
        "body",
        [value("number", TensorProto.INT64, []), value("going", TensorProto.BOOL, [])],
        [value("goes_on", TensorProto.BOOL, [])],
    )


def loop(made: onnx.ModelProto, size: int) -> None:
    constant(made, "times", 2**62)
    constant(made, "going_on", True, np.bool_)
    made.graph.node.append(helper.make_node("Loop", ["times", "going_on"], [], body=body()))


def nested_if(made: onnx.ModelProto, size: int) -> None:
    def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [])])

    constant(made, "yes", True, np.bool_)
    node = plain = helper.make_node("Identity", ["half"], ["chosen"])
    for _ in range(min(size, 25)):
        node = helper.make_node("If", ["yes"], ["chosen"], then_branch=graph(node), else_branch=graph(plain))
    made.graph.node.append(node)


def scan(made: onnx.ModelProto, size: int) -> None:
    value = helper.make_tensor_value_info
    step = helper.make_graph(
        [helper.make_node("Identity", ["row"], ["same"])],
        "step",
        [value("row", TensorProto.FLOAT, None)],
        [value("same", TensorProto.FLOAT, None)],
    )
    made.graph.node.append(helper.make_node("Scan", ["sizes"], ["scanned"], body=step, num_scan_inputs=1))


def subgraph_in_an_attribute(made: onnx.ModelProto, size: int) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("body", body()))


def local_function(made: onnx.ModelProto, size: int) -> None:
    """Add functions that each call the one before twice."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    step = helper.make_node("Add", ["x", "x"], ["y"])
    made.functions.append(helper.make_function("own", "F0", ["x"], ["y"], [step], imports))
    for number in range(min(size, 60)):
        calls = [
            helper.make_node(f"F{number}", [before], [after], domain="own")
            for before, after in (("x", "between"), ("between", "y"))
        ]
        made.functions.append(helper.make_function("own", f"F{number + 1}", ["x"], ["y"], calls, imports))
    made.opset_import.append(helper.make_opsetid("own", 1))
    made.graph.node.append(helper.make_node(f"F{min(size, 60)}", ["bright"], ["doubled"], domain="own"))


def stranger(made: onnx.ModelProto, size: int) -> None:
    made.graph.node.append(helper.make_node("Own", ["mean"], ["more"], domain="com.stranger"))
    made.opset_import.append(helper.make_opsetid("com.stranger", 1))


def filled(made: onnx.ModelProto, size: int) -> None:
    constant(made, "filled_extent", [10**6, 10**6])
    add(made, "ConstantOfShape", ["filled_extent"], "filled")


def noise(made: onnx.ModelProto, size: int) -> None:
    made.graph.node.append(helper.make_node("RandomUniform", [], ["noise"], shape=[MANY, 100]))


def tensor_in_an_attribute(made: onnx.ModelProto, size: int) -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float32))
    made.graph.node.append(helper.make_node("Constant", [], ["held"], value=value))


def sparse(made: onnx.ModelProto, size: int) -> None:
    values = helper.make_tensor("thin", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places_of_thin", TensorProto.INT64, [1], [5])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10**9, 10**3]))


def very_many_nodes(made: onnx.ModelProto, size: int) -> None:
    made.graph.node.extend([helper.make_node("Identity", ["half"], [""])] * 30_000)


def very_many_empty_nodes(made: onnx.ModelProto, size: int) -> None:
    made.graph.node.extend([onnx.NodeProto()] * 300_000)


def weights_elsewhere(made: onnx.ModelProto, size: int) -> None:
    tensor = made.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "a.png"), ("offset", str(2**62)), ("length", str(2**40))):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))


def too_few_numbers(made: onnx.ModelProto, size: int) -> None:
    made.graph.initializer[1].dims[:] = [1, 10**9, 10**9]


def declared(made: onnx.ModelProto, rows: int | str) -> None:
    """Declare another number of detections."""
    for output in made.graph.output:
        if output.name in ("boxes", "scores", "labels", "valid"):
            side = output.type.tensor_type.shape.dim[1]
            side.Clear()
            if isinstance(rows, int):
                side.dim_value = rows
            else:
                side.dim_param = rows


def millions_declared(made: onnx.ModelProto, size: int) -> None:
    declared(made, MANY)


def any_number_declared(made: onnx.ModelProto, size: int) -> None:
    declared(made, "D")


REFUSED: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        *(loop, nested_if, scan, subgraph_in_an_attribute, local_function, stranger, filled, noise),
        *(tensor_in_an_attribute, sparse, very_many_nodes, very_many_empty_nodes, weights_elsewhere, too_few_numbers),
        *(millions_declared, any_number_declared),
    )
}
"""Attacks that are refused before the graph is run."""


def gigabytes(made: onnx.ModelProto, size: int) -> None:
    """Expand one number to a terabyte."""
    finish(made, add(made, "Expand", ["half", unknown(made, [500_000, 500_000 + size])], "wide"))


def tiles(made: onnx.ModelProto, size: int) -> None:
    """Repeat a tensor until it fills all memory."""
    finish(made, add(made, "Tile", ["places", unknown(made, [1, 60_000_000 + size, 1])], "tiled"))


def range_of_numbers(made: onnx.ModelProto, size: int) -> None:
    end = unknown(made, 10**12 + size)
    add(made, "Range", [constant(made, "start", 0), end, constant(made, "step", 1)], "count")
    finish(made, add(made, "Cast", ["count"], "counted", to=TensorProto.FLOAT))


def products(made: onnx.ModelProto, size: int) -> None:
    """Multiply matrices for hours, in little memory."""
    side = 1500 + size % 100
    first = before = add(made, "Expand", ["half", unknown(made, [side, side])], "matrix")
    for number in range(400):
        before = add(made, "MatMul", [before, first], f"product_{number}")
    finish(made, before)


def products_of_constants(made: onnx.ModelProto, size: int) -> None:
    """Multiply matrices that are known, so that a compiler may do so."""
    side = 1500 + size % 100
    first = before = add(made, "Expand", ["half", constant(made, "known", [side, side])], "matrix")
    for number in range(400):
        before = add(made, "MatMul", [before, first], f"product_{number}")
    finish(made, before)


def millions_computed(made: onnx.ModelProto, size: int) -> None:
    """Return many more proposals than declared."""
    add(made, "Tile", [take(made, "proposal_boxes"), unknown(made, [1, MANY + size, 1])], "proposal_boxes")


MEMORY = 1, "there is not enough memory: "
TIME = 4, "CPU seconds and was stopped; the limits per megapixel are predict.graph_seconds=2"
ROWS_OF_ALL = 4, "its outputs have more rows than its settings allow"
NONE = 4, "its outputs don't belong together"  # OpenVINO returns nothing if it has no memory
STOPPED: dict[str, tuple[Attack, tuple[int, str], tuple[int, str] | None]] = {
    "gigabytes": (gigabytes, MEMORY, NONE),
    "tiles": (tiles, MEMORY, NONE),
    "range of numbers": (range_of_numbers, MEMORY, NONE),
    "products": (products, TIME, TIME),
    "products of constants": (products_of_constants, (4, "stopped; the limits of loading are 2 s and"), None),
    "millions computed": (millions_computed, ROWS_OF_ALL, ROWS_OF_ALL),
}
"""Attacks that pass the check: the attack, and the exit code and message of the .onnx and of the .xml file.

OpenVINO's converter computes constants itself.
"""


def write(attack: Attack, size: int, path: Path, one: Detector | None = None) -> Path:
    """Write the small file with an attack, as .onnx, or as .xml without computing anything."""
    one = one or graphs.detector()
    made = graphs.model(one)
    attack(made, size)
    if path.suffix == ".onnx":
        path.write_bytes(made.SerializeToString())
        return path
    source = path.with_suffix(".onnx")
    source.write_bytes(made.SerializeToString())
    openvino = packages.openvino()
    model = openvino.convert_model(str(source))
    add_entries(model, entries(one))
    openvino.save_model(model, str(path), compress_to_fp16=False)
    source.unlink()
    return layers(path, lambda text: re.sub(ROWS.replace("3<", "-1<"), r"\g<1>3<", text, flags=re.DOTALL))


def layers(path: Path, change: Callable[[str], str]) -> Path:
    """Change the text of an .xml file."""
    path.write_text(change(path.read_text()))
    return path


def added_layer(text: str, kind: str, version: str = "opset1", inside: str = "") -> str:
    layer = f'<layer id="9999" name="own" type="{kind}" version="{version}">{inside}</layer>'
    return text.replace("</layers>", f"{layer}</layers>", 1)


BODY = '<body><layers/><edges/></body><port_map><input external_port_id="0" internal_layer_id="0"/></port_map>'
ROWS = r'(output_names="proposal_boxes".*?<dim>-?\d+</dim>\s*<dim>)3<'
"""Where an .xml file declares the number of proposals."""
XML: dict[str, tuple[Callable[[str], str], str]] = {
    "iterator": (lambda text: added_layer(text, "TensorIterator", inside=BODY), "nodes of the kind `TensorIterator`"),
    "loop": (lambda text: added_layer(text, "Loop", "opset5", BODY), "nodes of the kind `Loop`"),
    "if": (lambda text: added_layer(text, "If", "opset8", BODY), "nodes of the kind `If`"),
    "variable": (lambda text: added_layer(text, "ReadValue", "opset6"), "nodes of the kind `ReadValue`"),
    "random": (lambda text: added_layer(text, "RandomUniform", "opset8"), "nodes of the kind `RandomUniform`"),
    "stranger": (lambda text: added_layer(text, "Own", "extension"), "nodes of the kind `extension.Own`"),
    "no version": (lambda text: text.replace('version="opset1"', "", 1), "nodes of the kind `."),
    "very many layers": (
        lambda text: text.replace("</layers>", '<layer id="1" type="Add" version="opset1"/>' * 100_000 + "</layers>"),
        "its graph has over 20,000 nodes",
    ),
    "large": (lambda text: text.replace("</layers>", f"{' ' * 53_000_000}</layers>"), "53 MB are too many"),
    "very many elements": (lambda text: text.replace("<edges>", "<edges>" + "<a/>" * 1_100_000), "over 1,000,000 elem"),
    "deep": (lambda text: text.replace("<edges>", "<edges>" + "<a>" * 200 + "</a>" * 200), "more than 100 deep"),
    "entities": (
        lambda text: text.replace("<net ", '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">]><net ', 1),
        "it declares entities",
    ),
    "constant beyond the weights": (
        lambda text: re.sub(r'offset="\d+"', 'offset="4611686018427387904"', text, count=1),
        "is not in a.bin",
    ),
    "huge constant": (lambda text: text.replace('shape="1, 3, 4"', 'shape="1000000000, 1000000000, 4"'), "is not in"),
    "strange constant": (lambda text: text.replace('element_type="f32"', 'element_type="string"'), "of the type"),
    "millions declared": (
        lambda text: re.sub(ROWS, r"\g<1>9999999<", text, flags=re.DOTALL),
        "declares 9,999,999 of `proposal_boxes` per image, but its settings allow rpn.post_test=200",
    ),
    "any number declared": (
        lambda text: re.sub(ROWS.replace("proposal_", ""), r"\g<1>-1<", text, flags=re.DOTALL),
        "declares any number of `boxes` per image, but its settings allow roi.detections=100",
    ),
}
"""Changes of an .xml file that are refused before OpenVINO reads it, and the messages."""


def random_onnx(path: Path, rng: Random) -> None:
    """Write an .onnx file with random attacks, other kinds of nodes, other inputs and other numbers."""
    made = graphs.model(graphs.detector())
    every = [*REFUSED.values(), *(attack for attack, *_ in STOPPED.values())]
    for attack in rng.sample(every, rng.choice((0, 1, 1, 1, 2))):
        attack(made, rng.randrange(100))
    nodes, tensors = list(made.graph.node)[:1000], [tensor.name for tensor in made.graph.initializer]
    for node in rng.sample(nodes, min(rng.choice((0, 0, 1, 3)), len(nodes))):
        if rng.random() < 0.5:
            node.op_type = rng.choice(sorted(onnx_format.KINDS))
        elif node.input:
            known = [*tensors, *(name for one in nodes for name in one.output), "images", "sizes"]
            node.input[rng.randrange(len(node.input))] = rng.choice(known)
    for tensor in made.graph.initializer:
        if rng.random() < 0.05:
            numbers = [rng.choice((-1, 0, 1, 1000, 10**6, 2**31, 2**62)) for _ in range(len(tensor.raw_data) // 8)]
            if tensor.data_type == TensorProto.INT64:
                tensor.raw_data = np.array(numbers, np.int64).tobytes()
    path.write_bytes(made.SerializeToString())


def random_xml(path: Path, rng: Random) -> None:
    """Write an .xml file with a random attack, or with other kinds of layers, other edges and other numbers."""
    attack = rng.choice([None, *(attack for attack, _, end in STOPPED.values() if end)])
    write(attack or (lambda made, size: None), rng.randrange(100), path)
    if rng.random() < 0.5:
        layers(path, rng.choice(list(XML.values()))[0])

    def changed(match: re.Match[str]) -> str:
        if rng.random() > 0.01:
            return match[0]
        kinds = sorted(openvino_format.KINDS)
        number = str(rng.choice((-1, 0, 1, 7, 1000, 10**6, 2**31, 2**62)))
        return match[1] + (rng.choice(kinds) if match[1].endswith('type="') else number) + match[3]

    if rng.random() < 0.5 and path.stat().st_size < MAX_CHANGED:
        layers(
            path, lambda text: re.sub(r'( type="|-layer="|-port="|shape="|axis="|<dim>)([^"<]*)(["<])', changed, text)
        )
