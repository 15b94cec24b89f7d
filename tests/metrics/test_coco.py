import contextlib
import io
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.metrics import coco, flat
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.types import Prediction, Truth
from tests.limits import MB, in_child

from .cases import boxes_of, coarse_images, prediction_of, random_images, truth_of


def coco_rows(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]], field: str) -> list[dict[str, Any]]:
    """Return COCO's dicts of all boxes of images; the third array of each is that of a field."""
    rows = []
    for i, columns in enumerate(images):
        for (x1, y1, x2, y2), label, value in zip(*(column.tolist() for column in columns), strict=True):
            row = {"image_id": i, "category_id": label, field: value, "id": len(rows) + 1}
            rows.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    return rows


def by_faster_coco_eval(
    truths: list[Truth], predictions: list[Prediction], classes: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, K, A) of the best `top` detections, and recall (T, K, M)."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotated = (COCO(), COCO())
    truth_rows = coco_rows([(truth.boxes, truth.labels, truth.ignore.astype(int)) for truth in truths], "iscrowd")
    found_rows = coco_rows(
        [(found.boxes.astype(np.float64), found.labels, found.scores) for found in predictions], "score"
    )
    for one, rows in zip(annotated, (truth_rows, found_rows), strict=True):
        categories = [{"id": label, "name": str(label)} for label in range(classes)]
        images = [{"id": index} for index in range(len(truths))]
        one.dataset = {"images": images, "categories": categories, "annotations": rows}
        one.createIndex()
    evaluation = COCOeval_faster(*annotated, "bbox", print_function=logging.debug)
    evaluation.params.maxDets = [min(1, top), min(10, top), top]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][:, :, 0]


@given(
    seed=st.integers(0, 100_000),
    images=st.integers(1, 8),
    classes=st.integers(1, 4),
    top=st.sampled_from([1, 2, 5, 10, 12, 100]),
    limits=st.tuples(st.integers(1, 9), st.integers(1, 3)),
    make=st.sampled_from([coarse_images, random_images]),
)
def test_has_the_bits_of_faster_coco_eval(
    seed: int, images: int, classes: int, top: int, limits: tuple[int, int], make: Any
) -> None:
    truths, predictions = make(seed, images, classes)
    if all(truth.ignore.all() for truth in truths):
        return  # it fails without ground truth
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "PAIRS", limits[0])
        patch.setattr(coco, "AT_ONCE", limits[1])
        found = coco.precision_and_recall(truths, predictions, classes, np.array([min(1, top), min(10, top), top]))
    for mine, other in zip(found, by_faster_coco_eval(truths, predictions, classes, top), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_memory_does_not_hold_an_object_for_every_box() -> None:
    """50,000 boxes as COCO's dicts would take 60 MB."""
    rng = np.random.default_rng(0)
    truths = [Truth(boxes_of(rng, 7), rng.integers(0, 80, 7), np.zeros(7, bool)) for _ in range(500)]
    predictions = [Prediction(boxes_of(rng, 100), rng.random(100), rng.integers(0, 80, 100)) for _ in range(500)]
    in_child(lambda: coco_metrics(truths, predictions, 80), seconds=10, resident=30 * MB)


def by_pycocotools(truths, predictions, classes: int, top: int = 100) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt, dt = COCO(), COCO()
    shared = {"images": [{"id": i} for i in range(len(truths))], "categories": [{"id": k} for k in range(classes)]}
    with contextlib.redirect_stdout(io.StringIO()):
        for one, images, field in (
            (gt, [(truth.boxes, truth.labels, truth.ignore.astype(int)) for truth in truths], "iscrowd"),
            (dt, [(found.boxes, found.labels, found.scores) for found in predictions], "score"),
        ):
            one.dataset = {**shared, "annotations": coco_rows(images, field)}
            one.createIndex()
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.params.maxDets = [1, 10, top]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = evaluation.eval["precision"][:, :, :, 0, 2]
    means = [per_class[:, :, k][per_class[:, :, k] > -1] for k in range(classes)]
    return [*evaluation.stats[:9], *(m.mean() if len(m) else -1 for m in means)]


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_pycocotools(seed: int) -> None:
    truths, predictions = random_images(seed, images=3 if seed == 5 else 15, classes=4)
    ours = coco_metrics(truths, predictions, 4)
    values = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large]
    values += [ours.ar1, ours.ar10, ours.ar100, *ours.per_class_ap]
    theirs = np.array(by_pycocotools(truths, predictions, 4))
    np.testing.assert_allclose(np.nan_to_num(values, nan=-1), theirs, rtol=0, atol=1e-12)
    assert ours.ap > 0


def test_worked_example_of_six_detections_and_five_objects() -> None:
    right = [1, 0, 1, 1, 0, 1]
    objects = [[100 * k, 0, 100 * k + 50, 50] for k in range(5)]
    boxes = [objects[sum(right[:i])] if hit else [0, 500, 50, 550] for i, hit in enumerate(right)]
    metrics = coco_metrics([truth_of(objects)], [prediction_of(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])], 1)
    assert metrics.ap50 == pytest.approx(0.636964, abs=5e-7)
    assert metrics.ap == pytest.approx(metrics.ap50)
    assert metrics.per_class_ap50.tolist() == [metrics.ap50]
    assert metrics.counts.tolist() == [5]


def test_no_predictions_score_zero_and_absent_classes_are_nan() -> None:
    metrics = coco_metrics([truth_of([[0, 0, 9, 9]], [1])], [prediction_of([], [])], 3)
    assert (metrics.ap, metrics.ap50, metrics.ar100) == (0, 0, 0)
    assert np.isnan(metrics.ap_large)
    np.testing.assert_array_equal(metrics.per_class_ap, [np.nan, 0, np.nan])


@pytest.mark.parametrize(
    ("truths", "predictions"),
    [
        ([], []),
        ([truth_of([])], [prediction_of([[0, 0, 5, 5]], [0.5])]),
        ([truth_of([[0, 0, 5, 5]], ignore=[True])], [prediction_of([[0, 0, 5, 5]], [0.5])]),
    ],
    ids=["no images", "no truths", "crowds alone"],
)
def test_without_truth_everything_is_nan(truths, predictions) -> None:
    metrics = coco_metrics(truths, predictions, 2)
    assert np.isnan([metrics.ap, metrics.ap50, metrics.ap_small, metrics.ar100, *metrics.per_class_ap]).all()
    assert metrics.counts.tolist() == [0, 0]


def test_only_the_best_detections_of_an_image_count() -> None:
    truth = truth_of([[0, 0, 50, 50], [100, 0, 150, 50]])
    prediction = prediction_of([[300, 0, 350, 50], *truth.boxes.tolist()], [0.9, 0.8, 0.7])
    assert [coco_metrics([truth], [prediction], 1, top).ar100 for top in (1, 2, 3)] == [0, 0.5, 1]


def test_is_silent(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        coco_metrics(*random_images(1), 3)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
