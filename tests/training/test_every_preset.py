"""A training of every preset, and of a network of timm: data, steps, average, validation, weights."""

from pathlib import Path

import pytest

from rcnn.presets import PRESETS, settings_of
from rcnn.training.train import train
from tests.training.pieces import FEW_PROPOSALS, shapes

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SMALLER = {
    **{name: ["model.widths=[8,8,32]"] for name in ("resnet50-fpn", "resnet101-fpn", "resnet50-c4")},
    **{name: ["anchors.sizes=[[16,24,32]]"] for name in PRESETS if name.startswith("paper-")},
}
OVERRIDES = [
    *("preprocess.short=64", "preprocess.long=96", "roi.samples=16", "roi.hidden=32"),
    *(*FEW_PROPOSALS, "rpn.post_train=20", "rpn.post_test=20", "rpn.min_size=1"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("data"), 2, 1)


@pytest.mark.parametrize("model", [*PRESETS, "timm/resnet10t"])
def test_it_is_trained_and_predicts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    if model.startswith("timm/"):
        pytest.importorskip("timm")
    # Checkpoints have hundreds of megabytes, and other tests read them.
    monkeypatch.setattr("rcnn.training.trainer.save_checkpoint", lambda *_: None)
    overrides = [*OVERRIDES, *SMALLER.get(model, [])]
    options = {"epochs": 1, "batch": 2, "init": "none", "device": "cpu", "lr": 1e-4}
    if settings_of(model).train.steps:
        overrides += ["train.steps=[]", "train.step_milestones=[]", "train.batches=[]", "train.scheme=joint"]
    run = train(data, model=model, overrides=overrides, runs=tmp_path, quiet=True, **options)
    (row,) = run.rows
    assert row["step"] == 1
    assert 0 < row["train_loss"] < 1000
    assert run.detector.settings.model.preset == model
    run.detector.predict(next(data.rglob("*.jpg")), score=0.0)
    for path in (run.best, run.last):
        path.unlink()  # pytest keeps the files of a test
