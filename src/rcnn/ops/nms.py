"""`rcnn::nms`: greedy non-maximum suppression of a batch, with an output of fixed shape.

B images, N boxes, M = max_output. Boxes are continuous xyxy; boxes of different groups (class or level) never meet.
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
    """Keep the best boxes of every image, except those that overlap a better one of their own group.

    Best score first over all groups, ties to the lower index; a box is dropped where its IoU with a kept box is above
    the threshold, in float64 on every device. A box whose score is NaN counts as not valid. Not differentiable.

    Args:
        boxes: (B, N, 4) pixels.
        scores: (B, N).
        groups: (B, N) int64, any numbers.
        valid: (B, N) bool.
        iou_threshold: 0..1.
        max_output: largest number of boxes kept per image, over all groups.

    Returns:
        index (B, M) int64 into N, 0 where not valid, and valid (B, M) bool.
    """
    return _nms(boxes.detach(), scores.detach(), groups, valid, iou_threshold, max_output)


def nms_reference(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """The same as `nms`, one box after another."""
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
    """IoU of two boxes (4,); 0 where both are empty."""
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
        # Only what is valid is sorted: in per-class suppression nearly everything is not.
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
    """Boxes (n, 4), best first, and their groups (n,) -> (at most max_output,) indices of those kept, best first.

    The answer for the best m boxes does not depend on the rest, so m grows until it holds enough survivors: with 5
    levels of 1,000 boxes and 500 to keep this is a sixth of the time.
    """
    count = 2 * max_output
    while True:
        kept = _keep_all(boxes[:count], groups[:count], iou_threshold)
        if len(kept) >= max_output or count >= len(boxes):
            return kept[:max_output]
        count *= 2


def _keep_all(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Boxes (n, 4) float64, best first, and their groups (n,) -> indices of the survivors, best first.

    One call of torchvision's kernel, with the groups shifted apart. In float64 the shift takes nothing from a float32
    box (in float32 it does), and the kernel is as fast.
    """
    rank = groups.unique(return_inverse=True)[1]
    shift = rank * (boxes.amax() - boxes.amin() + 1) if len(boxes) else rank
    descending = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)  # the kernel sorts again
    return torch.ops.torchvision.nms(boxes + shift[:, None], descending, iou_threshold).sort().values
