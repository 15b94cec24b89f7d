"""Labels that detections contradict are found, each once, and those that a detection fits are never doubted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.diagnose.label_errors import (
    FITS,
    KINDS,
    NEAR,
    Suggestion,
    apply_suggestions,
    find_suggestions,
    question,
)
from rcnn.metrics.overlap import box_iou
from rcnn.metrics.types import Prediction, Truth

NAMES = ("disc", "square")
HERE, ELSEWHERE = [10.0, 10, 30, 30], [60.0, 60, 80, 80]
SHIFTED = [10.0, 20, 30, 40]
"""IoU of a third with `HERE`."""


def truth_of(*objects: tuple[list[float], int], ignore: bool = False) -> Truth:
    boxes = np.array([box for box, _ in objects], np.float64).reshape(-1, 4)
    return Truth(boxes, np.array([label for _, label in objects], np.int64), np.full(len(objects), ignore))


def prediction_of(*detections: tuple[list[float], int, float]) -> Prediction:
    boxes = np.array([box for box, _, _ in detections], np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in detections], np.float32)
    return Prediction(boxes, scores, np.array([label for _, label, _ in detections], np.int64))


def suggestions(truth: Truth, prediction: Prediction, score: float = 0.5) -> list[Suggestion]:
    return find_suggestions([truth], [prediction], len(NAMES), score)


@pytest.mark.parametrize(
    ("truth", "detection", "kind", "text"),
    [
        (truth_of((ELSEWHERE, 0)), (HERE, 0, 0.9), "missing_label", "Disc without a label?"),
        (truth_of((HERE, 1)), (HERE, 0, 0.9), "wrong_class", "Disc instead of square?"),
        (truth_of((SHIFTED, 0)), (HERE, 0, 0.9), "bad_box", "Another box for disc?"),
    ],
)
def test_a_detection_that_contradicts_a_label_asks_a_question(
    truth: Truth, detection: tuple[list[float], int, float], kind: str, text: str
) -> None:
    found = suggestions(truth, prediction_of(detection))
    (one,) = [suggestion for suggestion in found if suggestion.detection == 0]
    assert (one.kind, one.label, one.box.tolist()) == (kind, 0, HERE)
    assert question(one, truth, NAMES) == text
    assert not [one for one in suggestions(truth, prediction_of(detection), 0.95) if one.detection == 0]


def test_a_label_without_any_detection_may_have_no_object() -> None:
    truths = [truth_of((HERE, 1)), truth_of((HERE, 1)), truth_of((HERE, 1), (ELSEWHERE, 0))]
    predictions = [prediction_of((HERE, 1, 0.9)), prediction_of((HERE, 1, 0.9)), prediction_of((HERE, 1, 0.9))]
    truths.append(truth_of((HERE, 0)))
    predictions.append(prediction_of((HERE, 0, 0.9)))
    (one,) = find_suggestions(truths, predictions, len(NAMES), 0.5)
    assert (one.kind, one.image, one.truth, one.detection, one.box.tolist()) == ("spurious_label", 2, 1, -1, ELSEWHERE)
    assert question(one, truths[2], NAMES) == "No disc here?"


@pytest.mark.parametrize("score", [0.4, 0.6])
def test_a_label_that_a_detection_of_its_class_fits_is_not_doubted_beside_a_better_one(score: float) -> None:
    """A second detection, of another class or farther away, is no reason to doubt the label."""
    near = [13.0, 10, 33, 30]
    prediction = prediction_of((HERE, 1, 0.99), (near, 0, score), (SHIFTED, 0, 0.98))
    kinds = [one.kind for one in suggestions(truth_of((HERE, 0)), prediction)]
    assert kinds == ([] if score > 0.5 else ["wrong_class"])


def test_below_an_iou_of_03_a_label_is_missing_and_not_moved() -> None:
    far = [22.0, 10, 42, 30]
    assert box_iou(np.array([far]), np.array([HERE]))[0, 0] < NEAR
    found = suggestions(truth_of((HERE, 0)), prediction_of((far, 0, 0.9)))
    assert sorted(one.kind for one in found) == ["missing_label", "spurious_label"]


def test_crowds_and_difficult_objects_are_never_doubted() -> None:
    assert not suggestions(truth_of((HERE, 1), ignore=True), prediction_of((HERE, 0, 0.9)))


side = st.integers(0, 90)
box = st.tuples(side, side, st.integers(4, 40), st.integers(4, 40)).map(
    lambda numbers: [float(n) for n in (numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])]
)
image = st.tuples(
    st.lists(st.tuples(box, st.integers(0, 1)), max_size=6),
    st.lists(st.tuples(box, st.integers(0, 1), st.floats(0.05, 1)), max_size=8),
)


@given(st.lists(image, min_size=1, max_size=4), st.floats(0.1, 0.9))
def test_rules_of_every_suggestion(
    images: list[tuple[list[tuple[list[float], int]], list[tuple[list[float], int, float]]]], score: float
) -> None:
    truths = [truth_of(*objects) for objects, _ in images]
    predictions = [prediction_of(*detections) for _, detections in images]
    found = find_suggestions(truths, predictions, len(NAMES), score)
    detections = [(one.image, one.detection) for one in found if one.detection >= 0]
    labels = [(one.image, one.truth) for one in found if one.truth >= 0]
    assert len(detections) == len({*detections})
    assert len(labels) == len({*labels})
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        truth, prediction = truths[one.image], predictions[one.image]
        overlap = box_iou(prediction.boxes, truth.boxes)
        shown = prediction.scores >= np.float32(score)
        assert one.kind in KINDS
        assert 0 <= one.score <= 1
        if one.truth >= 0:
            own = shown & (prediction.labels == truth.labels[one.truth])
            assert not (overlap[own, one.truth] >= FITS).any()
        if one.detection >= 0:
            assert shown[one.detection]
        if one.kind == "missing_label":
            assert overlap[one.detection].max(initial=0) < NEAR


def test_accepted_suggestions_change_their_own_labels() -> None:
    truth = truth_of((HERE, 0), (ELSEWHERE, 1), (SHIFTED, 1))
    new = np.array([70.0, 10, 130, 30])
    accepted = [
        Suggestion(0, -1, "spurious_label", truth.boxes[0], 0, 0.9, 0),
        Suggestion(0, 0, "wrong_class", truth.boxes[1], 0, 0.9, 1),
        Suggestion(0, 1, "bad_box", np.array(HERE), 1, 0.9, 2),
        Suggestion(0, 2, "missing_label", new, 1, 0.9, -1),
    ]
    for order in (accepted, accepted[::-1]):
        after = apply_suggestions(truth, order, (100, 120))
        assert after.boxes.tolist() == [ELSEWHERE, HERE, [70, 10, 120, 30]]
        assert (after.labels.tolist(), after.ignore.tolist()) == ([0, 1, 1], [False] * 3)
    assert truth.labels.tolist() == [0, 1, 1]
