"""`rcnn::nms`: greedy non-maximum suppression of a batch, with an output of fixed shape.

B images, N boxes, M = max_output. Boxes are continuous xyxy; groups (classes or levels) of boxes are independent.
"""

import torch
from torch import Tensor

from rcnn.ops.library import load_operators
from rcnn.ops.operator import LIBRARY, operator
from rcnn.ops.rois import safe_boxes

load_operators()


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Keep the best boxes of every image, except those that overlap a better box of their group.

    The results are in descending order of scores over all groups, ties by the lower index. A box is dropped if its IoU
    with a kept box of its group is above the threshold, in float64 on every device. A box whose score is NaN is not
    valid. Not differentiable.

    Args:
        boxes: (B, N, 4) pixels.
        scores: (B, N).
        groups: (B, N) int64, any numbers.
        valid: (B, N) bool.
        iou_threshold: 0..1.
        max_output: maximum number of boxes kept per image, over all groups.

    Returns:
        index (B, M) int64 into N, 0 where not valid, and valid (B, M) bool.
    """
    return _nms(boxes.detach(), scores.detach(), groups, valid, iou_threshold, max_output)


def nms_reference(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """Compute `nms` one box at a time."""
    index = torch.zeros(len(boxes), max_output, dtype=torch.int64)
    kept_mask = torch.zeros(len(boxes), max_output, dtype=torch.bool)
    for image, image_boxes in enumerate(safe_boxes(boxes).double()):
        usable = valid[image] & ~scores[image].isnan()
        order = scores[image].sort(descending=True, stable=True).indices.tolist()
        kept: list[int] = []
        for i in (i for i in order if usable[i]):
            rivals = [j for j in kept if groups[image, j] == groups[image, i]]
            if all(_iou(image_boxes[i], image_boxes[j]) <= iou_threshold for j in rivals):
                kept.append(i)
        kept = kept[:max_output]
        index[image, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        kept_mask[image, : len(kept)] = True
    return index.to(boxes.device), kept_mask.to(boxes.device)


def _iou(a: Tensor, b: Tensor) -> float:
    """Return the IoU of two boxes (4,); 0 if both are empty."""
    overlap = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap
    return float(overlap / union) if union != 0 else 0.0


@operator("nms")
def _nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    boxes = safe_boxes(boxes).double()
    usable = valid & ~scores.isnan()
    index = boxes.new_zeros(len(boxes), max_output, dtype=torch.int64)
    kept_mask = torch.zeros_like(index, dtype=torch.bool)
    for image in range(len(boxes)):
        # Only valid boxes are sorted: in per-class suppression, nearly all boxes are not.
        candidates = usable[image].nonzero().squeeze(1)
        order = candidates[scores[image, candidates].sort(descending=True, stable=True).indices]
        kept = order[_keep(boxes[image, order], groups[image, order], iou_threshold, max_output)]
        index[image, : len(kept)] = kept
        kept_mask[image, : len(kept)] = True
    return index, kept_mask


@torch.library.register_fake("rcnn::nms", lib=LIBRARY)
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    index = boxes.new_empty(boxes.shape[0], max_output, dtype=torch.int64)
    return index, torch.empty_like(index, dtype=torch.bool)


def _keep(boxes: Tensor, groups: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Boxes (n, 4), best first, and their groups (n,) -> (at most max_output,) indices of kept boxes, best first.

    The result for the best m boxes does not depend on the rest, so m grows until enough boxes survive: with 5 levels of
    1,000 boxes and 500 to keep, this takes a sixth of the time.
    """
    count = 2 * max_output
    while True:
        kept = _keep_all(boxes[:count], groups[:count], iou_threshold)
        if len(kept) >= max_output or count >= len(boxes):
            return kept[:max_output]
        count *= 2


def _keep_all(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Boxes (n, 4) float64, best first, and their groups (n,) -> indices of the survivors, best first.

    torchvision's kernel is called once, with the groups shifted apart. In float64 the shift does not round a float32
    box (in float32 it would), and the kernel is as fast.
    """
    rank = groups.unique(return_inverse=True)[1]
    shift = rank * (boxes.amax() - boxes.amin() + 1) if len(boxes) else rank
    descending = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)  # the kernel sorts again
    return torch.ops.torchvision.nms(boxes + shift[:, None], descending, iou_threshold).sort().values
