"""Pool the detections of all views of a picture: the scales of an image pyramid, the windows of a large picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rcnn.config import Settings
from rcnn.images.batch import Size
from rcnn.images.views import View, Viewer
from rcnn.model.suppress import Suppression, Suppressor
from rcnn.result import Result

MAX_COVERED_SHARE = 0.5
"""A cut box is dropped if a box of its class that is not cut covers more than this share of it."""


class Pooler:
    """Pools the results of the views of pictures, by the settings of a detector.

    Args:
        viewer: the viewer that chose the views.
        settings: `roi.detections` and `predict.max_detections` are read.
        suppression: of the detector.

    Attributes:
        remarks: remarks for the user about the pictures so far: kind -> a sentence about the first of that kind.
    """

    def __init__(self, viewer: Viewer, settings: Settings, suppression: Suppression) -> None:
        self._viewer, self._settings, self._suppression = viewer, settings, suppression
        self.remarks: dict[str, str] = {}

    def detections(self, parts: Sequence[Result], views: Sequence[View], size: Size, min_score: float) -> Result:
        """Pool the detections of one picture, with a remark if a box with a score of at least `min_score` is cut."""
        self._remark("size", self._viewer.remark(size))
        roi, tiled = self._settings.roi, self._viewer.windowed(size)
        max_output = self._settings.predict.max_detections if tiled else roi.detections
        pooled, cut = pool(parts, views, size, self._suppression.detections, max_output)
        if (cut & (pooled.scores >= np.float32(min_score))).any():
            self._remark("cut", self._viewer.cut_remark)
        return pooled

    def proposals(self, parts: Sequence[Result], views: Sequence[View], size: Size) -> Result:
        """Pool the proposals of one picture, all of them."""
        self._remark("size", self._viewer.remark(size))
        return pool(parts, views, size, self._suppression.proposals)[0]

    def _remark(self, kind: str, text: str | None) -> None:
        if text is not None:
            self.remarks.setdefault(kind, text)


def pool(
    parts: Sequence[Result], views: Sequence[View], size: Size, suppress: Suppressor, max_output: int | None = None
) -> tuple[Result, np.ndarray]:
    """Pool the results of one picture's views into one, in pixels of its file, best first.

    Boxes that are not cut by an inner edge of their window are suppressed within classes. A cut box stays unless one of
    these boxes of its class covers more than half of it; the cut boxes that stay are suppressed among themselves. With
    equal scores, the earlier view comes first. The boxes of a single view stay as they are, since the network has
    already suppressed them.

    Args:
        parts: a result for each view, in pixels of its window.
        views: of the picture.
        size: (height, width) of the picture's file.
        suppress: chooses the boxes within classes.
        max_output: largest number of boxes that are kept; None for all.

    Returns:
        The result, and which of its boxes are cut, (n,) bool.
    """
    boxes = [view.to_file(part.boxes) for part, view in zip(parts, views, strict=True)]
    first = replace(parts[0], boxes=boxes[0], size=size)
    if len(parts) == 1:
        return first, np.zeros(len(first), bool)
    cut = np.concatenate([view.is_cut(inner, size) for inner, view in zip(boxes, views, strict=True)])
    names = ("scores", "labels") if first.features is None else ("scores", "labels", "features")
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    columns["boxes"] = np.concatenate(boxes)
    rows, columns["scores"] = kept_rows(columns["boxes"], columns["scores"], columns["labels"], cut, suppress)
    rows = rows[:max_output]
    return replace(first, **{name: column[rows] for name, column in columns.items()}), cut[rows]


def kept_rows(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, cut: np.ndarray, suppress: Suppressor
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that `pool` keeps, best first, and the scores (n,) of all, changed where suppression does so.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,).
        cut: (n,) bool.
        suppress: chooses the boxes.
    """
    new_scores = scores.copy()

    def suppressed(rows: np.ndarray) -> np.ndarray:
        """Return the rows that survive suppression, and set their scores."""
        if not len(rows):
            return rows
        box, score, label = (torch.from_numpy(column[rows])[None] for column in (boxes, scores, labels))
        index, score, valid = suppress(box, score, label, torch.ones_like(label, dtype=torch.bool), len(rows))
        survivors = rows[index[valid].numpy()]
        new_scores[survivors] = score[valid].numpy()
        return survivors

    rows = np.arange(len(boxes))
    uncut, parts = suppressed(rows[~cut]), rows[cut]
    survivors = np.sort(np.concatenate((uncut, suppressed(parts[~_covered(parts, uncut, boxes, labels)]))))
    return survivors[np.argsort(-new_scores[survivors], kind="stable")], new_scores


def _covered(parts: np.ndarray, uncut: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (n,) bool: which of the rows `parts` are covered by one of the rows `uncut` of their class."""
    covered = np.zeros(len(parts), bool)
    boxes = boxes.astype(np.float64)
    for label in np.unique(labels[parts]).tolist():
        same_class = boxes[uncut[labels[uncut] == label]]
        same_class = same_class[np.argsort(same_class[:, 0])]
        max_width = (same_class[:, 2] - same_class[:, 0]).max(initial=0)
        for index in np.flatnonzero(labels[parts] == label).tolist():
            box = boxes[parts[index]]
            lefts = same_class[:, 0]
            first, last = np.searchsorted(lefts, (box[0] - max_width, box[2])).tolist()  # no others touch the box
            near = same_class[first:last]
            sides = np.minimum(near[:, 2:], box[2:]) - np.maximum(near[:, :2], box[:2])
            covered[index] = (sides.clip(min=0).prod(axis=1) > MAX_COVERED_SHARE * (box[2:] - box[:2]).prod()).any()
    return covered
