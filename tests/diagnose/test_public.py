"""`rcnn.why` and `rcnn.anchors` return what their commands print, and refuse the same arguments."""

from pathlib import Path
from typing import Any

import pytest
import torch

import rcnn
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.diagnose.anchors.study import network_of, study
from rcnn.diagnose.why.analyse import analyse
from rcnn.diagnose.why.tables import report
from rcnn.errors import DataError, SettingsError, WeightsError
from rcnn.presets import build, settings_of

SMALL = ("preprocess.short=64", "preprocess.long=96")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    for seed, split in enumerate(("train", "val")):
        synthesise(folder, 3, split=split, size=(64, 96), seed=seed)
    return folder


def detector_of(folder: Path, *changes: str) -> Detector:
    torch.manual_seed(0)
    settings = settings_of("tiny-fpn", [*SMALL, *changes])
    names = open_dataset(folder, "val", settings.data).names
    return Detector(build(settings, len(names)), settings, names, device="cpu")


def test_why_is_the_report_of_the_command(folder: Path, tmp_path: Path) -> None:
    detector = detector_of(folder, "predict.score=0.2")
    path = tmp_path / "a.safetensors"
    detector.save(path)
    dataset = open_dataset(folder, "val", detector.settings.data, names=detector.names)
    expected = report(analyse(detector, dataset, score=0.2), dataset, detector.settings)
    for model in (detector, path):
        answer = rcnn.why(model, folder)
        assert repr(answer.why.outcomes) == repr(expected.why.outcomes)
        assert (answer.why.score, answer.advice) == (0.2, expected.advice)
        assert answer.mended == pytest.approx(expected.mended, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"iou": 0.05}, "iou must lie between 0.1 and 1, got 0.05"),
        ({"iou": 1.5}, "iou must lie between 0.1 and 1"),
        ({"score": -0.1}, "score must lie between 0 and 1"),
        ({"score": float("nan")}, "score must lie between 0 and 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"on_fault": "never"}, "on_fault"),
    ],
)
def test_why_refuses_what_the_command_refuses(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        rcnn.why(detector_of(folder), folder, **options)


def test_why_refuses_an_untrained_rpn_and_data_that_is_missing(folder: Path) -> None:
    with pytest.raises(SettingsError, match="the RPN of this detector is untrained"):
        rcnn.why(detector_of(folder, "train.scheme=fast-rcnn", "train.proposals=a.json"), folder)
    with pytest.raises(DataError, match="there is no `test` list"):
        rcnn.why(detector_of(folder), folder, split="test")
    with pytest.raises(TypeError, match=r"did you mean `score=`"):
        rcnn.why(detector_of(folder), folder, conf=0.5)


def test_anchors_is_the_study_of_the_command(folder: Path, tmp_path: Path) -> None:
    detector = detector_of(folder)
    path = tmp_path / "a.safetensors"
    detector.save(path)
    dataset = open_dataset(folder, "train", detector.settings.data, decode=False)
    expected = study(dataset, network_of("tiny-fpn", SMALL), sizes=1, ratios=2).to_json()
    for model, overrides in (("tiny-fpn", SMALL), (detector, ()), (detector.model, ()), (path, ())):
        assert rcnn.anchors(folder, model, overrides=overrides, sizes=1, ratios=2).to_json() == expected


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        ("tiny-fpn", {"sizes": 0}, SettingsError, "sizes must be at least 1, got 0"),
        ("tiny-fpn", {"ratios": -1}, SettingsError, "ratios must be at least 1"),
        ("tiny-fpm", {}, SettingsError, "tiny-fpn"),
        ("nowhere.safetensors", {}, WeightsError, "no such file"),
        ("tiny-fpn", {"overrides": ["anchors.size=[[3]]"]}, SettingsError, "anchors.sizes"),
    ],
)
def test_anchors_refuses_what_the_command_refuses(
    folder: Path, model: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        rcnn.anchors(folder, model, **options)


def test_overrides_are_for_a_named_model(folder: Path) -> None:
    with pytest.raises(SettingsError, match="overrides change the settings of a named model"):
        rcnn.anchors(folder, detector_of(folder), overrides=SMALL)
