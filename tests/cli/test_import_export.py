from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import rcnn
from rcnn.presets import build, settings_of

from .conftest import Outcome

Run = Callable[..., Outcome]
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
    assert "is there already" in again.err

    exported = run("export", "model.safetensors")
    assert exported.code == 0, exported.err
    space: dict = {}
    exec(exported.out, space)  # builds the model, loads model-torchvision.pth strictly
    mine, before = space["model"].state_dict(), torch.load(checkpoint, weights_only=True)
    assert torch.equal(mine["backbone.body.0.0.weight"], before["backbone.body.0.0.weight"])
    assert not space["model"].training
    again = run("export", "model.safetensors")
    assert again.code == 2
    assert "model-torchvision.pth is there already" in again.err


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
