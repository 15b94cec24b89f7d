"""Image pyramids: the detections of one image at several scales, pooled (paper, figure 1a)."""

from collections.abc import Sequence

import numpy as np
import torch

import rcnn.ops as ops
from rcnn.config import RoI

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes (n, 4) in the file's pixels, scores (n,) and labels (n,) of one scale."""


def pool_scales(scales: Sequence[Found], settings: RoI) -> np.ndarray:
    """Rows (m,) that are kept of all scales concatenated, best first.

    Boxes are suppressed within classes (`roi.nms`), and at most `roi.detections` are kept; of equal scores the earlier
    scale goes first. A single scale is kept unchanged: the network has done the same already.
    """
    if len(scales) == 1:
        return np.arange(len(scales[0][0]))
    boxes, scores, labels = (torch.from_numpy(np.concatenate(parts))[None] for parts in zip(*scales, strict=True))
    everyone = torch.ones_like(scores, dtype=torch.bool)
    kept, valid = ops.nms(boxes, scores, labels, everyone, settings.nms, settings.detections)
    return kept[valid].numpy()
