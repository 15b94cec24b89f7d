import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import rcnn
from rcnn import open_model
from rcnn.cli.app import main
from rcnn.cli.inspect import examine
from rcnn.detector import Detector
from rcnn.errors import SettingsError, UnavailableError, WeightsError
from rcnn.presets import build, settings_of
from rcnn.weights import backbone as backbone_weights

SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture
def detector() -> Detector:
    settings = settings_of("mobilenet-fpn", {"model": {"channels": 8}, "roi": {"hidden": 16}})
    return Detector(build(settings, 2), settings, ("cat", "dog"), device="cpu")


def test_a_file_is_loaded(detector: Detector, tmp_path: Path):
    detector.save(tmp_path / "best.safetensors")
    for path in (tmp_path / "best.safetensors", str(tmp_path / "best.safetensors")):
        loaded = rcnn.load(path, "cpu")
        assert loaded.names == ("cat", "dog")
        assert loaded.device == torch.device("cpu")


def test_a_packaged_detector_is_loaded_by_name(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detector.save(tmp_path / "packaged.safetensors")
    monkeypatch.setattr(open_model, "packaged_path", {"blood-cells": tmp_path / "packaged.safetensors"}.get)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blood-cells").mkdir()  # for example, a data set; the name takes precedence
    assert rcnn.load("blood-cells", "cpu").names == ("cat", "dog")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of fetched URLs. Each URL provides torchvision's smallest detector with random weights."""
    addresses: list[str] = []

    def fetch(url: str) -> Path:
        addresses.append(url)
        model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
        torch.save(model.state_dict(), tmp_path / "theirs.pth")
        return tmp_path / "theirs.pth"

    monkeypatch.setattr(open_model, "fetch", fetch)
    return addresses


def test_torchvisions_newest_weights_are_loaded_by_name(asked: list[str]):
    detector = rcnn.load(f"torchvision/{SMALLEST}", torch.device("cpu"))
    assert asked == [f"https://download.pytorch.org/models/{SMALLEST}-907ea3f9.pth"]
    assert detector.device == torch.device("cpu")
    assert {"person", "toothbrush"} < set(detector.names)


def test_commands_accept_names(asked: list[str], tmp_path: Path):
    Image.fromarray(np.zeros((60, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    words = ["predict", f"torchvision/{SMALLEST}", tmp_path / "photo.png", "--out", tmp_path / "out", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in (*words, "--format", "json", "roi.score=0.2")])
    assert stop.value.code == 0
    assert len(asked) == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())[0]["width"] == 80


def test_offline_errors_name_the_file_and_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=rf"Get https://.*dd69338a\.pth .* into {tmp_path}"):
        rcnn.load("torchvision/fasterrcnn_resnet50_fpn_v2", "cpu")


def test_downloads_use_https_and_have_published_digests():
    urls = [
        get_model_weights(name.removeprefix("torchvision/"))["DEFAULT"].url for name in open_model.NAMES if "/" in name
    ]
    for version in ("IMAGENET1K_V1", "DEFAULT"):
        urls += [get_model_weights(name)[version].url for name in backbone_weights._IMAGENET.values()]
    assert len(urls) == 4 + 2 * 10
    for url in urls:
        assert url.startswith("https://download.pytorch.org/models/")
        assert len(url.rsplit("-", 1)[1]) == len("0123abcd.pth"), url


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("torchvision/fasterrcnn_resnet50_fpn_v3", "torchvision/fasterrcnn_resnet50_fpn_v2"),
        ("fasterrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn"),
        ("bloodcells", "blood-cells"),
        ("Blood-Cells", "blood-cells"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(name: str, meant: str):
    with pytest.raises(WeightsError, match=rf"{name}: no such file or known name; did you mean `{meant}`\?"):
        rcnn.load(name, "cpu")


@pytest.mark.parametrize("name", ["yolo", "runs/train/exp-1/weights/best.safetensors"])
def test_an_unknown_name_gets_the_list_of_names(name: str):
    with pytest.raises(WeightsError, match=rf"{name}: no such file\. Known names are blood-cells, torchvision/faster"):
        rcnn.load(Path(name), "cpu")


def test_a_run_folder_loads_its_best_weights(detector: Detector, tmp_path: Path):
    with pytest.raises(WeightsError, match="is a folder; give a weights file, a trained run, or a name"):
        rcnn.load(tmp_path, "cpu")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(WeightsError, match="has no weights yet"):
        rcnn.load(tmp_path, "cpu")
    (tmp_path / "weights").mkdir()
    detector.save(tmp_path / "weights" / "best.safetensors")
    assert rcnn.load(tmp_path, "cpu").names == detector.names
    assert examine(tmp_path) == examine(tmp_path / "weights" / "best.safetensors")


def test_an_unavailable_device_raises_before_any_download(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(open_model, "fetch", lambda url: pytest.fail(f"fetched {url}"))
    with pytest.raises(SettingsError, match="no-such-device"):
        rcnn.load(f"torchvision/{SMALLEST}", "no-such-device")
