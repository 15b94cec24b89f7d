import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnn.config import Data
from rcnn.data.dataset import DataError, Dataset
from rcnn.data.find import open_dataset
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.evaluate import Shard, evaluate, val
from rcnn.metrics.coco import coco_metrics
from rcnn.presets import build, settings_of

from .test_detector import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    synthesise(folder, 5, split="val", size=(64, 96), seed=1)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder, "val", Data())


@pytest.fixture(scope="module")
def detector(dataset: Dataset) -> Detector:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", SMALL)
    return Detector(build(settings, len(dataset.names)), settings, dataset.names, device="cpu")


def test_a_model_without_second_stage_is_scored_by_its_proposals(dataset: Dataset) -> None:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", [*SMALL, "roi.head=none"])
    first = Detector(build(settings, len(dataset.names)), settings, dataset.names, device="cpu")
    metrics = evaluate(first, dataset, batch=2)
    assert math.isnan(metrics.ap)
    assert metrics.losses.keys() == {"rpn_objectness", "rpn_box", "loss"}
    assert metrics.proposals.ar[-1] > 0
    assert not any(len(prediction.boxes) for prediction in metrics.predictions)


class _Stopped(Exception):
    """The second process has handed its part over."""


def test_processes_that_share_the_images_score_as_one_does(detector: Detector, dataset: Dataset) -> None:
    parts: list[Any] = []

    def keep(part: Any) -> list[Any]:
        parts.append(part)
        raise _Stopped

    whole = evaluate(detector, dataset, batch=2)
    with pytest.raises(_Stopped):
        evaluate(detector, dataset, batch=1, shard=Shard(1, 2, keep))
    shared = evaluate(detector, dataset, batch=1, shard=Shard(0, 2, lambda part: [part, *parts]))
    assert len(parts[0][0]) == 2  # of five images
    assert shared.losses == pytest.approx(whole.losses, rel=1e-5)
    assert shared.ap50 == pytest.approx(whole.ap50, nan_ok=True)
    for one, other in zip(shared.predictions, whole.predictions, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_scores_are_those_of_what_is_predicted(detector: Detector, folder: Path, dataset: Dataset) -> None:
    metrics = val(detector, folder, losses=False)
    assert metrics.losses == {}
    found = [detector.predict(record.path, score=0)[0] for record in dataset.records]
    for result, prediction in zip(found, metrics.predictions, strict=True):
        assert np.array_equal(result.boxes, prediction.boxes)
        assert np.array_equal(result.scores, prediction.scores)
    expected = coco_metrics(metrics.truths, metrics.predictions, len(dataset.names))
    assert metrics.ap == pytest.approx(expected.ap, nan_ok=True)
    assert [row["class"] for row in metrics.by_class()] == list(dataset.names)


def test_no_images_are_an_error(detector: Detector, dataset: Dataset) -> None:
    empty = Dataset(dataset.root, "voc", "val", dataset.names, dataset.category_ids, ())
    with pytest.raises(DataError, match="the val split has no images to score on"):
        evaluate(detector, empty)
