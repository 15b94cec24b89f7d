import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import rcnn
from rcnn.exporting import graph_files
from rcnn.presets import build, settings_of
from rcnn.weights.metadata import read_detector
from tests.cli.conftest import Outcome
from tests.exporting.test_export import detector_of

Run = Callable[..., Outcome]
DETECTRON2 = Path(__file__).parents[1] / "interop/detectron2"
ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "model.pth"
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), path)
    return path


def test_there_and_back(run: Run, checkpoint: Path) -> None:
    outcome = run("import", checkpoint, "--arch", ARCH, "--names", "cat, dog")
    assert outcome.code == 0, outcome.err
    assert "model.safetensors: " in outcome.out
    assert rcnn.load("model.safetensors").names == ("cat", "dog")
    again = run("import", checkpoint, "--arch", ARCH)
    assert again.code == 2
    assert "already exists" in again.err

    exported = run("export", "model.safetensors", "--format=torchvision")
    assert exported.code == 0, exported.err
    space: dict = {}
    exec(exported.out, space)  # builds the model, loads model-torchvision.pth strictly
    mine, before = space["model"].state_dict(), torch.load(checkpoint, weights_only=True)
    assert torch.equal(mine["backbone.body.0.0.weight"], before["backbone.body.0.0.weight"])
    assert not space["model"].training
    again = run("export", "model.safetensors", "--format=torchvision")
    assert again.code == 2
    assert "model-torchvision.pth already exists" in again.err


def test_a_network_of_the_paper_goes_to_caffe(run: Run, tmp_path: Path) -> None:
    """Its boxes' layer is written for plain deltas, as the paper's implementations do when they save."""
    settings = settings_of("paper-zf", ["roi.hidden=16"])
    detector = rcnn.Detector(build(settings, 2), settings, ("cat", "dog"), device="cpu")
    detector.save(tmp_path / "zf.safetensors")
    outcome = run("export", tmp_path / "zf.safetensors", "--format", "caffe", "--out", tmp_path / "zf.npz", "--json")
    assert outcome.json() == {"file": str(tmp_path / "zf.npz"), "names": ["__background__", "cat", "dog"]}
    reg = detector.model.fast_rcnn.predictor.reg.weight.detach().unflatten(0, (2, 4))
    with np.load(tmp_path / "zf.npz") as arrays:
        folded = torch.tensor(arrays["bbox_pred.weight"][4:]).unflatten(0, (2, 4))
    torch.testing.assert_close(folded, reg * torch.tensor(settings.roi.box_std)[:, None])
    assert "must end in .npz" in run("export", tmp_path / "zf.safetensors", "--format=caffe", "--out=a.pth").err


@pytest.mark.parametrize("preset", ["paper-zf", "paper-vgg16"])
def test_networks_of_the_paper_go_to_caffe_and_come_back(run: Run, tmp_path: Path, preset: str) -> None:
    """ZF in its full width. What the arrays can't hold is the preset's again, and that is said."""
    narrow = ["roi.hidden=24"] if preset == "paper-vgg16" else []
    settings = settings_of(preset, [*narrow, "preprocess.short=300"])
    with torch.device("meta"):  # 59 million normal numbers take their time
        model = build(settings, 2)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).remainder_(251 + index).view(parameter.shape))
    rcnn.Detector(model, settings, ("cat", "dog"), category_ids=(7, 9), device="cpu").save(tmp_path / "own.safetensors")
    assert run("export", "own.safetensors", "--format=caffe").code == 0
    arrays = tmp_path / "own-caffe.npz"
    document = run("import", arrays, "--arch", preset, "--names", "cat,dog", "--out=back.safetensors", "--json").json()
    assert document["names"] == ["cat", "dog"]
    assert "The arrays hold no settings: preprocessing, anchors, " in document["notes"][0]
    assert f"those of {preset}" in document["notes"][0]
    tensors, metadata = read_detector(tmp_path / "back.safetensors")
    expected = model.state_dict()
    assert metadata.settings == settings_of(preset, narrow)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0, msg=name)
    for file in (arrays, tmp_path / "own.safetensors", tmp_path / "back.safetensors"):  # hundreds of megabytes
        file.unlink()


@pytest.mark.parametrize(("name", "arch"), [("fpn", "faster_rcnn_R_50_FPN_1x"), ("c4", "faster_rcnn_R_50_C4_1x")])
def test_a_checkpoint_of_detectron2_finds_what_it_found_there(run: Run, tmp_path: Path, name: str, arch: str) -> None:
    outcome = run("import", DETECTRON2 / f"{name}.pkl", "--arch", arch, "--names", "a,b,c,d,e")
    assert outcome.code == 0, outcome.err
    assert "CC BY-SA 3.0" in outcome.out
    with np.load(DETECTRON2 / f"{name}.npz") as file:
        answer = dict(file)
    Image.fromarray(answer["image_bgr_chw"][::-1].transpose(1, 2, 0)).save(tmp_path / "image.png")
    height, width = answer["image_bgr_chw"].shape[1:]
    unresized = (f"preprocess.short={min(height, width)}", f"preprocess.long={max(height, width)}")
    (row,) = run("predict", f"{name}.safetensors", "image.png", "--score=0", "--json", *unresized).json()
    found = row["detections"]
    assert [detection["label"] for detection in found] == answer["classes"].tolist()
    np.testing.assert_allclose([detection["score"] for detection in found], answer["scores"], rtol=0, atol=2e-5)
    np.testing.assert_allclose([detection["box"] for detection in found], answer["boxes"], rtol=0, atol=0.01)


def held_bytes(weights: Path) -> bytes:
    """Some bytes of the weights that stand in every exported file as they are."""
    return read_detector(weights)[0]["rpn.head.conv.weight"].numpy().tobytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # packages warn of one another
def test_a_detector_leaves_python_and_its_file_is_used_alone(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command to ONNX and one to OpenVINO; the others take the file for the detector."""
    make, made = graph_files.to_onnx, list[Any]()  # the second command takes what the first made of the same network

    def to_onnx(*given: Any) -> Any:
        made.extend([] if made else [make(*given)])
        return made[0]

    monkeypatch.setattr(graph_files, "to_onnx", to_onnx)
    weights = tmp_path / "net.safetensors"
    detector_of("paper-zf-one-stage").save(weights)
    image = data / "JPEGImages/0.jpg"
    (expected,) = run("predict", weights, image, "--score=0", "--json").json()
    for name in ("net.onnx", "net.xml"):
        told = run("export", weights, "--out", name, "--images", data / "JPEGImages", "--json")
        document = told.json()
        assert document["images"] == 9
        assert document["agreed"] == document["detections"] > 0
        assert "agrees with the detector on 9 images" in told.err
        (found,) = run("predict", name, image, "--score=0", "--json").json()
        assert [box["label"] for box in found["detections"]] == [box["label"] for box in expected["detections"]]
    assert {path.suffix for path in tmp_path.glob("net.*")} == {".onnx", ".xml", ".bin", ".safetensors"}
    assert not list(tmp_path.glob(".export*"))
    for file, name in ((tmp_path / "net.onnx", "net.onnx"), (tmp_path / "net.bin", "net.xml")):
        content = bytearray(file.read_bytes())
        content[content.find(held_bytes(weights))] ^= 1
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
        (tmp_path / "copy" / file.name).write_bytes(content)
        refused = run("predict", tmp_path / "copy" / name, image)
        assert (refused.code, "its weights are not those that were written" in refused.err) == (4, True), refused.err
    again = run("export", weights, "--out", "net.onnx")
    assert (again.code, "net.onnx already exists" in again.err) == (2, True)


def test_the_list_of_architectures(run: Run) -> None:
    assert {ARCH, "faster_rcnn_R_50_FPN_3x"} <= set(run("import", "--list").out.split())


def test_what_is_missing_is_said(run: Run, checkpoint: Path, weights: Path, tmp_path: Path) -> None:
    assert "--arch NAME are needed" in run("import", checkpoint).err
    assert run("import", checkpoint, "--arch", ARCH, "--names", "cat").code == 4
    assert "must end in" in run("import", checkpoint, "--arch", ARCH, "--out", tmp_path / "a.pth").err
    refused = run("export", weights, "--out", tmp_path / "b.pth")
    assert refused.code == 4
    assert "can't hold" in refused.err
    assert not (tmp_path / "b.pth").exists()
