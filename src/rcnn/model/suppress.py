"""Suppression: which boxes of an image are kept, and with which scores.

The network, exported files, the merging of views, `why` and `explain` all use the same objects.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

import rcnn.ops as ops
from rcnn.config import Settings
from rcnn.model.structures import take


class Suppressed(NamedTuple):
    """The boxes that are kept, best first.

    Attributes:
        index: (B, M) int64 into the boxes, 0 where not valid.
        scores: (B, M), in descending order; any numbers where not valid.
        valid: (B, M) bool.
    """

    index: Tensor
    scores: Tensor
    valid: Tensor


class Suppressor(Protocol):
    """Chooses a fixed number of boxes, by tensor code without a loop over images or a wait for the device."""

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Suppressed:
        """Choose at most `max_output` boxes of every image.

        Args:
            boxes: (B, N, 4) pixels.
            scores: (B, N).
            groups: (B, N) int64, level or class; boxes of different groups do not affect each other.
            valid: (B, N) bool.
            max_output: M, the maximum number of boxes kept per image.
        """
        ...


@dataclass(frozen=True)
class NMS:
    """Greedy non-maximum suppression: a box is dropped if its IoU with a better one of its group is above `iou`."""

    iou: float

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Suppressed:
        """Choose boxes as `Suppressor` describes; their scores do not change."""
        index, is_kept = ops.nms(boxes, scores, groups, valid, self.iou, max_output)
        return Suppressed(index, take(scores, index), is_kept)


class Suppression(NamedTuple):
    """The suppressors of a detector.

    Attributes:
        proposals: suppresses within the levels of the RPN.
        detections: suppresses within classes.
    """

    proposals: Suppressor
    detections: Suppressor

    @classmethod
    def of(cls, settings: Settings) -> "Suppression":
        """Return the suppression that `rpn.nms` and `roi.nms` describe."""
        return cls(NMS(settings.rpn.nms), NMS(settings.roi.nms))

    def with_settings(self, settings: Settings) -> "Suppression":
        """Return a copy whose `NMS` objects have the thresholds of these settings; other suppressors do not change."""
        pairs = zip(self, Suppression.of(settings), strict=True)
        return Suppression(*(new if isinstance(old, NMS) else old for old, new in pairs))
