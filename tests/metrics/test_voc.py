from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.metrics import flat
from rcnn.metrics.overlap import best_first, box_iou
from rcnn.metrics.types import Prediction, Truth
from rcnn.metrics.voc import average_precision, voc_ap
from tests.limits import MB, in_child

from .cases import boxes_of, coarse_images, prediction_of, random_images, truth_of

BOX = [0, 0, 10, 10]


def ap(truth: Truth, prediction: Prediction, **options) -> float:
    return voc_ap([truth], [prediction], 1, **options)[0]


def test_worked_example_of_six_detections_and_five_objects() -> None:
    right = np.array([1, 0, 1, 1, 0, 1], bool)
    assert average_precision(right, 5) == pytest.approx(0.633333, abs=5e-7)
    assert average_precision(right, 5, eleven_point=True) == pytest.approx(0.666667, abs=5e-7)


def test_boxes_of_the_worked_example_by_both_rules() -> None:
    """Detections of scores .9, .8, ... are right, wrong, right, right, wrong, right; one object of five is missed."""
    truth = truth_of([[20 * place, 0, 20 * place + 10, 10] for place in range(5)])
    beside = [0, 50, 10, 60]
    found = [truth.boxes[0], beside, truth.boxes[1], truth.boxes[2], beside, truth.boxes[3]]
    prediction = prediction_of(found, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert ap(truth, prediction) == pytest.approx(0.633333, abs=5e-7)
    assert ap(truth, prediction, eleven_point=True) == pytest.approx(0.666667, abs=5e-7)
    # py-faster-rcnn's `np.arange(0, 1.1, 0.1)` loses the point at 0.6, where the precision is 3/4: (7.333 - 1/12) / 11.
    assert ap(truth, prediction, eleven_point=True) != pytest.approx(0.659091, abs=5e-7)


def test_recall_of_exactly_six_tenths_reaches_its_point() -> None:
    """`np.arange(0, 1.1, 0.1)` holds 0.6000000000000001, which 3 / 5 would miss."""
    assert average_precision(np.ones(3, bool), 5, eleven_point=True) == pytest.approx(7 / 11)


def test_a_match_needs_more_than_the_threshold() -> None:
    half = prediction_of([[0, 0, 10, 5]], [0.9])
    assert ap(truth_of([BOX]), half) == 0
    assert ap(truth_of([BOX]), half, iou=0.49) == 1


def test_inclusive_corners_have_the_iou_of_continuous_boxes_a_pixel_longer() -> None:
    inclusive = prediction_of([[0, 0, 9, 4]], [0.9])
    longer = prediction_of([[0, 0, 9, 5]], [0.9])
    assert ap(truth_of([[0, 0, 9, 9]]), inclusive, offset=1) == 0
    assert ap(truth_of([[0, 0, 9, 9]]), longer, offset=1) == 1


def test_difficult_objects_are_neither_right_nor_wrong_nor_counted() -> None:
    truth = truth_of([BOX, [50, 0, 60, 10]], ignore=[True, False])
    prediction = prediction_of([BOX, BOX, [50, 0, 60, 10]], [0.9, 0.8, 0.7])
    assert ap(truth, prediction) == 1
    assert np.isnan(ap(truth_of([BOX], ignore=[True]), prediction))


def test_duplicates_are_wrong() -> None:
    truth = truth_of([BOX, [50, 0, 60, 10]])
    prediction = prediction_of([BOX, BOX, [50, 0, 60, 10]], [0.9, 0.8, 0.7])
    assert ap(truth, prediction) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_only_the_truth_of_largest_overlap_is_tried() -> None:
    """The second detection covers both objects well, but best the one that is taken."""
    truth = truth_of([[0, 0, 10, 10], [2, 0, 12, 10]])
    prediction = prediction_of([[0, 0, 10, 10], [0.5, 0, 10.5, 10]], [0.9, 0.8])
    assert ap(truth, prediction) == pytest.approx(0.5)


def test_the_better_score_takes_the_truth_whatever_its_place() -> None:
    prediction = prediction_of([[0, 0, 9, 10], BOX], [0.2, 0.9])
    assert ap(truth_of([BOX]), prediction) == 1


def test_equal_scores_keep_the_given_order() -> None:
    wrong = [80, 80, 90, 90]
    assert ap(truth_of([BOX]), prediction_of([BOX, wrong], [0.5, 0.5])) == 1
    assert ap(truth_of([BOX]), prediction_of([wrong, BOX], [0.5, 0.5])) == 0.5


def test_empty_results_and_empty_truths() -> None:
    none = prediction_of([], [])
    for eleven_point in (False, True):
        assert ap(truth_of([BOX]), none, eleven_point=eleven_point) == 0
        assert np.isnan(ap(truth_of([]), none, eleven_point=eleven_point))
        assert np.isnan(ap(truth_of([]), prediction_of([BOX], [0.5]), eleven_point=eleven_point))
    assert np.isnan(voc_ap([], [], 2)).all()


def devkit_ap(truths: list[Truth], predictions: list[Prediction], label: int) -> float:
    """The devkit's own loop, written out."""
    rows = [
        (-score, image, box)
        for image, prediction in enumerate(predictions)
        for score, box, of in zip(prediction.scores, prediction.boxes, prediction.labels, strict=True)
        if of == label
    ]
    taken, tp, fp = set(), [], []
    for _, image, box in sorted(rows, key=lambda row: row[0]):
        best, best_iou = -1, -np.inf
        for j in np.flatnonzero(truths[image].labels == label):
            gt = truths[image].boxes[j]
            w, h = min(box[2], gt[2]) - max(box[0], gt[0]), min(box[3], gt[3]) - max(box[1], gt[1])
            inside = max(w, 0) * max(h, 0)
            iou = inside / ((box[2] - box[0]) * (box[3] - box[1]) + (gt[2] - gt[0]) * (gt[3] - gt[1]) - inside)
            if iou > best_iou:
                best, best_iou = j, iou
        hit = best_iou > 0.5
        if hit and truths[image].ignore[best]:
            continue
        tp.append(hit and (image, best) not in taken)
        fp.append(not tp[-1])
        if hit:
            taken.add((image, best))
    total = sum(int(((t.labels == label) & ~t.ignore).sum()) for t in truths)
    recall = np.concatenate(([0], np.cumsum(tp) / total, [1]))
    precision = np.concatenate(([0], np.cumsum(tp) / np.maximum(np.cumsum(tp) + np.cumsum(fp), 1), [0]))
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_devkits_loop(seed: int) -> None:
    truths, predictions = random_images(seed, images=15)
    ours = voc_ap(truths, predictions, 3)
    np.testing.assert_allclose(ours, [devkit_ap(truths, predictions, k) for k in range(3)], atol=1e-12)


def ap_by_loops(
    truths: list[Truth], predictions: list[Prediction], classes: int, iou: float, eleven_point: bool, offset: float
) -> np.ndarray:
    """The AP by a loop over classes, images and detections."""
    ap = np.zeros(classes)
    for label in range(classes):
        scores, right, total = [], [], 0
        for truth, prediction in zip(truths, predictions, strict=True):
            boxes, ignore = (field[truth.labels == label] for field in (truth.boxes, truth.ignore))
            total += int((~ignore).sum())
            rows = np.flatnonzero(prediction.labels == label)
            rows, taken = rows[best_first(prediction.scores[rows])], set()
            for row, overlap in zip(rows, box_iou(prediction.boxes[rows], boxes, offset), strict=True):
                best = int(overlap.argmax()) if len(boxes) else -1
                touches = best >= 0 and overlap[best] > iou
                if touches and ignore[best]:
                    continue
                scores.append(prediction.scores[row])
                right.append(touches and best not in taken)
                if touches:
                    taken.add(best)
        ap[label] = average_precision(np.array(right, bool)[best_first(np.array(scores))], total, eleven_point)
    return ap


@given(
    seed=st.integers(0, 100_000),
    images=st.integers(0, 8),
    classes=st.integers(1, 4),
    iou=st.sampled_from([0.3, 0.5, 0.75]),
    eleven_point=st.booleans(),
    offset=st.sampled_from([0.0, 1.0]),
    limit=st.integers(1, 9),
    make=st.sampled_from([coarse_images, random_images]),
)
def test_has_the_bits_of_loops_over_classes_and_images(
    seed: int, images: int, classes: int, limit: int, make: Any, **options: Any
) -> None:
    truths, predictions = make(seed, images, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "PAIRS", limit)
        found = voc_ap(truths, predictions, classes, **options)
    np.testing.assert_array_equal(found, ap_by_loops(truths, predictions, classes, **options))


def test_the_work_does_not_grow_with_classes_times_images() -> None:
    """A loop over 365 classes of 3,000 images would take 11 s."""
    rng = np.random.default_rng(0)
    truths = [Truth(boxes_of(rng, 3), rng.integers(0, 365, 3), np.zeros(3, bool)) for _ in range(3000)]
    predictions = [Prediction(boxes_of(rng, 10), rng.random(10), rng.integers(0, 365, 10)) for _ in range(3000)]
    in_child(lambda: voc_ap(truths, predictions, 365), seconds=3, resident=30 * MB)
