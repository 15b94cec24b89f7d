from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v2

from rcnn.config import Settings, override
from rcnn.detector import Detector
from rcnn.presets import build, settings_of
from rcnn.training import init
from rcnn.training.init import initialise
from rcnn.weights.backbone import UnavailableError
from rcnn.weights.file import WeightsError, save_weights

SMALL = {"model": {"channels": 16}, "roi": {"hidden": 32}}


def settings(start: str | Path, **changes: Any) -> Settings:
    return override(settings_of("mobilenet-fpn", SMALL), {"train": {"init": str(start)}, **changes})


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    torch.manual_seed(1)
    own = settings("none")
    Detector(build(own, 2), own, ("cat", "dog"), device="cpu").save(path)
    return path


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_without_weights_batch_norm_is_trained_and_nothing_frozen() -> None:
    start = initialise(settings("none", model={"frozen_stages": 2}), ("cat",))
    assert (start.settings.model.norm, start.settings.model.frozen_stages) == ("train", 0)
    assert "batch norm is trained" in start.notes[0]
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in start.model.modules())
    assert all(parameter.requires_grad for parameter in start.model.parameters())


def test_imagenet_without_a_network_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise UnavailableError("no network here")

    monkeypatch.setattr(init, "load_backbone", offline)
    start = initialise(settings("imagenet"), ("cat",))
    assert start.notes[0].startswith("no network here")
    assert (start.settings.train.init, start.settings.model.norm) == ("none", "train")


def test_a_detector_of_the_same_classes_is_taken_whole(detector: Path) -> None:
    start = initialise(settings(detector), ("cat", "dog"))
    expected = state(Detector.load(detector, "cpu").model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(start.model).items())
    assert start.settings.train.init == str(detector)


@pytest.mark.parametrize("names", [("cat", "cow", "dog"), ("dog", "cat")])
def test_other_classes_start_the_last_layers_anew_and_say_so(detector: Path, names: tuple[str, ...]) -> None:
    start = initialise(settings(detector), names)
    expected = state(Detector.load(detector, "cpu").model)
    for name, tensor in state(start.model).items():
        if not name.startswith("fast_rcnn.predictor."):
            assert torch.equal(tensor, expected[name]), name
        elif name.endswith("weight"):
            assert tensor.shape != expected[name].shape or not torch.equal(tensor, expected[name])
    assert "other classes (cat, dog; here" in start.notes[0]


def test_a_detector_of_other_layers_is_refused(detector: Path) -> None:
    with pytest.raises(WeightsError, match=r"made as `mobilenet-fpn`, with other layers .* give its --model"):
        initialise(settings(detector, roi={"hidden": 48}), ("cat", "dog"))


def test_a_backbone_in_torchvisions_names(tmp_path: Path) -> None:
    theirs = mobilenet_v2(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    start = initialise(settings(tmp_path / "mobilenet.pth"), ("cat",))
    found = start.model.backbone.trunk.state_dict()["features.3.conv.0.0.weight"]
    assert torch.equal(found, theirs.state_dict()["features.3.conv.0.0.weight"])
    assert "tensors of the backbone from" in start.notes[0]


def test_a_checkpoint_is_no_start_but_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "exp-1" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "exp-1" / "checkpoints" / "step-3.safetensors"
    save_weights(path, {"model/x": torch.zeros(1)}, {"kind": "checkpoint"})
    with pytest.raises(WeightsError, match=r"rcnn train --resume .*exp-1"):
        initialise(settings(path), ("cat",))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        initialise(settings("nowhere.safetensors"), ("cat",))
