"""A detector with a pyramid of filters is trained, saved, compiled and exported like every other."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import rcnn
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.exporting import export
from rcnn.model.rpn_head import FilterPyramid
from rcnn.presets import build, settings_of
from tests.test_every_preset import NAMES, OVERRIDES, PICTURES, assert_a_batch_changes_no_bit, calm
from tests.test_graphs import Program, assert_agrees, exported, operators_of, preset
from tests.test_presets import scene
from tests.training.pieces import threads, without_pictures

SIZES = "anchors.sizes=[[12,16,24],[24,32,48],[48,64,96],[96,128,192]]"
KINDS = {
    "paper-zf": ["rpn.kernel=[3,5,7]"],
    "tiny-fpn": ["rpn.kernel=[3,5,7]", SIZES],
    "paper-zf-one-stage": ["rpn.kernel=[1,3,3]"],
}


def detector_of(name: str) -> Detector:
    torch.manual_seed(0)
    settings = settings_of(name, [*OVERRIDES, *KINDS[name]])
    detector = Detector(build(settings, len(NAMES)), settings, NAMES, threshold=0.0, device="cpu")
    calm(detector)
    return detector


@pytest.mark.parametrize("name", [pytest.param("tiny-fpn", marks=pytest.mark.slow), "paper-zf", "paper-zf-one-stage"])
def test_it_is_one_graph_and_exports(name: str) -> None:
    net = preset(name, *KINDS[name], "rpn.post_test=20", "roi.hidden=64")
    with torch.no_grad():
        for parameter in net.rpn.head.parameters():
            parameter.normal_(std=0.02)
    batch, targets = scene()
    keys = net.keys(batch, targets, torch.tensor([1, 2]))
    with torch.no_grad():
        assert "nms" in operators_of(net.eval().forward, batch)
    assert "match" in operators_of(net.train().loss, batch, targets, keys)
    program = Program(net.eval())
    assert_agrees(exported(program).module(), program, (1, 4, 3), (3, 6, 3))


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_changes_no_bit_and_neither_does_a_file(name: str, tmp_path: Path) -> None:
    detector = detector_of(name)
    with threads(1):
        assert_a_batch_changes_no_bit(detector)
    detector.save(tmp_path / "net.safetensors")
    again = Detector.load(tmp_path / "net.safetensors", "cpu")
    assert again.settings == detector.settings
    assert isinstance(again.model.rpn.head, FilterPyramid)
    for one, other in zip(again.predict(PICTURES), detector.predict(PICTURES), strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
    with pytest.raises(SettingsError, match=r"rpn\.kernel: the weights are made for other layers"):
        detector.with_settings(["rpn.kernel=3"])


@pytest.mark.more
@pytest.mark.filterwarnings("ignore")  # packages warn of one another
@pytest.mark.parametrize("name", ["tiny-fpn", "paper-zf-one-stage"])
def test_a_file_of_onnx_gives_its_boxes(name: str, tmp_path: Path) -> None:
    parity = export.export(detector_of(name), tmp_path / "net.onnx")
    assert parity.holds
    assert parity.proposals > 30


@threads(1)
@without_pictures()
def test_it_is_trained_and_training_starts_from_its_weights(tmp_path: Path) -> None:
    train = partial(rcnn.train, tmp_path / "shapes", model="tiny-fpn", runs=tmp_path / "runs", quiet=True, device="cpu")
    for split, images in (("train", 4), ("val", 1)):
        synthesise(tmp_path / "shapes", images, split=split, size=(64, 96), seed=1)
    changes = ["preprocess.short=64", "preprocess.long=96", "rpn.pre_train=60", "roi.samples=16"]
    run = train(overrides=[*changes, *KINDS["tiny-fpn"]], epochs=2, batch=2)
    assert [row["step"] for row in run.rows] == [2, 4]
    assert run.detector.settings.rpn.kernel == (3, 5, 7)
    (image, *_) = sorted(tmp_path.rglob("*.jpg"))
    (found,) = rcnn.load(run.best, "cpu").predict(image, score=0.0)
    assert np.array_equal(found.boxes, run.detector.predict(image, score=0.0)[0].boxes)
    again = train(overrides=[*changes, *KINDS["tiny-fpn"]], epochs=1, batch=2, init=str(run.best))
    assert f"all weights from {run.best}" in (again.folder / "log.txt").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match="divides the sizes of each level among 2 windows"):
        train(overrides=["rpn.kernel=[3,5]"])
