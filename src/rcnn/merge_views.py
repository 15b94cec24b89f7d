"""Pool the detections of all views of a picture: scales of an image pyramid, windows of a large picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from rcnn.config import Settings
from rcnn.images.batch import Size
from rcnn.images.views import View, Viewer
from rcnn.model.suppress import Suppression, Suppressor
from rcnn.result import Result

COVERED = 0.5
"""A cut box is dropped if a whole one of its class covers more than this share of it."""


class Pooled(NamedTuple):
    """The result of a picture, and which of its boxes (n,) bool are cut by an inner edge of their window."""

    result: Result
    cut: np.ndarray


class Pooler:
    """Pools the results of the views of pictures, by the settings of a detector.

    Args:
        viewer: that decided on the views.
        settings: `roi.detections` and `predict.max_detections` are read.
        suppression: of the detector.

    Attributes:
        remarks: what a person should know of the pictures so far: kind -> a sentence about the first of that kind.
    """

    def __init__(self, viewer: Viewer, settings: Settings, suppression: Suppression) -> None:
        self._viewer, self._settings, self._suppression = viewer, settings, suppression
        self.remarks: dict[str, str] = {}

    def detections(self, parts: Sequence[Result], views: Sequence[View], size: Size, least: float) -> Result:
        """Pool the detections of one picture; a cut box with a score of `least` is remarked on. See `pool`."""
        self._remark("size", self._viewer.remark(size))
        roi, tiled = self._settings.roi, self._viewer.windowed(size)
        max_output = self._settings.predict.max_detections if tiled else roi.detections
        pooled, cut = pool(parts, views, size, self._suppression.detections, max_output)
        if (cut & (pooled.scores >= np.float32(least))).any():
            self._remark("cut", self._viewer.cut_remark)
        return pooled

    def proposals(self, parts: Sequence[Result], views: Sequence[View], size: Size) -> Result:
        """Pool the proposals of one picture, all of them."""
        self._remark("size", self._viewer.remark(size))
        return pool(parts, views, size, self._suppression.proposals).result

    def _remark(self, kind: str, text: str | None) -> None:
        if text is not None:
            self.remarks.setdefault(kind, text)


def pool(
    parts: Sequence[Result], views: Sequence[View], size: Size, suppress: Suppressor, max_output: int | None = None
) -> Pooled:
    """Pool the results of one picture's views into one, in pixels of its file, best first.

    Whole boxes are suppressed within classes. A box that an inner edge of its window cuts stays unless a whole one of
    its class covers more than half of it; those that stay are suppressed among themselves. Of equal scores the earlier
    view goes first. The boxes of a single view are left as they are: the network has suppressed them already.

    Args:
        parts: a result for each view, in pixels of its window.
        views: of the picture.
        size: (height, width) of the picture's file.
        suppress: chooses the boxes within classes.
        max_output: largest number of boxes that are kept; None: all.
    """
    boxes = [view.to_file(part.boxes) for part, view in zip(parts, views, strict=True)]
    first = replace(parts[0], boxes=boxes[0], size=size)
    if len(parts) == 1:
        return Pooled(first, np.zeros(len(first), bool))
    cut = [view.is_cut(inner, size) for inner, view in zip(boxes, views, strict=True)]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("scores", "labels", *(() if first.features is None else ("features",)))
    }
    columns["boxes"] = np.concatenate(boxes)
    boxes_of_all, scores, labels = (columns[name] for name in ("boxes", "scores", "labels"))
    rows, columns["scores"] = kept_rows(boxes_of_all, scores, labels, np.concatenate(cut), suppress)
    rows = rows[:max_output]
    pooled = replace(first, **{name: column[rows] for name, column in columns.items()})
    return Pooled(pooled, np.concatenate(cut)[rows])


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
        """Return those of some rows that suppression leaves, and set their scores."""
        if not len(rows):
            return rows
        box, score, label = (torch.from_numpy(column[rows])[None] for column in (boxes, scores, labels))
        index, score, valid = suppress(box, score, label, torch.ones_like(label, dtype=torch.bool), len(rows))
        left = rows[index[valid].numpy()]
        new_scores[left] = score[valid].numpy()
        return left

    rows = np.arange(len(boxes))
    whole, parts = suppressed(rows[~cut]), rows[cut]
    left = np.sort(np.concatenate((whole, suppressed(parts[~_covered(parts, whole, boxes, labels)]))))
    return left[np.argsort(-new_scores[left], kind="stable")], new_scores


def _covered(parts: np.ndarray, whole: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the rows `parts` are covered by one of the rows `whole` of their class."""
    covered = np.zeros(len(parts), bool)
    boxes = boxes.astype(np.float64)
    for label in np.unique(labels[parts]).tolist():
        over = boxes[whole[labels[whole] == label]]
        over = over[np.argsort(over[:, 0])]
        widest = (over[:, 2] - over[:, 0]).max(initial=0)
        for at in np.flatnonzero(labels[parts] == label).tolist():
            box = boxes[parts[at]]
            first, last = np.searchsorted(over[:, 0], (box[0] - widest, box[2])).tolist()  # no others touch the box
            near = over[first:last]
            sides = np.minimum(near[:, 2:], box[2:]) - np.maximum(near[:, :2], box[:2])
            covered[at] = (sides.clip(min=0).prod(axis=1) > COVERED * (box[2:] - box[:2]).prod()).any()
    return covered
