import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

from rcnn.detector import Detector
from rcnn.weights.file import save_weights
from rcnn.weights.packaged import PACKAGED

from .conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def told(weights: Path, tmp_path: Path) -> Path:
    """The detector of the other tests with everything that can be told of it, in half precision."""
    source = Detector.load(weights, "cpu")
    detector = Detector(
        source.model,
        source.settings,
        ("circle", "square"),
        category_ids=(7, 3),
        threshold=0.625,
        summary={"epoch": 4, "ap": 0.5},
        licence="CC0-1.0",
        device="cpu",
    )
    detector.save(tmp_path / "told.safetensors", half=True)
    return tmp_path / "told.safetensors"


def test_a_detector_says_all_of_itself(run: Run, told: Path) -> None:
    outcome = run("inspect", told)
    assert outcome.code == 0, outcome.err
    for text in (
        "told.safetensors: a detector of 2 classes",
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


def test_json_has_it_too(run: Run, told: Path) -> None:
    document = run("inspect", told, "--json").json()
    assert document["kind"] == "detector"
    assert document["classes"][0] == {"label": 0, "name": "circle", "id": 7}
    assert document["settings"]["preprocess"]["short"] == 64
    assert document["settings"]["anchors"]["ratios"] == [0.5, 1.0, 2.0]
    assert (document["threshold"], document["licence"], document["types"]) == (
        0.625,
        "CC0-1.0",
        ["float16"],
    )
    assert document["bytes"] == told.stat().st_size
    model = Detector.load(told, "cpu").model
    norms = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(("weight", "bias")))
    assert document["parameters"] == sum(parameter.numel() for parameter in model.parameters()) + norms


def test_a_packaged_detector_is_known_by_name(run: Run, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", told)
    assert "a detector of 2 classes" in run("inspect", "blood-cells").out


def test_a_checkpoint_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "exp-1/checkpoints").mkdir(parents=True)
    path = tmp_path / "exp-1/checkpoints/step-3.safetensors"
    save_weights(path, {"model/x": torch.zeros(1)}, {"kind": "checkpoint"})
    outcome = run("inspect", path)
    assert outcome.code == 0
    assert f"rcnn train --resume {tmp_path / 'exp-1'}" in outcome.out


def test_foreign_weights_are_told_by_their_names(run: Run, tmp_path: Path) -> None:
    state = mobilenet_v2(weights=None).state_dict()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        outcome = run("inspect", tmp_path / name)
        assert f"{name}: a MobileNet classifier" in outcome.out
        assert f"rcnn train DATA --init {tmp_path / name}" in outcome.out
    torch.save({"rpn.head.cls_logits.weight": torch.zeros(1)}, tmp_path / "b.pth")
    document = run("inspect", tmp_path / "b.pth", "--json").json()
    assert (document["kind"], document["tensors"]) == ("torchvision", 1)
    assert f"rcnn import {tmp_path / 'b.pth'} --arch " in document["advice"]


def test_a_pickle_of_detectron2_is_told_by_its_names(run: Run, tmp_path: Path) -> None:
    import pickle

    state = {"proposal_generator.rpn_head.conv.weight": np.zeros((1, 1, 3, 3), np.float32)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "someone"}))
    outcome = run("inspect", tmp_path / "model.pkl")
    assert outcome.code == 0, outcome.err
    assert "a detector of detectron2" in outcome.out


@pytest.mark.parametrize("spelling", ["{}.weight {}.bias", "{}.0 {}.1"])
def test_arrays_of_caffe_are_told_by_their_layers(run: Run, tmp_path: Path, spelling: str) -> None:
    heads = ("rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred", "fc6", "fc7", "cls_score", "bbox_pred")

    def inspected(*layers: str) -> dict:
        names = [name for layer in layers for name in spelling.format(layer, layer).split()]
        np.savez(tmp_path / "net.npz", **dict.fromkeys(names, np.zeros((2, 3), np.float32)))
        return run("inspect", tmp_path / "net.npz", "--json").json()

    zf = [f"conv{number}" for number in range(1, 6)]
    document = inspected(*zf, *heads)
    assert (document["kind"], document["parameters"], document["types"]) == ("caffe", 24 * 6, ["float32"])
    assert document["advice"].endswith(f"rcnn import {tmp_path / 'net.npz'} --arch paper-zf")
    document = inspected(*zf, "fc6", "fc7", "fc8")
    assert document["kind"] == "backbone"
    assert document["advice"].endswith(f"rcnn train DATA --model paper-zf --init {tmp_path / 'net.npz'}")
    assert inspected("conv1")["kind"] == "unknown"


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt", ".safetensors", ".bin"])
def test_nothing_that_is_inspected_is_run(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"evil{suffix}"
    torch.save({"x": Evil(str(tmp_path / "was-run"))}, path)
    if suffix == ".pkl":
        import pickle

        path.write_bytes(pickle.dumps({"model": Evil(str(tmp_path / "was-run"))}))
    outcome = run("inspect", path)
    assert outcome.code == 4
    assert path.name in outcome.err
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.safetensors", "No such file"),
        ("page.pth", "page.pth"),
        ("none.npz", "No such file"),
        ("words.npz", "holds more than arrays of numbers, such as `conv1.weight`"),
    ],
)
def test_what_is_no_weights_is_refused_by_name(run: Run, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "page.pth").write_text(json.dumps({}))
    np.savez(tmp_path / "words.npz", **{"conv1.weight": np.array(["words"])})
    outcome = run("inspect", tmp_path / name)
    assert outcome.code == 4
    assert name in outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err
