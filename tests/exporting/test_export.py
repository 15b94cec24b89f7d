"""Exported files give the boxes of their detectors in onnxruntime and OpenVINO, with one preset of each kind."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import rcnn
from rcnn.detector import Detector
from rcnn.errors import ExportError, SettingsError
from rcnn.exporting import export, graph_files
from rcnn.exporting.parity import SHARE, Parity, compare
from rcnn.presets import build, settings_of
from rcnn.runtime.by_suffix import RUNTIMES, runtime_of
from rcnn.runtime.graph import entries
from rcnn.runtime.onnx import OnnxRuntime
from tests.test_deploy import assert_same, printed
from tests.test_every_preset import NAMES, OVERRIDES, PICTURES, calm

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # packages warn about one another

KINDS = {
    "pyramid, float pixels": ("tiny-fpn", "preprocess.resize=interpolate"),
    "C4": ("resnet50-c4", "model.backbone=resnet18"),
    "max pooling, blue first": ("paper-zf",),
    "cascade": ("tiny-fpn", "roi.stages=3"),
    "one stage": ("paper-zf-one-stage",),
    "RPN alone": ("tiny-fpn", "roi.head=none"),
}
LONGER = ("C4", "max pooling, blue first", "one stage")
"""Kinds whose export takes longest."""
EVERY_KIND = [pytest.param(kind, marks=[pytest.mark.more] if kind in LONGER else []) for kind in KINDS]


def detector_of(preset: str, *changes: str) -> Detector:
    torch.manual_seed(0)
    settings = settings_of(preset, [*OVERRIDES, *changes])
    detector = Detector(build(settings, len(NAMES)), settings, NAMES, device="cpu", threshold=0.0)
    calm(detector)
    return detector


@cache
def program_of(kind: str) -> Any:
    """Return the result of `graph_files.to_onnx` for a kind, which takes seconds."""
    return graph_files.to_onnx(detector_of(*KINDS[kind]).model)


def use_program(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Have exports use the program of a kind."""
    program = program_of(kind)
    monkeypatch.setattr(graph_files, "to_onnx", lambda *_: program)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_file_gives_the_detectors_boxes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, kind)
    detector = detector_of(*KINDS[kind])
    parity = export.export(detector, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert parity.images == 9
    assert parity.holds
    assert parity.proposals > 30
    assert parity.detections > 50 or not detector.settings.predicts_classes
    model = graph_files.to_openvino(tmp_path / "net.onnx")
    graph_files.save_openvino(model, tmp_path / "net.xml", {"rcnn": entry(tmp_path / "net.onnx")})
    for file in ("net.onnx", "net.xml"):
        ours = rcnn.load(tmp_path / file)
        assert ours.runtime.own == (file == "net.onnx")  # type: ignore[attr-defined]
        stranger = runtime_of(tmp_path / file)(tmp_path / file, own=False)
        batch = next(export.batches(ours.preprocessor, PICTURES[2:]))
        one, other = ours.runtime.execute(batch), stranger.execute(batch)
        assert one.detections is not None
        assert other.detections is not None
        assert all(torch.equal(*parts) for parts in zip(one.detections, other.detections, strict=True))
        shown = compare(detector.runtime, ours.runtime, export.batches(ours.preprocessor, PICTURES[2:]))
        assert shown.holds, (file, shown)
        assert ours.names == NAMES
        show = Detector.predict if detector.settings.predicts_classes else Detector.propose
        for one, other in zip(show(detector, PICTURES[2:]), show(ours, PICTURES[2:]), strict=True):
            assert abs(len(one) - len(other)) <= 1
            assert len(one) >= 5
        # The programs of docs/deploy.md expect classes and uint8.
        if detector.settings.predicts_classes and detector.model.pixels.dtype == torch.uint8:
            Image.fromarray(PICTURES[2]).save(tmp_path / "picture.png")
            assert_same(printed(tmp_path / file, tmp_path / "picture.png"), detector.predict(PICTURES[2])[0])


@pytest.mark.more
@pytest.mark.parametrize(
    "changes",
    [
        ("mobilenet-fpn", "model.backbone=mobilenet_v3_large"),
        ("tiny-fpn", "roi.pool=warp", "rpn.kernel=[3,5]", "anchors.sizes=[[8,16],[16,32],[32,64],[64,128]]"),
    ],
    ids=["MobileNetV3", "RoI warp, filter pyramid"],
)
def test_exports_from_elsewhere_have_only_known_kinds_of_nodes(changes: tuple[str, ...], tmp_path: Path) -> None:
    """With the exports of the other tests, these have every kind of node of all presets and settings."""
    detector, path = detector_of(*changes), tmp_path / "net.onnx"
    graph_files.save_onnx(graph_files.to_onnx(detector.model), path, entries(detector))
    graph_files.save_openvino(graph_files.to_openvino(path), path.with_suffix(".xml"), entries(detector))
    for file in (path, path.with_suffix(".xml")):
        assert not runtime_of(file).checked(file)[2]


def entry(path: Path) -> str:
    return next(entry.value for entry in onnx.load(path).metadata_props if entry.key == "rcnn")


def test_other_programs_can_read_the_metadata_of_a_file(tmp_path: Path) -> None:
    detector = detector_of("paper-zf-one-stage")
    parity = export.export(detector, tmp_path / "net.onnx", size=(64, 96), pictures=iter(PICTURES))
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(found["names"]) == {"0": "a", "1": "b", "2": "c", "3": "d"}
    assert (json.loads(found["imgsz"]), found["stride"], found["task"]) == ([64, 96], "16", "detect")
    assert json.loads(found["rcnn"])["parity"]["agreed"] == parity.agreed > 50
    fixed = rcnn.load(tmp_path / "net.onnx")
    upright = np.ascontiguousarray(PICTURES[2].transpose(1, 0, 2))
    assert [result.size for result in fixed.predict([PICTURES[2], upright], batch=2)] == [(90, 120), (120, 90)]
    assert fixed.preprocessor.bucket((120, 90)) == (64, 96)


def test_a_file_that_disagrees_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, "one stage")
    with pytest.raises(ExportError, match=r"net.onnx was not written: of [\d,]+ detections"):
        export.export(detector_of("paper-zf-one-stage", "rpn.nms=0.3", "roi.nms=0.1"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_format_is_added_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, "one stage")
    monkeypatch.setitem(graph_files.FORMATS, ".made-up", lambda program, onnx: partial(graph_files.save_onnx, program))
    monkeypatch.setitem(RUNTIMES, ".made-up", OnnxRuntime)
    assert rcnn.export(detector_of(*KINDS["one stage"]), tmp_path / "net.made-up").holds
    assert [path.name for path in tmp_path.iterdir()] == ["net.made-up"]
    assert rcnn.load(tmp_path / "net.made-up").names == NAMES


def test_python_refuses_the_files_that_the_command_refuses(tmp_path: Path) -> None:
    detector = detector_of("tiny-fpn")
    (tmp_path / "net.onnx").touch()
    (tmp_path / "net.bin").touch()
    for name, message in (
        ("net.pth", r"the name must end in \.onnx or \.xml"),
        ("net.onnx", r"net\.onnx already exists; move it away or give another name"),
        ("net.xml", r"net\.bin already exists"),
    ):
        with pytest.raises(SettingsError, match=message):
            rcnn.export(detector, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.onnx"]


def test_an_invalid_size_is_refused_with_a_valid_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--size 100x128: both sides must be multiples of 32 .*, as in 96x128"):
        export.export(detector_of("tiny-fpn"), tmp_path / "net.onnx", size=(100, 128))
    assert not list(tmp_path.iterdir())


def test_a_precision_that_onnxruntime_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"set predict\.precision=float32, or export the detector for OpenVINO"):
        export.export(detector_of("tiny-fpn", "predict.precision=bf16"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_share_of_boxes_that_must_agree() -> None:
    assert Parity(detections=1000, agreed=995, proposals=1, proposals_agreed=1).holds
    assert not Parity(detections=1000, agreed=994, proposals=1, proposals_agreed=1).holds
    assert not Parity(proposals=1000, proposals_agreed=994).holds
    assert SHARE == 0.995
