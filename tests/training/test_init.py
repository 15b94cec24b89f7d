from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v2

from rcnn.config import Settings, override
from rcnn.detector import Detector
from rcnn.errors import UnavailableError, WeightsError
from rcnn.presets import PRESETS, build, settings_of
from rcnn.training.init import initialise
from rcnn.weights.file import save_weights
from rcnn.weights.packaged import PACKAGED, packaged_path
from tests.training.pieces import assert_equal

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


def test_without_weights_batch_norm_is_trained_and_nothing_frozen() -> None:
    start = initialise(settings("none", model={"frozen_stages": 2}), ("cat",))
    assert (start.settings.model.norm, start.settings.model.frozen_stages) == ("train", 0)
    assert "batch norm is trained" in start.notes[0]
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in start.model.modules())
    assert all(parameter.requires_grad for parameter in start.model.parameters())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("no network here. Put the file there.")

    monkeypatch.setattr("rcnn.training.init.load_backbone", refuse)


@pytest.mark.usefixtures("offline")
def test_without_imagenet_a_packaged_detector_of_the_same_backbone_is_the_start(
    detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", detector)
    start = initialise(settings("imagenet"), ("cell",))
    assert start.notes[0] == (
        "no network here. Put the file there. Starting from the packaged detector `blood-cells` instead"
    )
    assert any("new classes: cell" in note for note in start.notes)
    assert (start.settings.train.init, start.settings.model.norm) == ("blood-cells", "frozen")
    trunk = "backbone.trunk.features.3.conv.0.0.weight"
    assert torch.equal(start.model.state_dict()[trunk], Detector.load(detector, "cpu").model.state_dict()[trunk])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("case", ["not there", "another backbone"])
def test_random_weights_are_used_without_imagenet_and_a_fitting_packaged_detector(
    detector: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", Path("nowhere.safetensors") if case == "not there" else detector)
    preset = "mobilenet-fpn" if case == "not there" else "resnet18-fpn"
    start = initialise(override(settings_of(preset, SMALL), {"train": {"init": "imagenet"}}), ("cat",))
    assert start.notes[0].endswith("No packaged detector fits this model. Training from random weights")
    assert (start.settings.train.init, start.settings.model.norm) == ("none", "train")


@pytest.mark.parametrize("preset", [name for name in PRESETS if settings_of(name).model.backbone == "mobilenet"])
def test_offline_every_preset_of_its_backbone_starts_from_the_shipped_detector(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = initialise(settings_of(preset), ("RBC", "other"))
    assert "RCNN_OFFLINE is set" in start.notes[0]
    assert start.notes[0].endswith("Starting from the packaged detector `blood-cells` instead")
    assert start.settings.train.init == "blood-cells"
    found, shipped = start.model.state_dict(), Detector.load(packaged_path("blood-cells"), "cpu").model.state_dict()
    assert all(torch.equal(found[name], shipped[name]) for name in found if name.startswith("backbone."))
    if start.model.fast_rcnn:
        rows = (found["fast_rcnn.predictor.cls.weight"], shipped["fast_rcnn.predictor.cls.weight"])
        assert torch.equal(rows[0][0], rows[1][1])  # RBC's


def test_offline_a_preset_of_another_backbone_starts_from_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = initialise(settings_of("resnet18-fpn", SMALL), ("RBC",))
    assert start.notes[0].endswith("No packaged detector fits this model. Training from random weights")


@pytest.mark.parametrize("packaged", [True, False])
def test_all_weights_of_a_detector_of_the_same_classes_are_used(
    detector: Path, monkeypatch: pytest.MonkeyPatch, packaged: bool
) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", detector)
    init = "blood-cells" if packaged else str(detector)
    start = initialise(settings(init), ("cat", "dog"))
    assert_equal(start.model.state_dict(), Detector.load(detector, "cpu").model.state_dict())
    assert start.settings.train.init == init
    assert start.notes == (f"all weights from {init}",)


@pytest.mark.parametrize("names", [("cat", "cow", "dog"), ("dog", "cat")])
def test_other_classes_keep_the_rows_that_they_share(detector: Path, names: tuple[str, ...]) -> None:
    start = initialise(settings(detector), names)
    expected, found = Detector.load(detector, "cpu").model.state_dict(), start.model.state_dict()
    for name, tensor in found.items():
        if not name.startswith("fast_rcnn.predictor."):
            assert torch.equal(tensor, expected[name]), name
    rows, learnt = found["fast_rcnn.predictor.cls.weight"], expected["fast_rcnn.predictor.cls.weight"]
    assert torch.equal(rows[names.index("dog")], learnt[1])
    assert torch.equal(rows[-1], learnt[-1])
    assert any(note.startswith("classes that keep their weights: ") for note in start.notes)


def test_a_detector_of_another_width_is_kept_in_part(detector: Path) -> None:
    start = initialise(settings(detector, roi={"hidden": 48}), ("cat", "dog"))
    assert any("start anew: fast_rcnn.head.fc6 (32x784 there, 48x784 here)" in note for note in start.notes)


def test_a_detector_of_another_backbone_is_refused(detector: Path) -> None:
    other = override(settings_of("resnet18-fpn", SMALL), {"train": {"init": str(detector)}})
    with pytest.raises(WeightsError, match=r"made as `mobilenet-fpn`, with another backbone .* give its --model"):
        initialise(other, ("cat", "dog"))


def test_a_missing_packaged_detector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "blood-cells", Path("nowhere.safetensors"))
    with pytest.raises(
        WeightsError, match=r"`blood-cells` is not in this installation: nowhere\.safetensors is missing"
    ):
        initialise(settings("blood-cells"), ("cat",))


def test_a_backbone_in_torchvisions_names(tmp_path: Path) -> None:
    theirs = mobilenet_v2(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    start = initialise(settings(tmp_path / "mobilenet.pth"), ("cat",))
    found = start.model.backbone.trunk.state_dict()["features.3.conv.0.0.weight"]
    assert torch.equal(found, theirs.state_dict()["features.3.conv.0.0.weight"])
    assert "tensors of the backbone from" in start.notes[0]


def test_a_checkpoint_is_refused_as_initial_weights_with_the_command_to_resume(tmp_path: Path) -> None:
    (tmp_path / "exp-1" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "exp-1" / "checkpoints" / "step-3.safetensors"
    save_weights(path, {"model/x": torch.zeros(1)}, {"kind": "checkpoint"})
    with pytest.raises(WeightsError, match=r"rcnn train --resume .*exp-1"):
        initialise(settings(path), ("cat",))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        initialise(settings("nowhere.safetensors"), ("cat",))
