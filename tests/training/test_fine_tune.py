"""Fine-tuning uses the network, preprocessing and weights of a detector, and the classes of the data."""

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from rcnn import open_model
from rcnn.config import override
from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.presets import build, settings_of
from rcnn.training.configure import DETECTOR_SECTIONS, choose_settings, fine_tuning_settings
from rcnn.training.init import initialise

SMALL = {"model": {"channels": 8, "norm": "train", "frozen_stages": 0}, "roi": {"hidden": 16}, "train": {"lr": 0.5}}
SIZE = {"preprocess": {"short": 96, "long": 160}, "augment": {"flip": 0.0}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a detector of cats and dogs."""
    settings = override(settings_of("mobilenet-fpn", SMALL), SIZE)
    (tmp_path / "run/weights").mkdir(parents=True)
    detector = Detector(build(settings, 2), settings, ("cat", "dog"), device="cpu")
    detector.save(tmp_path / "run/weights/best.safetensors")
    return tmp_path / "run"


def test_fine_tuning_keeps_the_network_and_has_its_own_schedule(run: Path) -> None:
    settings, theirs = fine_tuning_settings(run), Detector.load(run / "weights/best.safetensors").settings
    recipe = {"model": {"norm": "frozen", "frozen_stages": 2}}
    for section in DETECTOR_SECTIONS:
        assert getattr(settings, section) == getattr(override(theirs, recipe), section)
    assert (settings.train.epochs, settings.train.lr, settings.augment.flip) == (15, 1e-3, 0.5)
    assert settings.train.init == str(run / "weights/best.safetensors")
    changed = choose_settings("data", overrides=["train.lr=0.01"], options={"epochs": 3}, start_from=run)
    assert (changed.train.lr, changed.train.epochs, changed.preprocess.short) == (0.01, 3, 96)


def test_fine_tuning_keeps_the_weights_and_takes_the_classes_of_the_data(run: Path) -> None:
    start = initialise(fine_tuning_settings(run), ("dog", "bird", "fish"))
    theirs = Detector.load(run / "weights/best.safetensors").model.state_dict()
    ours = start.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name.startswith(("backbone", "rpn")))
    assert start.model.classes == 3
    assert any("dog" in note for note in start.notes)


def test_images_of_other_channels_adapt_the_first_convolution(run: Path) -> None:
    grey = ["preprocess.in_channels=1", "preprocess.mean=[0.5]", "preprocess.std=[0.2]"]
    start = initialise(override(fine_tuning_settings(run), grey), ("cat", "dog"))
    assert start.model.settings.preprocess.in_channels == 1
    first = next(tensor for tensor in start.model.state_dict().values() if tensor.ndim == 4)
    assert first.shape[1] == 1


def test_torchvisions_detectors_are_fine_tuned_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    monkeypatch.setattr(open_model, "fetch", lambda _: tmp_path / "theirs.pth")
    name = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
    settings = fine_tuning_settings(name)
    assert (settings.train.init, settings.preprocess.short, settings.preprocess.long) == (name, 320, 640)
    start = initialise(settings, ("screw",))
    theirs, ours = open_model.load(name, "cpu").model.state_dict(), start.model.state_dict()
    same = [key for key in ours if key.startswith(("backbone", "rpn")) and not key.endswith("num_batches_tracked")]
    assert same
    assert all(torch.equal(ours[key], theirs[key]) for key in same)


def test_a_backbone_cannot_be_fine_tuned_as_a_detector(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match=r"backbone\.pth"):
        fine_tuning_settings(tmp_path / "backbone.pth")
