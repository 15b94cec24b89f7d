import numpy as np
import pytest

from rcnn.metrics.overlap import box_iou
from rcnn.metrics.proposal_recall import IOUS, best_cover, proposal_recall

from .cases import random_images, truth_of


def reference_covers(overlap: np.ndarray) -> np.ndarray:
    """py-faster-rcnn's loop: the best-covered truth first, then it and its proposal are out."""
    overlap, covers = overlap.copy(), np.zeros(overlap.shape[1])
    for j in range(min(overlap.shape)):
        best, boxes = overlap.max(axis=0), overlap.argmax(axis=0)
        truth = best.argmax()
        covers[j] = best[truth]
        overlap[boxes[truth], :] = -1
        overlap[:, truth] = -1
    return covers


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_plain_loop_at_every_top(seed: int) -> None:
    truths, predictions = random_images(seed, images=15)
    ours = proposal_recall(truths, [(p.boxes, p.scores) for p in predictions], (1, 3, 100))
    for top, recall in zip(ours.tops, ours.recall, strict=True):
        covers = []
        for truth, prediction in zip(truths, predictions, strict=True):
            ranking = sorted(range(len(prediction.scores)), key=lambda i: (-prediction.scores[i], i))
            boxes = prediction.boxes[ranking[:top]]
            covers.extend(reference_covers(box_iou(boxes, truth.boxes[~truth.ignore])))
        np.testing.assert_allclose(recall, [(np.array(covers) >= iou).mean() for iou in IOUS])
    np.testing.assert_allclose(ours.ar, ours.recall.mean(axis=1))


def test_worked_example() -> None:
    """One proposal covers the first object by 0.8 and the second by 0.6 (IoU); a worse one the second by 0.55."""
    overlap = np.array([[0.8, 0.0], [0.6, 0.55]])
    np.testing.assert_array_equal(best_cover(overlap), [0.8, 0.55])


def test_recall_against_iou_of_one_shifted_box() -> None:
    truth = truth_of([[0, 0, 100, 100]])
    metrics = proposal_recall([truth], [(np.array([[0.0, 0, 100, 72]]), np.array([0.3]))], (10,))
    np.testing.assert_array_equal(metrics.recall[0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    assert metrics.ar.tolist() == [0.5]


def test_sizes_share_the_objects_among_them() -> None:
    boxes = [[0, 0, 31, 31], [0, 0, 32, 32], [0, 0, 95, 96], [0, 0, 96, 96]]
    proposals = (np.array(boxes[:1] + boxes[3:], np.float64), np.array([0.5, 0.6]))
    metrics = proposal_recall([truth_of(boxes)], [proposals])
    assert metrics.counts == {"small": 1, "medium": 2, "large": 1}
    assert metrics.ar_by_size["small"][0] == 1
    assert metrics.ar_by_size["medium"][0] == 0
    assert metrics.ar_by_size["large"][0] == 1
    assert metrics.ar[0] == 0.5


def test_ignored_objects_are_not_counted() -> None:
    truth = truth_of([[0, 0, 10, 10], [50, 50, 90, 90]], ignore=[True, False])
    metrics = proposal_recall([truth], [(truth.boxes[1:], np.array([0.5]))])
    assert metrics.ar.tolist() == [1, 1, 1, 1]
    assert sum(metrics.counts.values()) == 1


def test_no_proposals_recall_nothing_and_no_objects_give_nan() -> None:
    none = (np.zeros((0, 4)), np.zeros(0))
    assert proposal_recall([truth_of([[0, 0, 9, 9]])], [none]).ar.tolist() == [0, 0, 0, 0]
    assert np.isnan(proposal_recall([truth_of([])], [none]).recall).all()
    assert np.isnan(proposal_recall([], []).ar).all()
