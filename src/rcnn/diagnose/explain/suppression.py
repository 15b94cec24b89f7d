"""What NMS leaves of the boxes that enter it, at every threshold that one may want to try."""

import numpy as np
import torch

import rcnn.ops as ops
from rcnn.config import RPN
from rcnn.diagnose.explain.follow import Walkthrough


def thresholds(nms: float) -> tuple[float, ...]:
    """0, 0.05, ..., 1 and that of the settings, in order."""
    return tuple(sorted({*(round(step * 0.05, 2) for step in range(21)), nms}))


def survivors(walk: Walkthrough, settings: RPN) -> np.ndarray:
    """Which boxes are proposals at each of `thresholds(settings.nms)`.

    Args:
        walk: of one image, n boxes of which enter NMS.
        settings: for the number that is kept (`post_test`).

    Returns:
        (T, n) bool, in the order of `walk.before`.
    """
    before = walk.before
    number = len(before.boxes)
    levels, there = walk.levels[before.anchor], before.scores.new_ones(number, dtype=torch.bool)
    kept = np.zeros((len(thresholds(settings.nms)), number), bool)
    for row, threshold in zip(kept, thresholds(settings.nms), strict=True):
        boxes, scores, groups, valid = (part[None] for part in (before.boxes, before.scores, levels, there))
        index, valid = ops.nms(boxes, scores, groups, valid, threshold, settings.post_test)
        row[index[valid].numpy()] = True
    return kept
