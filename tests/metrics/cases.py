"""Random images with boxes, and predictions: jittered copies, duplicates and boxes elsewhere."""

import numpy as np

from rcnn.metrics.types import Prediction, Truth


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 200, (count, 2))
    return np.concatenate(
        (low, low + rng.choice([10.0, 40.0, 150.0], (count, 1)) * rng.uniform(0.5, 1.5, (count, 2))), 1
    )


def truth_of(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None) -> Truth:
    count = len(boxes)
    return Truth(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels if labels is not None else [0] * count, np.int64),
        np.array(ignore if ignore is not None else [False] * count, bool),
    )


def prediction_of(boxes: list, scores: list[float], labels: list[int] | None = None) -> Prediction:
    return Prediction(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.array(labels if labels is not None else [0] * len(boxes), np.int64),
    )


def random_images(seed: int, images: int = 12, classes: int = 3) -> tuple[list[Truth], list[Prediction]]:
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for _ in range(images):
        count = int(rng.integers(0, 7))
        truth = Truth(boxes_of(rng, count), rng.integers(0, classes, count), rng.random(count) < 0.2)
        copies = rng.integers(0, max(count, 1), 2 * count)
        near = truth.boxes[copies] + rng.normal(0, 4, (2 * count, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        stray = boxes_of(rng, int(rng.integers(0, 5)))
        labels = np.concatenate((truth.labels[copies], rng.integers(0, classes, len(stray))))
        boxes = np.concatenate((near, stray))
        scores = np.round(rng.random(len(boxes)), 1)  # rounded, so that there are ties
        truths.append(truth)
        predictions.append(Prediction(boxes, scores, labels))
    return truths, predictions


def coarse_images(seed: int, images: int, classes: int) -> tuple[list[Truth], list[Prediction]]:
    """Return images with boxes on a coarse grid: overlaps, scores and areas tie, and lie on the thresholds."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        low = rng.integers(0, 6, (count, 2))
        return (np.concatenate((low, low + rng.integers(0, 6, (count, 2))), axis=1) * rng.choice([4, 16, 24])) * 1.0

    truths, predictions = [], []
    for _ in range(images):
        objects, found = rng.integers(0, [6, 16])
        truths.append(Truth(boxes(objects), rng.integers(0, classes, objects), rng.random(objects) < 0.3))
        copies = truths[-1].boxes[rng.integers(0, objects, found)] if objects else boxes(found)
        guesses = np.where(rng.random((found, 1)) < 0.4, copies, boxes(found)).astype(np.float32)
        predictions.append(
            Prediction(guesses, rng.choice([0.0, 0.5, 0.7, 1.0], found), rng.integers(0, classes, found))
        )
    return truths, predictions
