"""Fast R-CNN on dense sliding windows, which are computed when batches are loaded and never stored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.config import override
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.data.loading.loader import Loader
from rcnn.data.proposals.external import SlidingWindows
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.evaluate import _score, evaluate
from rcnn.model.structures import Batch
from rcnn.presets import settings_of
from rcnn.training.run import Run
from rcnn.training.settle import settle_anchors
from rcnn.training.step import backward
from rcnn.training.train import train
from tests.training.pieces import OPTIONS, assert_same, killed
from tests.training.test_fast_rcnn import FEW, WINDOWS

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
OVERRIDES = [*FEW, *WINDOWS]
COUNT = 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3)
"""Windows of an image of 64 x 96 pixels, of three ratios at strides 4 to 32."""


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted."""
    return train(data, overrides=OVERRIDES, runs=tmp_path_factory.mktemp("whole"), **OPTIONS)


def test_it_learns_and_stores_no_windows(whole: Run) -> None:
    assert {"train_roi_class", "train_roi_box", "val_roi_class", "ap"} <= whole.rows[0].keys()
    assert not any("rpn" in key for key in whole.rows[0])
    assert whole.rows[1]["train_loss"] < whole.rows[0]["train_loss"]
    assert not (whole.folder / "proposals").exists()
    assert "--proposals sliding-windows" in (whole.folder / "log.txt").read_text()


def test_a_killed_run_resumes_to_the_bit(whole: Run, data: Path, tmp_path: Path) -> None:
    with killed(step=4, saved=3):
        train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert_same(train(resume=tmp_path / "shapes-1", quiet=True), whole)


def test_a_step_uses_all_windows_of_the_augmented_images(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They cover the augmented image, and any of them may be sampled."""
    items: list[Any] = []

    def watched(state: Any, distributed: Any, item: Any, *words: Any) -> Any:
        keys = state.model.keys(item.batch, item.targets, item.seeds, item.proposals)
        assert keys.roi.shape[1] >= COUNT + item.targets.boxes.shape[1]
        assert torch.equal(keys.rpn, state.model.keys(item.batch, item.targets, item.seeds).rpn)
        items.append(item)
        return backward(state, distributed, item, *words)

    monkeypatch.setattr("rcnn.training.trainer.backward", watched)
    train(data, overrides=[*OVERRIDES, "augment.crop=0.5"], runs=tmp_path, **{**OPTIONS, "epochs": 1})
    assert items
    for item in items:
        assert item.proposals.boxes.shape[1] == COUNT
        cells = [(item.batch.sizes / stride).ceil().prod(dim=1) for stride in (4, 8, 16, 32)]
        assert torch.equal(item.proposals.valid.sum(dim=1), 3 * sum(cells).long())


def test_windows_are_dense_at_every_scale_of_a_pyramid(whole: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def watched(detector: Detector, item: Any, sums: Any) -> Any:
        counts.append(int(item.proposals.valid[0].sum()))
        found = _score(detector, item, sums)
        assert len(found[0][1]) == counts[-1]
        return found

    monkeypatch.setattr("rcnn.evaluate._score", watched)
    detector = whole.detector.with_settings({"predict": {"scales": (1, 0.5, 2)}})
    dataset = open_dataset(data, "val", detector.settings.data)
    metrics = evaluate(detector, dataset, batch=8, proposals=SlidingWindows.of(detector.model))
    assert counts == [COUNT, 3 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2), 3 * (32 * 48 + 16 * 24 + 8 * 12 + 4 * 6)]
    assert metrics.proposals.most == 1000  # more are not kept
    assert metrics.losses.keys() == {"roi_class", "roi_box", "loss"}


def test_prediction_uses_the_same_windows_as_validation(whole: Run, data: Path) -> None:
    detector = whole.detector
    windows = SlidingWindows.of(detector.model)
    dataset = open_dataset(data, "val", detector.settings.data)
    (item,) = Loader(dataset, detector.settings, training=False, batch=8, proposals=windows).epoch(0)
    seen: list[Batch] = []

    def windows_of(paths: Any, batch: Batch) -> Any:
        seen.append(batch)
        return windows.of_batch(batch)

    paths = [str(record.path) for record in dataset.records]
    found = list(detector.stream(paths, batch=8, score=0.0, proposals=windows_of))
    expected = detector.detect(item.batch, proposals=item.proposals)
    real = [result for index, result in zip(item.index.tolist(), expected, strict=True) if index >= 0]
    assert [len(result) for result in found] == [len(result) for result in real]
    assert all((one.boxes == other.boxes).all() for one, other in zip(found, real, strict=True))
    assert seen


def test_without_windows_such_a_detector_names_the_missing_option(whole: Run, data: Path) -> None:
    picture = next((data / "images").rglob("*.jpg"))
    for call in (whole.detector.predict, whole.detector.propose):
        with pytest.raises(SettingsError, match="`predict` and `val` take as --proposals sliding-windows"):
            call(picture)


def test_anchors_are_fitted_as_those_of_an_rpn(data: Path) -> None:
    settings = settings_of("tiny-fpn", [*OVERRIDES, "anchors.fit=auto"])
    train_set, _ = open_splits(data, settings.data)
    of_rpn, _ = settle_anchors(override(settings, {"train": {"scheme": "joint", "proposals": None}}), train_set)
    of_windows, _ = settle_anchors(settings, train_set)
    assert of_windows.anchors == of_rpn.anchors
    assert of_windows.anchors.fit == "off"
