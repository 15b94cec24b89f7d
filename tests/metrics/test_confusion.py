import numpy as np

from rcnn.metrics.confusion import confusion_matrix

from .cases import prediction_of, random_images, truth_of

A, B, C = [0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 110, 10]


def test_right_wrong_missed_and_invented() -> None:
    truth = truth_of([A, B, C], [0, 1, 1])
    prediction = prediction_of([A, B, [200, 0, 210, 10]], [0.9, 0.8, 0.7], [0, 0, 1])
    expected = [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(confusion_matrix([truth], [prediction], 2), expected)


def test_the_right_class_is_matched_before_a_surer_wrong_one() -> None:
    prediction = prediction_of([A, A], [0.9, 0.6], [1, 0])
    matrix = confusion_matrix([truth_of([A], [0])], [prediction], 2)
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_low_scores_are_left_out() -> None:
    matrix = confusion_matrix([truth_of([A])], [prediction_of([A], [0.49])], 1)
    np.testing.assert_array_equal(matrix, [[0, 1], [0, 0]])


def test_ignored_objects_and_their_detections_are_left_out() -> None:
    matrix = confusion_matrix([truth_of([A], ignore=[True])], [prediction_of([A, A], [0.9, 0.8])], 1)
    assert not matrix.any()


def test_every_object_is_in_its_row_once() -> None:
    truths, predictions = random_images(3, images=30)
    matrix = confusion_matrix(truths, predictions, 3, score=0.3)
    labels = np.concatenate([t.labels[~t.ignore] for t in truths])
    np.testing.assert_array_equal(matrix[:3].sum(axis=1), np.bincount(labels, minlength=3))


def test_no_images() -> None:
    assert confusion_matrix([], [], 2).tolist() == [[0, 0, 0]] * 3
