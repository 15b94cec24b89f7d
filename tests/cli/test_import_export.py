import shutil
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
from tests.cli.conftest import Run
from tests.exporting.test_export import KINDS, detector_of, use_program
from tests.exporting.test_int8 import PYRAMID, labelled

DETECTRON2 = Path(__file__).parents[1] / "interop/detectron2"
ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "model.pth"
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), path)
    return path


def test_weights_of_torchvision_are_imported_and_exported(run: Run, checkpoint: Path) -> None:
    outcome = run.ok("import", checkpoint, "--arch", ARCH, "--names", "cat, dog")
    assert "model.safetensors: " in outcome.out
    assert rcnn.load("model.safetensors").names == ("cat", "dog")
    run.fails(2, "already exists", "import", checkpoint, "--arch", ARCH)

    exported = run.ok("export", "model.safetensors", "--format=torchvision")
    namespace: dict = {}
    exec(exported.out, namespace)  # builds the model, and loads model-torchvision.pth with strict names
    model, original = namespace["model"], torch.load(checkpoint, weights_only=True)
    assert torch.equal(model.state_dict()["backbone.body.0.0.weight"], original["backbone.body.0.0.weight"])
    assert not model.training
    run.fails(2, "model-torchvision.pth already exists", "export", "model.safetensors", "--format=torchvision")


def test_a_network_of_the_paper_is_exported_to_caffe(run: Run) -> None:
    """The layer of the boxes is written for unnormalised deltas, as the paper's implementations do when they save."""
    settings = settings_of("paper-zf", ["roi.hidden=16"])
    detector = rcnn.Detector(build(settings, 2), settings, ("cat", "dog"), device="cpu")
    detector.save("zf.safetensors")
    document = run.json("export", "zf.safetensors", "--format", "caffe", "--out", "zf.npz")
    assert document == {"file": "zf.npz", "names": ["__background__", "cat", "dog"]}
    reg = detector.model.fast_rcnn.predictor.reg.weight.detach().unflatten(0, (2, 4))
    with np.load("zf.npz") as arrays:
        folded = torch.tensor(arrays["bbox_pred.weight"][4:]).unflatten(0, (2, 4))
    torch.testing.assert_close(folded, reg * torch.tensor(settings.roi.box_std)[:, None])
    run.fails(2, "must end in .npz", "export", "zf.safetensors", "--format=caffe", "--out=a.pth")


@pytest.mark.parametrize("preset", ["paper-zf", "paper-vgg16"])
def test_networks_of_the_paper_are_exported_to_caffe_and_imported(run: Run, preset: str) -> None:
    """ZF at its full width. Settings that the arrays can't hold are those of the preset, with a note."""
    narrow = ["roi.hidden=24"] if preset == "paper-vgg16" else []
    settings = settings_of(preset, [*narrow, "preprocess.short=300"])
    with torch.device("meta"):  # drawing 59 million normal numbers takes long
        model = build(settings, 2)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).remainder_(251 + index).view(parameter.shape))
    rcnn.Detector(model, settings, ("cat", "dog"), category_ids=(7, 9), device="cpu").save("own.safetensors")
    run.ok("export", "own.safetensors", "--format=caffe")
    document = run.json("import", "own-caffe.npz", "--arch", preset, "--names", "cat,dog", "--out=back.safetensors")
    assert document["names"] == ["cat", "dog"]
    assert "The arrays hold no settings: preprocessing, anchors, " in document["notes"][0]
    assert f"those of {preset}" in document["notes"][0]
    tensors, metadata = read_detector(Path("back.safetensors"))
    expected = model.state_dict()
    assert metadata.settings == settings_of(preset, narrow)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0, msg=name)
    for file in ("own-caffe.npz", "own.safetensors", "back.safetensors"):  # hundreds of megabytes
        Path(file).unlink()


@pytest.mark.parametrize(("name", "arch"), [("fpn", "faster_rcnn_R_50_FPN_1x"), ("c4", "faster_rcnn_R_50_C4_1x")])
def test_a_checkpoint_of_detectron2_gives_the_same_detections(run: Run, name: str, arch: str) -> None:
    outcome = run.ok("import", DETECTRON2 / f"{name}.pkl", "--arch", arch, "--names", "a,b,c,d,e")
    assert "CC BY-SA 3.0" in outcome.out
    with np.load(DETECTRON2 / f"{name}.npz") as file:
        expected = dict(file)
    Image.fromarray(expected["image_bgr_chw"][::-1].transpose(1, 2, 0)).save("image.png")
    height, width = expected["image_bgr_chw"].shape[1:]
    unresized = (f"preprocess.short={min(height, width)}", f"preprocess.long={max(height, width)}")
    (row,) = run.json("predict", f"{name}.safetensors", "image.png", "--score=0", *unresized)
    labels, scores, boxes = ([found[key] for found in row["detections"]] for key in ("label", "score", "box"))
    assert labels == expected["classes"].tolist()
    np.testing.assert_allclose(scores, expected["scores"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(boxes, expected["boxes"], rtol=0, atol=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # packages use deprecated functions of one another
def test_a_detector_is_exported_and_its_file_is_used_alone(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command exports to ONNX and one to OpenVINO; the others use the file as the detector."""
    make, made = graph_files.to_onnx, list[Any]()  # both commands use the same ONNX model

    def to_onnx(*args: Any) -> Any:
        made.extend([] if made else [make(*args)])
        return made[0]

    monkeypatch.setattr(graph_files, "to_onnx", to_onnx)
    detector_of("paper-zf-one-stage").save("net.safetensors")
    (expected,) = run.json("predict", "net.safetensors", images / "0.jpg", "--score=0")
    for name in ("net.onnx", "net.xml"):
        outcome = run("export", "net.safetensors", "--out", name, "--images", images, "--json")
        document = outcome.json()
        assert document["images"] == 9
        assert document["agreed"] == document["detections"] > 0
        assert "agrees with the detector on 9 images" in outcome.err
        (found,) = run.json("predict", name, images / "0.jpg", "--score=0")
        assert [box["label"] for box in found["detections"]] == [box["label"] for box in expected["detections"]]
    assert {path.suffix for path in tmp_path.glob("net.*")} == {".onnx", ".xml", ".bin", ".safetensors"}
    assert not list(tmp_path.glob(".export*"))
    weights = read_detector(Path("net.safetensors"))[0]["rpn.head.conv.weight"].numpy().tobytes()
    (tmp_path / "copy").mkdir()
    for file, name in (("net.onnx", "net.onnx"), ("net.bin", "net.xml")):
        content = bytearray(Path(file).read_bytes())
        content[content.find(weights)] ^= 1  # exported files contain the bytes of the weights
        shutil.copy(name, "copy")
        Path("copy", file).write_bytes(content)
        run.fails(4, "its weights are not those that were written", "predict", f"copy/{name}", images / "0.jpg")
    run.fails(2, "net.onnx already exists", "export", "net.safetensors", "--out", "net.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_int8_is_exported_with_its_scores(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, PYRAMID)
    detector = detector_of(*KINDS[PYRAMID])
    detector.save("net.safetensors")
    data = labelled(detector, tmp_path / "data")
    outcome = run("export", "net.safetensors", "--int8", "--data", data, "--max-drop", 1, "--json")
    document = outcome.json()
    assert (document["file"], document["metric"], document["scored"]) == ("net.xml", "ap", 4)
    assert document["bytes"] == Path("net.xml").stat().st_size + Path("net.bin").stat().st_size
    for text in ("quantising with 20 images", "net.xml and net.bin: ", "ap is ", "next: rcnn predict net.xml"):
        assert text in outcome.err
    assert run.json("val", "net.xml", data)["ap"] == pytest.approx(document["int8"])
    inspected = run.json("inspect", "net.xml")
    assert inspected["exported"]["int8"]["calibrated"] == 20
    assert inspected["types"] == ["float32", "int8"]
    assert "int8: ap is " in run("inspect", "net.xml").out
    rows = run.json("benchmark", "net.safetensors", "net.xml", "--batch", 1, "--runs", 1)["engines"]
    assert [row["name"] for row in rows][-1] == "net.xml"
    assert "int8" in [row["precision"] for row in rows]


def test_what_int8_needs_is_asked_for(run: Run, data: Path, weights: Path) -> None:
    for message, *words in (
        ("--int8 takes a labelled data set, --data path/to/data; --data is missing", "--int8"),
        ("--images has no effect", "--int8", "--data", data, "--images", data),
        ("--int8 is for --format openvino, not onnx", "--int8", "--data", data, "--format", "onnx"),
        ("--int8 is for --format openvino, not caffe", "--int8", "--data", data, "--out", "net.npz"),
        ("--data and --max-drop are for --int8", "--data", data),
        ("--data and --max-drop are for --int8", "--max-drop", "0.02"),
        ("max_drop=2.0: give a number from 0 to 1", "--int8", "--data", data, "--max-drop", "2"),
    ):
        run.fails(2, message, "export", weights, *words)
    run.fails(3, "nowhere", "export", weights, "--int8", "--data", "nowhere")
    run.fails(3, "has 4 training images, and int8 takes", "export", weights, "--int8", "--data", data)
    assert not list(Path().glob("*.xml"))


def test_the_list_of_architectures(run: Run) -> None:
    assert {ARCH, "faster_rcnn_R_50_FPN_3x"} <= set(run("import", "--list").out.split())


def test_wrong_arguments_are_refused(run: Run, checkpoint: Path, weights: Path) -> None:
    run.fails(2, "--arch NAME are needed", "import", checkpoint)
    run.fails(4, "", "import", checkpoint, "--arch", ARCH, "--names", "cat")
    run.fails(2, "must end in", "import", checkpoint, "--arch", ARCH, "--out", "a.pth")
    run.fails(4, "can't hold", "export", weights, "--out", "b.pth")
    assert not Path("b.pth").exists()
