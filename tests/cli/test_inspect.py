import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

from rcnn.detector import Detector
from rcnn.weights.file import save_weights
from rcnn.weights.packaged import PACKAGED

from .conftest import NAMES, Run


@pytest.fixture
def full(weights: Path, tmp_path: Path) -> Path:
    """The detector of the other tests with all metadata, in half precision."""
    source, path = Detector.load(weights, "cpu"), tmp_path / "full.safetensors"
    metadata = {"threshold": 0.625, "summary": {"epoch": 4, "ap": 0.5}, "licence": "CC0-1.0"}
    detector = Detector(source.model, source.settings, NAMES, category_ids=(7, 3), device="cpu", **metadata)
    detector.save(path, half=True)
    return path


def test_inspect_shows_all_metadata(run: Run, full: Path) -> None:
    outcome = run.ok("inspect", full)
    for text in (
        "full.safetensors: a detector of 2 classes",
        "(float16)",
        "mobilenet-fpn, backbone mobilenet, pyramid levels 3, 4, 5, 6 of 8 channels, head fc",
        "short side 64, long side at most 96, 3 channels, rgb, mean 0.485, 0.456, 0.406",
        "sizes 32; 64; 128; 256; h/w 0.5, 1, 2",
        "threshold     0.625",
        "these weights: ap 0.500, epoch 4",
        "of the data: CC0-1.0",
    ):
        assert text in outcome.out, text
    assert [line.split() for line in outcome.out.splitlines()[-2:]] == [["circle", "0", "7"], ["square", "1", "3"]]


def test_json_has_all_metadata(run: Run, full: Path) -> None:
    document = run.json("inspect", full)
    assert document["kind"] == "detector"
    assert document["classes"][0] == {"label": 0, "name": "circle", "id": 7}
    assert document["settings"]["preprocess"]["short"] == 64
    assert document["settings"]["anchors"]["ratios"] == [0.5, 1.0, 2.0]
    assert (document["threshold"], document["licence"], document["types"]) == (0.625, "CC0-1.0", ["float16"])
    assert document["bytes"] == full.stat().st_size
    model = Detector.load(full, "cpu").model
    norms = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(("weight", "bias")))
    assert document["parameters"] == sum(parameter.numel() for parameter in model.parameters()) + norms


def test_a_packaged_detector_is_known_by_name(run: Run, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", full)
    assert "a detector of 2 classes" in run("inspect", "blood-cells").out


def test_a_checkpoint_shows_how_to_resume(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "exp-1/checkpoints/step-3.safetensors"
    path.parent.mkdir(parents=True)
    save_weights(path, {"model/x": torch.zeros(1)}, {"kind": "checkpoint"})
    assert f"rcnn train --resume {tmp_path / 'exp-1'}" in run.ok("inspect", path).out


def test_foreign_weights_are_recognised_by_their_names(run: Run, tmp_path: Path) -> None:
    state = mobilenet_v2(weights=None).state_dict()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        outcome = run("inspect", tmp_path / name)
        assert f"{name}: a MobileNet classifier" in outcome.out
        assert f"rcnn train DATA --init {tmp_path / name}" in outcome.out
    torch.save({"rpn.head.cls_logits.weight": torch.zeros(1)}, tmp_path / "b.pth")
    document = run.json("inspect", tmp_path / "b.pth")
    assert (document["kind"], document["tensors"]) == ("torchvision", 1)
    assert f"rcnn import {tmp_path / 'b.pth'} --arch " in document["advice"]
    state = {"proposal_generator.rpn_head.conv.weight": np.zeros((1, 1, 3, 3), np.float32)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "someone"}))
    assert "a detector of detectron2" in run.ok("inspect", tmp_path / "model.pkl").out


@pytest.mark.parametrize("spelling", ["{}.weight {}.bias", "{}.0 {}.1"])
def test_arrays_of_caffe_are_recognised_by_their_layers(run: Run, tmp_path: Path, spelling: str) -> None:
    heads = ("rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred", "fc6", "fc7", "cls_score", "bbox_pred")

    def inspected(*layers: str) -> dict:
        names = [name for layer in layers for name in spelling.format(layer, layer).split()]
        np.savez(tmp_path / "net.npz", **dict.fromkeys(names, np.zeros((2, 3), np.float32)))
        return run.json("inspect", tmp_path / "net.npz")

    zf = [f"conv{number}" for number in range(1, 6)]
    document = inspected(*zf, *heads)
    assert (document["kind"], document["parameters"], document["types"]) == ("caffe", 24 * 6, ["float32"])
    assert document["advice"].endswith(f"rcnn import {tmp_path / 'net.npz'} --arch paper-zf")
    document = inspected(*zf, "fc6", "fc7", "fc8")
    assert document["kind"] == "backbone"
    assert document["advice"].endswith(f"rcnn train DATA --model paper-zf --init {tmp_path / 'net.npz'}")
    assert inspected("conv1")["kind"] == "unknown"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.safetensors", "No such file"),
        ("page.pth", "page.pth"),
        ("none.npz", "No such file"),
        ("words.npz", "holds more than arrays of numbers, such as `conv1.weight`"),
    ],
)
def test_files_without_weights_are_refused_by_name(run: Run, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "page.pth").write_text(json.dumps({}))
    np.savez(tmp_path / "words.npz", **{"conv1.weight": np.array(["words"])})
    outcome = run.fails(4, name, "inspect", tmp_path / name)
    assert message in outcome.err
