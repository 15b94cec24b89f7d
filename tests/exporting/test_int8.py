"""Files in int8: what is quantised, what is measured before they are written, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rcnn
from rcnn.config import override
from rcnn.detector import Detector
from rcnn.errors import DataError, ExportError, SettingsError, UnavailableError
from rcnn.exporting import graph_files, int8
from rcnn.exporting.int8 import LAYERS, layer_errors, networks, quantise
from rcnn.runtime import packages
from rcnn.runtime.graph import Quantised
from rcnn.runtime.openvino import OpenVinoRuntime
from tests.exporting.test_export import KINDS, detector_of, use_program
from tests.test_every_preset import NAMES, PICTURES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # packages warn about one another

PYRAMID = "pyramid, float pixels"


def labelled(detector: Detector, folder: Path, train: int = 20, val: int = 4) -> Path:
    """Write a data set whose objects are the best three boxes of a detector in each image, so that its AP is 1."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    find = detector.predict if detector.settings.predicts_classes else detector.propose
    for split, count in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True)
        images, boxes = [], []
        for number in range(count):
            picture = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "images" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 90, "width": 120})
            found = find([picture])[0].filter(top=3)
            for (x1, y1, x2, y2), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
                box = {"id": len(boxes), "image_id": number, "category_id": label + 1, "iscrowd": 0}
                boxes.append({**box, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
        categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def quantisers(model: Any) -> list[Any]:
    """Return the nodes that quantise activations."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    return [node for node in nodes if node.input_value(0).get_node().get_type_name() not in ("Constant", "Convert")]


def readers(node: Any) -> set[Any]:
    return {port.get_node() for output in node.outputs() for port in output.get_target_inputs()}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == PYRAMID else [pytest.mark.more]) for kind in KINDS]
)
def test_layers_are_quantised_and_boxes_are_not(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, kind)
    detector = detector_of(*KINDS[kind])
    data = labelled(detector, tmp_path / "data")
    found = rcnn.export_int8(detector, tmp_path / "net.xml", data, max_drop=1)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "net.xml", "net.bin"}
    assert found.metric == ("ap" if detector.settings.predicts_classes else "proposal_ar300")
    assert (found.scored, found.calibrated, found.in_float) == (4, 20, ())
    assert found.float32 > 0.5
    model = packages.openvino_core().read_model(tmp_path / "net.xml")
    known = networks(model)
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() in LAYERS]
    inside = [node for node in layers if node.get_friendly_name() in known]
    assert 0 < len(layers) - len(inside) <= 2 * (len(detector.settings.model.levels) + detector.settings.roi.stages)
    passing = {"FakeQuantize", "MaxPool", "Reshape"}  # the last two keep the numbers that they are given
    assert {node.input_value(0).get_node().get_type_name() for node in inside} <= passing
    for node in quantisers(model):
        # The input of the first layer is quantised too; the other quantisers are between layers.
        source = node.input_value(0).get_node()
        assert source.get_friendly_name() in known or {read.get_type_name() for read in readers(node)} == {
            "Convolution"
        }
        assert all(read.get_friendly_name() in known or read.get_type_name() == "ShapeOf" for read in readers(node))
    ours = rcnn.load(tmp_path / "net.xml")
    assert isinstance(ours.runtime, OpenVinoRuntime)
    assert ours.runtime.own
    assert ours.runtime.metadata.int8 == found
    assert rcnn.val(ours, data).values[found.metric].overall == pytest.approx(found.int8)
    other = OpenVinoRuntime(tmp_path / "net.xml", own=False)  # passes the checks of files from elsewhere
    batch = ours.preprocessor.collate([ours.preprocessor.resize(PICTURES[2])], [PICTURES[2].shape[:2]])
    one, two = ours.runtime.execute(batch).proposals, other.execute(batch).proposals
    assert one is not None
    assert two is not None
    assert torch.equal(one.boxes, two.boxes)
    with pytest.raises(SettingsError, match=r"net\.xml already exists"):
        rcnn.export_int8(detector, tmp_path / "net.xml", data)


def test_a_file_that_loses_too_much_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, PYRAMID)
    detector = detector_of(*KINDS[PYRAMID])
    data = labelled(detector, tmp_path / "data")
    scores, left, told = iter([0.9, 0.85, 0.88]), list[tuple[str, ...]](), list[str]()
    monkeypatch.setattr(int8, "score", lambda *_: next(scores))
    monkeypatch.setattr(int8, "quantise", lambda *words: left.append(words[2]) or quantise(*words))
    with pytest.raises(
        ExportError, match=r"net\.xml was not written: ap is 0\.8800 instead of 0\.9000 on 4 .* float32"
    ):
        rcnn.export_int8(detector, tmp_path / "net.xml", data, tell=told.append)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert left[0] == ()
    assert left[1]
    assert any(text.startswith(f"quantising again, with {len(left[1])} convolution") for text in told)

    scores = iter([0.9, 0.85, 0.895])
    found = rcnn.export_int8(detector, tmp_path / "net.xml", data)
    assert found.in_float == left[1]
    model = packages.openvino_core().read_model(tmp_path / "net.xml")
    kept = [node for node in model.get_ops() if node.get_friendly_name() in found.in_float]
    assert len(kept) == len(found.in_float)
    assert all(node.input_value(1).get_node().get_type_name() == "Constant" for node in kept)


def test_an_untrained_detector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, PYRAMID)
    detector = detector_of(*KINDS[PYRAMID])
    data = labelled(detector, tmp_path / "data")
    monkeypatch.setattr(int8, "score", lambda *_: 0.004)
    with pytest.raises(ExportError, match=r"without quantising, the detector has ap=0\.004 on the 4 validation images"):
        rcnn.export_int8(detector, tmp_path / "net.xml", data)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_cannot_work_is_refused_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = detector_of("tiny-fpn")
    monkeypatch.setattr(graph_files, "to_onnx", lambda *_: pytest.fail("the export began"))
    data = labelled(detector, tmp_path / "data", train=19)
    for name, changes, message in (
        ("net.onnx", {}, r"int8 is for OpenVINO: the name must end in \.xml"),
        ("net.xml", {"max_drop": 1.5}, r"max_drop=1\.5: give a number from 0 to 1"),
        ("net.xml", {"max_drop": float("nan")}, r"max_drop=nan: give a number from 0 to 1"),
        ("net.xml", {"size": (50, 64)}, r"both sides must be multiples of 32"),
    ):
        with pytest.raises(SettingsError, match=message):
            rcnn.export_int8(detector, tmp_path / name, data, **changes)
    with pytest.raises(DataError, match=r"has 19 training images, .* at least 20"):
        rcnn.export_int8(detector, tmp_path / "net.xml", data)
    with pytest.raises(DataError, match="nowhere"):
        rcnn.export_int8(detector, tmp_path / "net.xml", tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(
        UnavailableError, match=r"nncf.* can't be imported here .*; get it by: pip install 'rcnn\[int8\]'"
    ):
        rcnn.export_int8(detector, tmp_path / "net.xml", data)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=(1, 0)),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False),
        nn.Conv2d(6, 4, 1, groups=2),
    ],
    ids=["stride", "depthwise, dilated", "groups"],
)
def test_the_error_of_a_layer_is_what_the_graph_loses(layer: nn.Conv2d, tmp_path: Path) -> None:
    nn.init.normal_(layer.weight)
    with torch.no_grad():
        layer.weight[0] *= 50  # one channel of very different size
        if layer.bias is not None:
            layer.bias.zero_()  # errors are those of the convolution
    last = nn.Conv2d(layer.out_channels, layer.out_channels, 1, bias=False)  # stays in float32
    nn.init.dirac_(last.weight)
    net = nn.Sequential(layer, last).requires_grad_(False)
    example = torch.randn(1, 6, 9, 12)
    file, openvino = tmp_path / "net.onnx", packages.openvino()
    torch.onnx.export(net, (example,), file, dynamo=True, input_names=["images"], external_data=False, verbose=False)
    plain, quantised = tmp_path / "plain.xml", tmp_path / "int8.xml"
    openvino.save_model(openvino.convert_model(file), plain, compress_to_fp16=False)
    inputs = [{"images": torch.randn(1, 6, 9, 12).numpy()} for _ in range(20)]
    openvino.save_model(quantise(plain, inputs), quantised, compress_to_fp16=False)
    core, lost, total = packages.openvino_core(), 0.0, 0.0
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    one, two = (core.compile_model(core.read_model(path), "CPU", options) for path in (plain, quantised))
    for sample in inputs[:5]:
        expected, found = (np.asarray(compiled(sample)[0], np.float64) for compiled in (one, two))
        lost, total = lost + np.square(found - expected).sum(), total + np.square(expected).sum()
    ((_, error),) = layer_errors(plain, quantised, inputs[:5]).items()
    assert error == pytest.approx(lost / total, rel=0.05)
    assert error > 0


def test_the_worst_convolutions_are_sensitive() -> None:
    errors = dict(zip("abcdefgh", (0.5, 0.1, 0.05, 0.02, 0.011, 0.0101, 0.01, 0), strict=True))
    assert int8.sensitive(errors) == tuple("abcdef")
    assert int8.sensitive(dict.fromkeys("abcdefgh", 0.001)) == tuple("abcde")
    assert int8.sensitive({"a": 0.0}) == ("a",)


def test_durations_and_scores_in_words() -> None:
    assert [int8.about(seconds) for seconds in (12.4, 89, 100, 600)] == [
        "about 12 seconds",
        "about 89 seconds",
        "about 2 minutes",
        "about 10 minutes",
    ]
    found = Quantised(metric="ap", float32=0.61314, int8=0.6077, scored=87, calibrated=205)
    assert str(found) == "ap is 0.6077 instead of 0.6131 on 87 validation images"
    assert found.drop == pytest.approx(0.00544)


def test_the_remark_depends_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for amx, vnni, expected in (
        (True, True, "has AMX"),
        (False, True, None),
        (False, False, "no instructions for int8"),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda vnni=vnni: vnni)
        remark = int8.cpu_remark()
        assert (remark is None) if expected is None else expected in str(remark)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert int8.cpu_remark() is None


def test_windows_of_large_images_are_calibrated(tmp_path: Path) -> None:
    detector = detector_of("tiny-fpn")
    settings = override(detector.settings, {"predict": {"tile": 64}})
    tiled = Detector(detector.model, settings, NAMES, device="cpu", threshold=0.0)
    data = rcnn.open_dataset(labelled(detector, tmp_path / "data"), "train")
    calibration = int8.Calibration(tiled, data)
    first = next(iter(calibration))
    assert len(calibration) > len(data)
    assert max(first["images"].shape[2:]) <= 128
