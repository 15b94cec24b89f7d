"""COCO's average precision and recall, computed in memory by faster-coco-eval."""

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rcnn.metrics.overlap import area
from rcnn.metrics.types import Prediction, Truth, class_counts


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """COCO's metrics, in [0, 1]; NaN if there is no ground truth that counts.

    Attributes:
        ap: mean over IoU 0.5:0.05:0.95 and classes.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of objects with a box area up to 32 x 32 px.
        ap_medium: up to 96 x 96 px.
        ap_large: above.
        ar1: recall of the best detection per class and image, mean over IoUs and classes.
        ar10: of the best 10.
        ar100: of the best `max_detections`.
        per_class_ap: (K,) mean over IoUs.
        per_class_ap50: (K,) at IoU 0.5.
        counts: (K,) int64, number of ground-truth boxes that are not ignored.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    per_class_ap: np.ndarray
    per_class_ap50: np.ndarray
    counts: np.ndarray


def coco_metrics(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, max_detections: int = 100
) -> CocoMetrics:
    """Compute COCO's box metrics of N images. Ignored boxes are COCO's crowds.

    Args:
        truths: ground truth of N images.
        predictions: detections in the same N images.
        num_classes: K.
        max_detections: number of best-scored detections that count per class and image.
    """
    counts = class_counts(truths, num_classes)
    if counts.any():
        precision, recall = _evaluate(truths, predictions, num_classes, max_detections)
    else:  # the evaluator needs at least one object
        precision, recall = np.full((10, 101, num_classes, 4, 3), -1.0), np.full((10, num_classes, 4, 3), -1.0)
    all_sizes, by_size = precision[..., 0, -1], precision[..., -1]
    return CocoMetrics(
        ap=_mean(all_sizes),
        ap50=_mean(all_sizes[0]),
        ap75=_mean(all_sizes[5]),
        ap_small=_mean(by_size[..., 1]),
        ap_medium=_mean(by_size[..., 2]),
        ap_large=_mean(by_size[..., 3]),
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, 2]),
        per_class_ap=np.array([_mean(all_sizes[:, :, label]) for label in range(num_classes)]),
        per_class_ap50=np.array([_mean(all_sizes[0, :, label]) for label in range(num_classes)]),
        counts=counts,
    )


def _evaluate(
    truths: Sequence[Truth], predictions: Sequence[Prediction], num_classes: int, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, K, A, M) and recall (T, K, A, M): IoUs, recalls, classes, areas, detections; -1: none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from faster_coco_eval import COCO, COCOeval_faster

        truth_rows = _annotations(((t.boxes, t.labels, t.ignore.astype(int)) for t in truths), "iscrowd")
        prediction_rows = _annotations(((p.boxes, p.labels, p.scores) for p in predictions), "score")
        images: list[dict[str, Any]] = [{"id": index} for index in range(len(truths))]
        categories = [{"id": label, "name": str(label)} for label in range(num_classes)]
        annotated = (COCO(), COCO())
        for coco, annotations in zip(annotated, (truth_rows, prediction_rows), strict=True):
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
        evaluation = COCOeval_faster(*annotated, "bbox", print_function=logging.getLogger(__name__).debug)
        evaluation.params.maxDets = [min(1, max_detections), min(10, max_detections), max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _annotations(images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], field: str) -> list[dict[str, Any]]:
    """Return COCO's annotations of N images from their boxes (n, 4), labels (n,) and values (n,) of a field."""
    annotations: list[dict[str, Any]] = []
    for image, (boxes, labels, values) in enumerate(images):
        boxes = boxes.astype(np.float64).reshape(-1, 4)
        xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        columns = (column.tolist() for column in (labels, values, xywh, area(boxes)))
        for label, value, bbox, size in zip(*columns, strict=True):
            row = {"image_id": image, "category_id": label, field: value, "bbox": bbox, "area": size}
            annotations.append({"id": len(annotations) + 1, **row})
    return annotations


def _mean(values: np.ndarray) -> float:
    """Return the mean without the -1 that the evaluator writes where there is no ground truth."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else float("nan")
