"""Small files with the inputs and outputs of an exported detector: fixed boxes, with scores by brightness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rcnn.detector import Detector
from rcnn.presets import build, settings_of
from rcnn.runtime import packages
from rcnn.runtime.by_suffix import files_of
from rcnn.runtime.graph import entries
from rcnn.runtime.openvino import add_entries
from rcnn.runtime.own_exports import remember

NAMES = ("circle", "square")
SMALL = ("preprocess.short=64", "preprocess.long=96", "model.channels=8", "roi.hidden=16", "predict.score=0")
PLACES = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0], [0, 0, 0, 0]], dtype=np.float32)
"""(D, 4) as shares of the width and height of an image; the last is no detection."""
SCORES, LABELS = np.array([0.9, 0.6, 0.0], dtype=np.float32), np.array([1, 0, 0])
"""Scores in a white image; those in a black image are half as high."""
NOTE_REQUESTS = """
import os, sys
def note(event, arguments):
    asks = event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname")
    if asks or event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        os.write(1, f"{event} {arguments!r}\\n".encode())
sys.addaudithook(note)
"""
"""Beginning of a program that prints its connections and the programs that it starts."""


def detector(*changes: str) -> Detector:
    """Return a detector with the settings and names of the files."""
    settings = settings_of("tiny-fpn", [*SMALL, *changes])
    return Detector(
        build(settings, 2), settings, NAMES, category_ids=(7, 3), threshold=0.25, licence="CC0", device="cpu"
    )


def graph(
    one: Detector, size: tuple[int, int] | None = None, batch: Any = "B", labels: Any = LABELS
) -> onnx.GraphProto:
    """Return a graph with the inputs and outputs of the detector `one`."""
    constants = {
        "corners": np.array([1, 0, 1, 0]),
        "places": PLACES[None],
        "plain": SCORES[None],
        "kinds": np.asarray(labels, dtype=np.float32)[None],
        "axes": np.array([1, 2, 3]),
        "one": np.array([1]),
        "none": np.zeros((), dtype=np.float32),
        "half": np.full((), 0.5, dtype=np.float32),
        "scale": np.full((), 0.5 / 255, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["bright"], to=TensorProto.FLOAT),
        node("ReduceMean", ["bright", "axes"], ["mean"], keepdims=0),
        node("IsNaN", ["mean"], ["broken"]),
        node("Not", ["broken"], ["finite"]),
        node("Mul", ["mean", "scale"], ["part"]),
        node("Add", ["part", "half"], ["light"]),
        node("Unsqueeze", ["light", "one"], ["lights"]),
        node("Mul", ["plain", "lights"], ["proposal_scores"]),
        node("Greater", ["proposal_scores", "none"], ["proposal_valid"]),
        node("Gather", ["sizes", "corners"], ["sides"], axis=1),
        node("Unsqueeze", ["sides", "one"], ["spans"]),
        node("Mul", ["places", "spans"], ["proposal_boxes"]),
    ]
    count = len(PLACES)
    outputs = {
        "finite": (TensorProto.BOOL, [batch]),
        "proposal_boxes": (TensorProto.FLOAT, [batch, count, 4]),
        "proposal_scores": (TensorProto.FLOAT, [batch, count]),
        "proposal_valid": (TensorProto.BOOL, [batch, count]),
    }
    if one.settings.predicts_classes:
        nodes += [node("Identity", [f"proposal_{name}"], [name]) for name in ("boxes", "scores", "valid")]
        nodes += [
            node("Mul", ["scores", "none"], ["nothing"]),
            node("Add", ["nothing", "kinds"], ["kind"]),
            node("Cast", ["kind"], ["labels"], to=TensorProto.INT64),
        ]
        outputs |= {name: outputs[f"proposal_{name}"] for name in ("boxes", "scores", "valid")}
        outputs["labels"] = TensorProto.INT64, [batch, count]
    preprocess = one.settings.preprocess
    pixel = TensorProto.FLOAT if preprocess.resize == "interpolate" else TensorProto.UINT8
    inputs = {
        "images": (pixel, [batch, preprocess.in_channels, *(size or ("H", "W"))]),
        "sizes": (TensorProto.FLOAT, [batch, 2]),
    }
    return helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def model(
    one: Detector,
    size: tuple[int, int] | None = None,
    *,
    changes: Mapping[str, str] | None = None,
    imports: Sequence[tuple[str, int]] = (("", 18),),
    **graphs: Any,
) -> onnx.ModelProto:
    """Return an ONNX model like that of an export; `changes` replace entries."""
    made = helper.make_model(
        graph(one, size, **graphs), opset_imports=[helper.make_opsetid(*each) for each in imports], ir_version=10
    )
    parity = {"images": 6, "agreement": 1.0}
    helper.set_model_props(made, {**entries(one, size, parity), **(changes or {})})
    return made


def write_onnx(path: Path, one: Detector, size: tuple[int, int] | None = None, **changes: Any) -> Path:
    path.write_bytes(model(one, size, **changes).SerializeToString())
    return path


def write_openvino(path: Path, one: Detector, size: tuple[int, int] | None = None, **changes: Any) -> Path:
    """Write an .xml file and its .bin, converted from an ONNX file."""
    openvino = packages.openvino()
    source = write_onnx(path.with_name(f"{path.stem}-source.onnx"), one, size, **changes)
    made = openvino.convert_model(str(source))
    add_entries(made, entries(one, size, {"images": 6, "agreement": 1.0}) | (changes.get("changes") or {}))
    openvino.save_model(made, str(path), compress_to_fp16=False)
    source.unlink()
    return path


WRITE = {"onnx": write_onnx, "xml": write_openvino}
"""Suffix -> function that writes such a file."""


def own(path: Path) -> Path:
    """List a file as an export of this user, which runs in this process."""
    remember(files_of(path))
    return path
