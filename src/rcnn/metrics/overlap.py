"""IoU in numpy, and greedy matching for the confusion matrix and the curves."""

import numpy as np

from rcnn.metrics.types import Prediction, Truth


def area(boxes: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Return the area (...) of boxes (..., 4). `offset` is 1 if the corners are inclusive pixels."""
    size = np.maximum(boxes[..., 2:] - boxes[..., :2] + offset, 0)
    return size[..., 0] * size[..., 1]


def intersection(a: np.ndarray, b: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Return the areas (...) of the intersections of boxes (..., 4) and (..., 4), whose shapes are broadcast."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + offset
    size = np.maximum(size, 0)
    return size[..., 0] * size[..., 1]


def pair_iou(a: np.ndarray, b: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Return the float64 IoU (...) of boxes (..., 4) and (..., 4), whose shapes are broadcast; 0 if both are empty."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    inside = intersection(a, b, offset)
    union = area(a, offset) + area(b, offset) - inside
    return inside / np.where(union > 0, union, 1)


def box_iou(a: np.ndarray, b: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Return the (A, B) float64 IoU of boxes (A, 4) and (B, 4), 0 if both boxes are empty."""
    return pair_iou(a[:, None], b[None], offset)


def share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the (A, B) share of each box of `a` inside each box of `b`, which is COCO's overlap with a crowd."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = area(a)[:, None]
    return intersection(a[:, None], b[None]) / np.where(size > 0, size, 1)


def best_first(scores: np.ndarray) -> np.ndarray:
    """Return (P,) indices in descending order of the scores (P,); ties keep their order."""
    return np.argsort(-scores, kind="stable")


def match(truth: Truth, prediction: Prediction, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Match one image as COCO does: best score first, each detection takes the free box of its class of largest IoU.

    Returns:
        (P,) int64 index of the matched ground-truth box or -1, and (P,) bool, True for unmatched detections of which at
        least the share `iou` lies inside an ignored box of their class: they count neither as correct nor as wrong.
    """
    same_class = prediction.labels[:, None] == truth.labels[None]
    matches = greedy(box_iou(prediction.boxes, truth.boxes) * (same_class & ~truth.ignore), prediction.scores, iou)
    inside = share_inside(prediction.boxes, truth.boxes) * (same_class & truth.ignore)
    return matches, (matches < 0) & (inside >= iou).any(axis=1)


def greedy(overlap: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Return (P,) int64: the column that each row of overlaps (P, G) takes, best of the scores (P,) first, else -1."""
    matches = np.full(len(scores), -1)
    if overlap.shape[1] == 0:
        return matches
    free, order = overlap.copy(), best_first(scores)
    for row in order[overlap.max(axis=1)[order] >= iou]:  # the other rows reach `iou` with no column
        column = free[row].argmax()
        if free[row, column] >= iou:
            matches[row] = column
            free[:, column] = 0
    return matches
