"""Short, correct functions for learning and teaching Faster R-CNN.

`generate_anchors`, `rpn_loss` and `filter_proposals` have the signatures, defaults and bit-identical results of a
tutorial, reference 004 of docs/references.md. The detector does not use them. Its own versions, for entire batches in
fixed shapes and with the paper's rules, are in `rcnn.model` and `rcnn.ops`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.ops import nms, roi_align

from rcnn.model.anchors import grid_anchors


def generate_anchors(
    feature_size: tuple[int, int],
    stride: float,
    scales: Sequence[float] = (32, 64, 128, 256, 512),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Tensor:
    """Return a box of every scale and ratio around every cell of a feature map, as in reference 004.

    The detector's anchors are in `rcnn.model.anchors`. Its ratios are height over width, so 0.5 and 2 are swapped, and
    it has no default of five scales on one level. The paper's anchors are 128, 256 and 512 (section 3.3); a feature
    pyramid has one scale per level. Other implementations round and place anchors differently
    (`rcnn.model.anchors.RULES`).

    Args:
        feature_size: (H, W) in cells.
        stride: distance between cells in pixels.
        scales: square roots of the areas in pixels.
        ratios: width over height.

    Returns:
        (H * W * k, 4) xyxy in pixels, in torch's default dtype, with k = len(scales) * len(ratios). Cells are ordered
        row by row; within a cell, the ratio changes fastest. The first cell's centre is half a stride from the image's
        corner.
    """
    shapes = [(scale * ratio**0.5, scale / ratio**0.5) for scale in scales for ratio in ratios]
    half = torch.tensor([(width / 2, height / 2) for width, height in shapes])
    return grid_anchors(torch.cat((-half, half), dim=1), feature_size, (stride, stride), 0.5)


def rpn_loss(
    cls_logits: Tensor, box_deltas: Tensor, labels: Tensor, reg_targets: Tensor, lambda_reg: float = 10.0
) -> Tensor:
    """Return the mean log loss of the sampled anchors plus lambda times the mean smooth L1 loss of the positive ones.

    This is reference 004's loss. The paper's (section 3.1.2) has the same terms, but divides the second by 2,400
    locations. Here, the divisor is 4 coordinates per positive (see `rpn.normaliser`). Sample the anchors first, by
    setting the labels of all others to -1.

    The function differs from the reference where a mean would be empty. Without positives, the box loss is a 0 whose
    gradients are zeros (in the reference: a constant). If all anchors are ignored, the entire loss is such a 0 (in the
    reference: NaN).

    Args:
        cls_logits: (N, A, 2) as (background, object).
        box_deltas: (N, A, 4).
        labels: (N, A) integers: 1 positive, 0 negative, -1 ignored.
        reg_targets: (N, A, 4); only those of positives are used.
        lambda_reg: weight of the box loss.

    Returns:
        A scalar.
    """
    sampled, positive = labels >= 0, labels == 1
    logits, classes, deltas = cls_logits[sampled], labels[sampled].long(), box_deltas[positive]
    # The sum of an empty tensor is a 0 with a gradient; its mean would be NaN.
    classification = cross_entropy(logits, classes) if len(logits) else logits.sum()
    box = smooth_l1_loss(deltas, reg_targets[positive]) if len(deltas) else deltas.sum()
    return classification + lambda_reg * box


def filter_proposals(
    boxes: Tensor,
    scores: Tensor,
    pre_nms_topk: int = 2000,
    post_nms_topk: int = 300,
    nms_threshold: float = 0.7,
    score_threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Apply the score threshold, top-k, NMS and top-k again to the boxes of one image, as in reference 004.

    Boxes are not clipped, and small ones are not dropped; `RegionProposalNetwork.propose` does both for a batch. The
    paper's Python code uses 12000 and 2000 in training, 6000 and 300 in prediction, and has no threshold.

    Args:
        boxes: (n, 4) decoded boxes, pixels.
        scores: (n,) probabilities, not logits.
        pre_nms_topk: largest number of boxes that enter NMS.
        post_nms_topk: largest number of boxes to return.
        nms_threshold: IoU above which the lower-scored box is dropped.
        score_threshold: only boxes with a higher score are kept.

    Returns:
        boxes (m, 4) and scores (m,), best first. Boxes with equal scores keep their order; but if more than
        `pre_nms_topk` boxes are left, `torch.topk` decides which of them enter and in which order.
    """
    above = scores > score_threshold
    boxes, scores = boxes[above], scores[above]
    if len(scores) > pre_nms_topk:  # sorted only here: `topk` may change the order of equal scores
        scores, best = scores.topk(pre_nms_topk)
        boxes = boxes[best]
    kept = nms(boxes, scores, nms_threshold)[:post_nms_topk]
    return boxes[kept], scores[kept]


def crop_regions(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop proposals from the images, as R-CNN does before it runs its network once per box.

    Faster R-CNN pools features from a shared map instead and runs once per image.

    Each pixel of the crop is the mean of bilinear samples; their number per side is the number of image pixels that it
    covers, rounded up. So a box of exactly `size` x `size` pixels is copied bit for bit, a larger box is averaged
    without skipping pixels, and a smaller one is interpolated.

    Args:
        images: (B, C, H, W).
        boxes: (B, P, 4) in pixels. Outside the image, its edge is repeated for one pixel, followed by zeros.
        size: side of every crop in pixels.

    Returns:
        (B, P, C, size, size). Gradients flow to the images, not to the boxes.
    """
    return roi_align(images, list(boxes), size, sampling_ratio=-1, aligned=True).unflatten(0, boxes.shape[:2])
