"""Check that `scripts/same_results.py` finds single-bit differences in every kind of file."""

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.weights.file import load_weights, save_weights


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("same_results", Path(__file__).parents[1] / "scripts" / "same_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def outs(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of equal results that differ only in times, checkpoints, a new setting and wording."""
    for number in (0, 1):
        run = tmp_path / str(number) / "joint-1"
        (run / "weights").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        weights = {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": torch.tensor(3)}
        settings = {"train": {"lr": 0.1, **({"new": 1} if number else {})}}
        save_weights(run / "weights" / "best.safetensors", weights, {"threshold": 0.5, "settings": settings})
        save_weights(run / "checkpoints" / "step-1.safetensors", {"a": torch.tensor(number)}, {})
        (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "ap": 0.1, "seconds": number}) + "\n")
        (run / "log.txt").write_text(f"{number} seconds")
        advice = (f"Raise `rpn.post_test` (now {count}): it loses objects" for count in ("1,200", "1200"))
        (run / "why.json").write_text(json.dumps({"advice": [*advice][number], "lost": [3, None]}))
        (run / "report.html").write_text(f'<b>{number}</b><script type="application/json">{{"x": [1, 0.5]}}</script>')
        (run / "val.txt").write_text(f"{'AP of all' if number else 'ap'}: 0.25")
        (run / "boxes.csv").write_text(f"x,seconds\n1.5,{number}\n")
        np.savez(run / "caffe.npz", a=np.arange(3.0))
        torch.save({"a": torch.arange(3)}, run / "back.pth")
        Image.new("RGB", (4, 3)).save(run / "worst.webp", lossless=True)
    return tmp_path / "0", tmp_path / "1"


def test_equal_results_have_no_differences(script: ModuleType, outs: tuple[Path, Path]) -> None:
    assert list(script.compare(*outs)) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_different_bit_of_a_weight_is_reported(script: ModuleType, outs: tuple[Path, Path], place: int) -> None:
    path = outs[1] / "joint-1" / "weights" / "best.safetensors"
    tensors, metadata = load_weights(path)
    tensors["a"].view(torch.int32)[place] ^= 1
    save_weights(path, tensors, metadata)
    (line,) = script.compare(*outs)
    assert line.startswith("joint-1/weights/best.safetensors: a: 1 of 3 differ")


def test_numbers_and_files_are_compared(script: ModuleType, outs: tuple[Path, Path]) -> None:
    run = outs[1] / "joint-1"
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "ap": 0.1 + 2**-56, "new": 1}) + "\n")
    tensors, _ = load_weights(run / "weights" / "best.safetensors")
    changed = {"threshold": 0.25, "settings": {"train": {"lr": 0.2}}}
    save_weights(run / "weights" / "best.safetensors", tensors, changed)
    save_weights(run / "weights" / "last.safetensors", tensors, changed)
    assert list(script.compare(*outs)) == [
        "joint-1/weights/last.safetensors: only in one of the two",
        "joint-1/metrics.jsonl: 0.new: only in one of the two",
        "joint-1/metrics.jsonl: 0.ap: 0.1 and 0.10000000000000002",
        "joint-1/weights/best.safetensors: settings.train.lr: 0.1 and 0.2",
        "joint-1/weights/best.safetensors: threshold: 0.5 and 0.25",
    ]


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "why.json": (
        lambda path: path.write_text(path.read_text().replace("1200", "1300")),
        "advice: ['1200'] and ['1300']",
    ),
    "report.html": (
        lambda path: path.write_text(path.read_text().replace("0.5", "0.75")),
        "numbers: 1 of 2 differ, by 0.25 at most",
    ),
    "val.txt": (lambda path: path.write_text("AP: 0.26"), "number 0: 0.25 and 0.26"),
    "boxes.csv": (lambda path: path.write_text("x,seconds\n1.25,1\n"), "0.x: 1.5 and 1.25"),
    "caffe.npz": (lambda path: np.savez(path, a=np.array([0.0, 1, 3])), "a: 1 of 3 differ, by 1 at most"),
    "back.pth": (lambda path: torch.save({"a": torch.ones(3)}, path), "a: torch.int64 (3,) and torch.float32 (3,)"),
    "worst.webp": (
        lambda path: Image.new("RGB", (4, 3), (0, 0, 1)).save(path, lossless=True),
        "pixels: 12 of 36 differ, by 1 at most",
    ),
}
"""A change of each file, and the line that reports it."""


@pytest.mark.parametrize("name", CHANGES)
def test_every_kind_of_file_is_compared(script: ModuleType, outs: tuple[Path, Path], name: str) -> None:
    change, line = CHANGES[name]
    change(outs[1] / "joint-1" / name)
    assert list(script.compare(*outs)) == [f"joint-1/{name}: {line}"]
    assert list(script.compare(*outs, pictures=False)) == ([] if name == "worst.webp" else [f"joint-1/{name}: {line}"])


def test_at_most_five_differences_per_file_are_listed(script: ModuleType, outs: tuple[Path, Path]) -> None:
    for out, digit in zip(outs, "12", strict=True):
        (out / "numbers.txt").write_text(" ".join([digit] * 8))
    lines = list(script.compare(*outs))
    assert lines[0] == "numbers.txt: number 0: 1 and 2"
    assert lines[5:] == ["numbers.txt: and 3 more"]


def onnx_file(path: Path, names: str, *, epsilon: float = 0.5, swap: bool = False) -> None:
    """Write `out = (x + a) * LeakyRelu(x) - a` with these names of inner values, or with the subtraction swapped."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    a, total, leaky, product = names
    nodes = [
        helper.make_node("Add", ["x", a], [total]),
        helper.make_node("LeakyRelu", ["x"], [leaky], alpha=epsilon),
        helper.make_node("Mul", [total, leaky], [product]),
        helper.make_node("Sub", [a, product] if swap else [product, a], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "out")]
    constant = numpy_helper.from_array(np.ones(2, np.float32), a)
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [constant]))
    helper.set_model_props(model, {"rcnn": json.dumps({"threshold": 0.5})})
    checker.check_model(model)
    save(model, path)


def test_onnx_graphs_are_compared_node_by_node_without_value_names(script: ModuleType, outs) -> None:
    onnx_file(outs[0] / "a.onnx", "atlp")
    onnx_file(outs[1] / "a.onnx", "zyxw"[::-1].replace("x", "v"))
    assert list(script.compare(*outs)) == []
    onnx_file(outs[1] / "a.onnx", "atlp", epsilon=0.25)
    node, output = script.compare(*outs)
    assert node.startswith("a.onnx: nodes.LeakyRelu: 1 nodes ")
    assert output.startswith("a.onnx: output.out 1: ")
    onnx_file(outs[1] / "a.onnx", "atlp", swap=True)
    assert [line.split(":")[1] for line in script.compare(*outs)] == [" nodes.Sub", " output.out 1"]


def openvino_file(path: Path, *, first_id: int = 0, constant: float = 1.0, reverse: bool = False) -> None:
    """Write `out = x - constant`, or the reverse, with layers numbered from `first_id`."""
    root = ElementTree.Element("net")
    layers, edges = ElementTree.SubElement(root, "layers"), ElementTree.SubElement(root, "edges")
    x, c, difference, result = (str(first_id + i) for i in range(4))
    for number, kind, data, inputs, outputs in (
        (x, "Parameter", {"shape": "2"}, "", "0"),
        (c, "Const", {"offset": "4", "size": "4"}, "", "0"),
        (difference, "Subtract", {}, "01", "2"),
        (result, "Result", {}, "0", ""),
    ):
        layer = ElementTree.SubElement(
            layers, "layer", id=number, type=kind, name={x: "x", result: "out"}.get(number, kind)
        )
        ElementTree.SubElement(layer, "data", data)
        for side, ports in (("input", inputs), ("output", outputs)):
            element = ElementTree.SubElement(layer, side)
            for port in ports:
                ElementTree.SubElement(element, "port", id=port)
    pair = "10" if reverse else "01"
    for source, port, target, end in (
        (x, "0", difference, pair[0]),
        (c, "0", difference, pair[1]),
        (difference, "2", result, "0"),
    ):
        attributes = {"from-layer": source, "from-port": port, "to-layer": target, "to-port": end}
        ElementTree.SubElement(edges, "edge", attributes)
    ElementTree.ElementTree(root).write(path)
    path.with_suffix(".bin").write_bytes(np.array([0, constant], np.float32).tobytes())


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"first_id": 7}, []),
        ({"constant": 2.0}, ["nodes.Const", "output.out"]),
        ({"reverse": True}, ["output.out"]),
    ],
)
def test_openvino_graphs_are_compared(script: ModuleType, outs, change: dict, differing: list[str]) -> None:
    openvino_file(outs[0] / "a.xml")
    openvino_file(outs[1] / "a.xml", **change)
    assert [line.split(": ")[1] for line in script.compare(*outs)] == differing


def test_options_are_read_from_the_help_without_descriptions(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    script.part_help(tmp_path)
    commands = json.loads((tmp_path / "help.json").read_text())
    assert {"rcnn", "train", "data", "data convert"} <= commands.keys()
    options = {row[0]: row[1:] for row in commands["predict"]}
    assert options["--batch"] == ["<int range> [x>=1]", "[default: 1]"]
    assert options["--split"] == ["<train|val|test|all>"]
