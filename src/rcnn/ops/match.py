"""`rcnn::match`: the best truth box of every anchor and the best anchors of every truth box, in bounded memory.

B images, A anchors, G padded ground-truth boxes. Boxes are continuous xyxy pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn.ops.operator import LIBRARY, operator
from rcnn.ops.rois import safe_boxes

TIE = 1e-6  # an IoU computed twice may differ in its last bit
MAX_BLOCK = 8192  # anchors
PAIRS = 1 << 16  # intended pairs of anchors and boxes of a block, so that its temporaries stay in the cache


class Matches(NamedTuple):
    """The matches of every anchor.

    Attributes:
        best_iou: (B, A), 0 where no truth box is valid.
        best_truth: (B, A) int64, ties to the lower index, 0 where best_iou is 0.
        is_best: (B, A) bool, True for the best anchors of each truth box.
        covered: (B, A) bool, True if at least half of the anchor's area lies inside one ignored box.
    """

    best_iou: Tensor
    best_truth: Tensor
    is_best: Tensor
    covered: Tensor


def match(
    anchors: Tensor, boxes: Tensor, valid: Tensor, allowed: Tensor | None = None, ignore: Tensor | None = None
) -> Matches:
    """Find the best truth box of every anchor and the best anchors of every truth box. Not differentiable.

    An anchor is one of the best of a truth box if their IoU is above 0 and within 1e-6 of the highest IoU of any
    allowed anchor with that box, so that all of several equal anchors count.

    Args:
        anchors: (A, 4), or (B, A, 4) if they differ between images, pixels.
        boxes: (B, G, 4) ground-truth boxes; G may be 0.
        valid: (B, G) bool, the boxes that are matched.
        allowed: (B, A) bool, the anchors that may be the best of a truth box. None: all.
        ignore: (B, G) bool, boxes that are not matched but cover anchors (crowd, difficult). None: no box.
    """
    if boxes.shape[1] == 0:  # replaced by an invalid box, since the operator takes a maximum over boxes
        boxes, valid, ignore = boxes.new_zeros(len(boxes), 1, 4), valid.new_zeros(len(boxes), 1), None
    return Matches(*_match(anchors.detach(), boxes.detach(), valid, allowed, ignore))


def match_reference(
    anchors: Tensor, boxes: Tensor, valid: Tensor, allowed: Tensor | None = None, ignore: Tensor | None = None
) -> Matches:
    """Compute `match` from the full IoU matrix (B, A, G)."""
    boxes = safe_boxes(boxes)[:, None]
    anchors = safe_boxes(anchors).expand(len(boxes), *anchors.shape[-2:])[:, :, None]
    sides = (torch.minimum(anchors[..., 2:], boxes[..., 2:]) - torch.maximum(anchors[..., :2], boxes[..., :2])).clamp(0)
    overlap = sides.prod(-1)
    own = (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    union = own + (boxes[..., 2:] - boxes[..., :2]).prod(-1) - overlap
    iou = torch.where((overlap > 0) & valid[:, None], overlap / union, 0.0)
    best_iou, best_truth = torch.nn.functional.pad(iou, (0, 1)).max(dim=2)  # 0 if no box overlaps
    may_win = iou if allowed is None else torch.where(allowed[:, :, None], iou, 0.0)
    top = may_win.amax(dim=1, keepdim=True) if anchors.shape[1] else may_win.new_zeros(len(boxes), 1, boxes.shape[2])
    is_best = ((may_win >= top - TIE) & (may_win > 0)).any(dim=2)
    inside = (overlap >= own / 2) & (overlap > 0)
    covered = torch.zeros_like(is_best) if ignore is None else (inside & ignore[:, None]).any(dim=2)
    return Matches(best_iou, best_truth, is_best, covered)


@operator("match")
def _match(
    anchors: Tensor, boxes: Tensor, valid: Tensor, allowed: Tensor | None, ignore: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, count = boxes.shape[0], anchors.shape[-2]
    best_iou = boxes.new_zeros(batch, count, dtype=torch.promote_types(boxes.dtype, torch.float32))
    best_truth = torch.zeros_like(best_iou, dtype=torch.int64)
    is_best = torch.zeros_like(best_iou, dtype=torch.bool)
    top = best_iou.new_zeros(batch, boxes.shape[1], 1)
    for part, iou in _iou_blocks(anchors, boxes, valid):
        torch.max(iou, dim=1, out=(best_iou[:, part], best_truth[:, part]))
        if allowed is not None:
            iou *= allowed[:, None, part]
        top = torch.maximum(top, iou.amax(dim=2, keepdim=True))
    least = (top - TIE).masked_fill_(top == 0, torch.inf).clamp_(min=torch.finfo(top.dtype).tiny)
    for part, iou in _iou_blocks(anchors, boxes, valid):
        is_best[:, part] = (iou >= least).any(dim=1)
    if allowed is not None:
        is_best &= allowed
    covered = torch.zeros_like(is_best)
    if ignore is not None and (boxes.is_cuda or ignore.any()):  # most data has no ignored box
        ignored = boxes.masked_fill(~ignore[..., None], 0.0)
        for part, overlap, own, _ in _overlap_blocks(anchors, ignored):
            covered[:, part] = ((overlap >= own / 2) & (overlap > 0)).any(dim=1)
    return best_iou, best_truth, is_best, covered


@torch.library.register_fake("rcnn::match", lib=LIBRARY)
def _(
    anchors: Tensor, boxes: Tensor, valid: Tensor, allowed: Tensor | None, ignore: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    best_iou = boxes.new_empty(boxes.shape[0], anchors.shape[-2], dtype=dtype)
    is_best = torch.empty_like(best_iou, dtype=torch.bool)
    return best_iou, torch.empty_like(best_iou, dtype=torch.int64), is_best, torch.empty_like(is_best)


def _iou_blocks(anchors: Tensor, boxes: Tensor, valid: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the anchors, and the IoU (B, G, a) of all boxes with them; 0 if a box is not valid."""
    for part, overlap, own, area in _overlap_blocks(anchors, boxes):
        # With an infinite area, a padded box has IoU 0 without a mask over all pairs.
        union = (own + area.masked_fill(~valid[..., None], torch.inf)).sub_(overlap)
        yield part, overlap.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _overlap_blocks(anchors: Tensor, boxes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield slices of the anchors, their overlaps (B, G, a) with all boxes, and the areas of anchors and boxes.

    The areas are (B or 1, 1, a) for anchors and (B, G, 1) for boxes.
    """
    batch, count = boxes.shape[:2]
    left, top, right, bottom = safe_boxes(boxes)[..., None].unbind(dim=2)  # (B, G, 1)
    # Coordinates first, anchors last and contiguous, so that the arithmetic is vectorised.
    columns = safe_boxes(anchors if anchors.dim() == 3 else anchors[None]).to(left.dtype).permute(2, 0, 1).contiguous()
    block = max(256, min(MAX_BLOCK, PAIRS // max(1, batch * count)))
    for start in range(0, columns.shape[-1] if batch else 0, block):
        part = slice(start, start + block)
        x1, y1, x2, y2 = columns[:, :, None, part]  # (B or 1, 1, a)
        overlap = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).clamp_(min=0)
        overlap *= torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).clamp_(min=0)
        yield part, overlap, (x2 - x1) * (y2 - y1), (right - left) * (bottom - top)
