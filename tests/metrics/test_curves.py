import numpy as np
import pytest

from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.curves import best_threshold, precision_recall

from .cases import prediction_of, random_images, truth_of

A, B, FAR = [0, 0, 10, 10], [50, 0, 60, 10], [200, 0, 210, 10]


def test_worked_example() -> None:
    curves = precision_recall([truth_of([A, B])], [prediction_of([A, FAR, B], [0.9, 0.6, 0.3])], 1)
    at = {score: round(score * 1000) for score in (0.0, 0.3, 0.301, 0.6, 0.9, 0.901)}
    np.testing.assert_allclose(curves.precision[0, list(at.values())], [2 / 3, 2 / 3, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(curves.recall[0, list(at.values())], [1, 1, 0.5, 0.5, 0.5, 0])
    np.testing.assert_allclose(curves.f1[0, list(at.values())], [0.8, 0.8, 0.5, 0.5, 2 / 3, 0])
    np.testing.assert_allclose(curves.precision_at_recall[0, [0, 50, 51, 100]], [1, 1, 2 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(4))
def test_precision_at_recall_averages_to_cocos_ap50(seed: int) -> None:
    truths, predictions = random_images(seed, images=15)
    ours = precision_recall(truths, predictions, 3).precision_at_recall.mean(axis=1)
    np.testing.assert_allclose(ours, coco_metrics(truths, predictions, 3).per_class_ap50, atol=1e-12)


def test_true_positives_are_the_confusion_matrixs_diagonal() -> None:
    truths, predictions = random_images(2, images=20)
    curves = precision_recall(truths, predictions, 3)
    diagonal = np.diag(confusion_matrix(truths, predictions, 3, score=0.5))[:3]
    np.testing.assert_allclose(curves.recall[:, 500] * curves.counts, diagonal)


def test_best_threshold_lies_in_the_middle_of_equally_good_ones() -> None:
    curves = precision_recall([truth_of([A, B])], [prediction_of([A, B, FAR], [0.9, 0.8, 0.4])], 1)
    assert best_threshold(curves) == pytest.approx(0.6, abs=0.002)


def test_best_threshold_averages_classes_that_exist() -> None:
    truth = truth_of([A, B], [0, 2])
    prediction = prediction_of([A, B, FAR], [0.5, 0.5, 0.3], [0, 2, 1])
    curves = precision_recall([truth], [prediction], 3)
    assert np.isnan(curves.f1[1]).all()
    assert 0 < best_threshold(curves) <= 0.5


def test_the_default_is_returned_without_a_correct_detection() -> None:
    assert best_threshold(precision_recall([], [], 2)) == 0.5
    assert best_threshold(precision_recall([truth_of([])], [prediction_of([A], [0.5])], 1)) == 0.5
    assert best_threshold(precision_recall([truth_of([A])], [prediction_of([], [])], 1), default=0.3) == 0.3


def test_a_perfect_detection_of_score_one_is_kept_at_every_threshold() -> None:
    curves = precision_recall([truth_of([A])], [prediction_of([A], [1.0])], 1)
    assert (curves.f1 == 1).all()
