import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnn.config import Data, override
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.data.proposals.external import NOTHING, ProposalSet
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.diagnose.why.analyse import analyse
from rcnn.errors import DataError, SettingsError
from rcnn.evaluate import Shard, evaluate, val
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.types import Truth
from rcnn.metrics.voc import voc_ap
from rcnn.presets import build, settings_of

from .test_detector import SMALL, spread


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


def test_11_point_ap_replaces_the_voc_area_and_not_coco_ap(detector: Detector, dataset: Dataset) -> None:
    area = evaluate(detector, dataset, losses=False)
    points = evaluate(detector.with_settings(["val.voc_ap=11-point"]), dataset, losses=False)
    count = len(dataset.names)
    for metrics, eleven_point in ((area, False), (points, True)):
        expected = voc_ap(metrics.truths, metrics.predictions, count, eleven_point=eleven_point)
        np.testing.assert_array_equal(metrics.voc, expected)
        assert metrics.voc_map50 == pytest.approx(np.nanmean(expected), nan_ok=True)
    one, other = area.to_row(), points.to_row()
    assert one.pop("voc_ap50") == area.voc_map50
    assert other.pop("voc07_ap50") == points.voc_map50
    np.testing.assert_equal(one, other)
    assert "VOC mAP50 (area)" in str(area)
    assert "VOC07" not in str(area)
    assert "VOC07 mAP50 (11-point)" in str(points)
    assert "(area)" not in str(points) + points._repr_html_()


def test_a_model_without_classes_has_no_11_point_ap() -> None:
    with pytest.raises(SettingsError, match="is a rule for VOC's AP, but a model that only"):
        settings_of("mobilenet-fpn", ["roi.head=none", "val.voc_ap=11-point"])
    assert settings_of("mobilenet-one-stage", ["val.voc_ap=11-point"]).val.voc_ap == "11-point"


def test_a_model_without_second_stage_is_scored_on_its_proposals(dataset: Dataset) -> None:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", [*SMALL, "roi.head=none"])
    first = Detector(build(settings, len(dataset.names)), settings, dataset.names, device="cpu")
    metrics = evaluate(first, dataset, batch=2)
    assert math.isnan(metrics.ap)
    assert metrics.losses.keys() == {"rpn_objectness", "rpn_box", "loss"}
    assert metrics.proposals.ar[-1] > 0
    assert not any(len(prediction.boxes) for prediction in metrics.predictions)


def test_processes_that_share_the_images_give_the_same_scores(detector: Detector, dataset: Dataset) -> None:
    parts: list[Any] = []
    first: list[Any] = []

    def keep(part: Any) -> list[Any]:
        parts.append(part)
        return []

    def share(item: Any) -> Any:
        first.append(item)
        return item

    whole = evaluate(detector, dataset, batch=2)
    assert evaluate(detector, dataset, batch=1, shard=Shard(1, 2, keep, lambda _: whole)) is whole
    shared = evaluate(detector, dataset, batch=1, shard=Shard(0, 2, lambda part: [part, *parts], share))
    assert len(parts[0][0].places) == 2  # of five images
    assert len(pickle.dumps(parts[0][0])) < parts[0][0].boxes.nbytes * 2 + 1000  # no object for each image or box
    assert first[0].coco is shared.coco
    assert first[0].predictions == first[0].truths == ()
    assert shared.losses == pytest.approx(whole.losses, rel=1e-5)
    assert shared.ap50 == pytest.approx(whole.ap50, nan_ok=True)
    for one, other in zip(shared.predictions, whole.predictions, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_metrics_are_computed_from_the_predictions(detector: Detector, folder: Path, dataset: Dataset) -> None:
    metrics = val(detector, folder, losses=False)
    assert metrics.losses == {}
    found = [detector.predict(record.path, score=0)[0] for record in dataset.records]
    for result, prediction in zip(found, metrics.predictions, strict=True):
        assert np.array_equal(result.boxes, prediction.boxes)
        assert np.array_equal(result.scores, prediction.scores)
    expected = coco_metrics(metrics.truths, metrics.predictions, len(dataset.names))
    assert metrics.ap == pytest.approx(expected.ap, nan_ok=True)
    assert [row["class"] for row in metrics.by_class()] == list(dataset.names)


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_a_one_stage_detector_has_an_ap_and_two_losses(dataset: Dataset, loss: str) -> None:
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", [*SMALL, "roi.head=none", "rpn.classify=classes", f"rpn.loss={loss}"])
    made = Detector(build(settings, len(dataset.names)), settings, dataset.names, device="cpu")
    spread(made)
    metrics = evaluate(made, dataset, batch=2)
    assert 0 <= metrics.ap <= 1
    assert metrics.losses.keys() == {"rpn_class", "rpn_box", "loss"}
    assert metrics.proposals.ar[-1] > 0
    found = [made.predict(record.path, score=0)[0] for record in dataset.records]
    assert all(len(one) for one in found)
    for result, prediction in zip(found, metrics.predictions, strict=True):
        assert np.array_equal(result.boxes, prediction.boxes)


def test_image_pyramids_are_scored_on_their_predictions(detector: Detector, dataset: Dataset) -> None:
    settings = override(detector.settings, {"predict": {"scales": (1.0, 0.6, 1.9)}})
    pyramid = Detector(detector.model, settings, detector.names, device="cpu")
    calls: list[tuple[int, int]] = []
    metrics = evaluate(pyramid, dataset, batch=2, progress=lambda *call: calls.append(call))
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    for record, prediction in zip(dataset.records, metrics.predictions, strict=True):
        (result,) = pyramid.predict(record.path, score=0)
        assert np.array_equal(result.boxes, prediction.boxes)
        assert np.array_equal(result.scores, prediction.scores)
    plain = evaluate(detector, dataset, batch=2)
    assert metrics.losses == plain.losses
    assert np.array_equal(metrics.proposals.ar, plain.proposals.ar)

    parts: list[Any] = []

    def keep(part: Any) -> list[Any]:
        parts.append(part)
        return []

    evaluate(pyramid, dataset, batch=1, shard=Shard(1, 2, keep, lambda _: metrics))
    shared = evaluate(pyramid, dataset, batch=1, shard=Shard(0, 2, lambda part: [part, *parts]))
    for one, other in zip(shared.predictions, metrics.predictions, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.5)])
def test_windows_are_scored_on_their_predictions(
    detector: Detector, dataset: Dataset, scales: tuple[float, ...]
) -> None:
    tiled = detector.with_settings({"predict": {"tile": 64, "scales": scales}})
    metrics = evaluate(tiled, dataset, batch=2)
    proposed = [tiled.propose(record.path, top=1000)[0] for record in dataset.records]
    for record, prediction in zip(dataset.records, metrics.predictions, strict=True):
        assert len(tiled.viewer.views(record.size)) > 1
        (result,) = tiled.predict(record.path, score=0)
        assert len(result) > detector.settings.roi.detections  # this limit is per window
        assert np.array_equal(result.boxes, prediction.boxes)
        assert np.array_equal(result.scores, prediction.scores)
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in dataset.records]
    expected = proposal_recall(truths, [(one.boxes, one.scores) for one in proposed])
    assert np.array_equal(metrics.proposals.ar, expected.ar)
    answer = analyse(tiled, dataset, batch=3)
    if len(scales) == 1:  # `why` uses only scale 1
        pairs = zip(answer.predictions, metrics.predictions, strict=True)
        assert all(np.array_equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    assert len(answer.outcomes) == sum(len(truth.labels) for truth in truths)
    few = tiled.with_settings({"predict": {"max_detections": 12}})
    assert {len(one.boxes) for one in evaluate(few, dataset, batch=2).predictions} == {12}


def test_external_proposals_are_rejected_for_windows(detector: Detector, dataset: Dataset) -> None:
    tiled = detector.with_settings(["predict.tile=64"])
    with pytest.raises(SettingsError, match=r"not for windows: add predict\.tile=off"):
        evaluate(tiled, dataset, proposals=ProposalSet([NOTHING] * len(dataset), 5))


def test_an_empty_data_set_raises(detector: Detector, dataset: Dataset) -> None:
    empty = Dataset(dataset.root, "voc", "val", dataset.names, dataset.category_ids, ())
    with pytest.raises(DataError, match="the val split has no images to score on"):
        evaluate(detector, empty)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0: give a whole number of at least 1"),
        ({"split": "dev"}, "unknown split `dev`"),
        ({"on_fault": "ignore"}, r"`data\.on_fault`: Input should be"),
    ],
)
def test_val_rejects_the_same_arguments_as_the_command(
    detector: Detector, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        val(detector, folder, **options)
