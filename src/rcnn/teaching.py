"""Functions for learning and teaching Faster R-CNN, each as short as a correct version can be.

They take plain tensors, mostly of one image. The detector does not use them: its own versions, for whole batches in
fixed shapes and with other rules as well, are in `rcnn.model` and `rcnn.ops`.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torchvision.ops import nms, roi_align

from rcnn.config import Anchors
from rcnn.model.anchors import RULES, cell_anchors, grid_anchors


def generate_anchors(
    feature_size: tuple[int, int],
    stride: int,
    scales: Sequence[float] = (128.0, 256.0, 512.0),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rule: str = "reference-004",
) -> Tensor:
    """A box of every scale and ratio around every cell of a feature map: (H * W * k, 4) xyxy, pixels.

    Args:
        feature_size: (H, W), cells.
        stride: distance between cells, pixels.
        scales: square roots of the areas, pixels.
        ratios: height over width; width over height in `reference-004`, the rule of a tutorial.
        rule: one of `rcnn.model.anchors.RULES`: implementations round and place anchors differently.
    """
    settings = Anchors.model_validate({"sizes": (tuple(scales),), "ratios": tuple(ratios), **RULES[rule]})
    return grid_anchors(cell_anchors(settings, 0), feature_size, (stride, stride), settings.offset)


def rpn_loss(
    cls_logits: Tensor,
    box_deltas: Tensor,
    labels: Tensor,
    reg_targets: Tensor,
    lambda_reg: float = 10.0,
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log loss of the sampled anchors and smooth L1 of the positive ones: means, not the paper's divisors.

    The paper's and other divisors are choices of `rpn.normaliser`.

    Args:
        cls_logits: (..., A) objectness, or (..., A, 2) as (background, object).
        box_deltas: (..., A, 4).
        labels: (..., A) 1 positive, 0 negative, -1 not sampled.
        reg_targets: (..., A, 4); read at positives only.
        lambda_reg: weight of the box loss.
        beta: where smooth L1 turns linear.

    Returns:
        The mean log loss of the sampled anchors, and lambda times the mean smooth L1 of the positives' coordinates. If
        nothing is sampled, or nothing is positive, that is 0 with a gradient of zeros.
    """
    sampled, positive = labels >= 0, labels == 1
    if cls_logits.dim() > labels.dim():
        cls_logits = cls_logits[..., 1] - cls_logits[..., 0]  # the softmax of two is the sigmoid of their difference
    log_loss = binary_cross_entropy_with_logits(cls_logits[sampled], positive[sampled].to(cls_logits), reduction="sum")
    box_loss = smooth_l1_loss(box_deltas[positive], reg_targets[positive], reduction="sum", beta=beta)
    # Sums over counts of at least 1: a mean over nothing would be NaN.
    return log_loss / sampled.sum().clamp(min=1), lambda_reg * box_loss / (4 * positive.sum()).clamp(min=1)


def filter_proposals(
    boxes: Tensor,
    scores: Tensor,
    pre_nms_topk: int = 2000,
    post_nms_topk: int = 300,
    nms_threshold: float = 0.7,
    score_threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Score threshold, the best before NMS, NMS, the best after it, for one image.

    Boxes are not clipped, and small ones not dropped: `RegionProposalNetwork.propose` does both for a whole batch. The
    paper's numbers are 12000 and 2000 in training, 6000 and 300 in prediction, and no threshold.

    Args:
        boxes: (n, 4) decoded boxes, pixels.
        scores: (n,) probabilities, not logits.
        pre_nms_topk: largest number of boxes that enter NMS.
        post_nms_topk: largest number of boxes returned.
        nms_threshold: IoU above which the lower-scored box is dropped.
        score_threshold: only boxes with a higher score are kept.

    Returns:
        boxes (m, 4) and scores (m,), best first.
    """
    above = scores > score_threshold
    boxes, scores = boxes[above], scores[above]
    scores, best = scores.topk(min(pre_nms_topk, len(scores)))
    kept = nms(boxes[best], scores, nms_threshold)[:post_nms_topk]
    return boxes[best[kept]], scores[kept]


def crop_regions(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut proposals out of the images, as R-CNN does before its network, which then runs once per box.

    Faster R-CNN pools features from the shared map instead, and runs once per image.

    A pixel of the crop is the mean of as many bilinear samples per side as it covers pixels of the image, rounded up.
    So a box of `size` x `size` whole pixels is copied to the bit, a larger box is averaged without skipping pixels,
    and a smaller one is interpolated.

    Args:
        images: (B, C, H, W).
        boxes: (B, P, 4) pixels; outside the image its edge is repeated for one pixel, and then come zeros.
        size: side of every crop, pixels.

    Returns:
        (B, P, C, size, size). Gradients flow to the images, not to the boxes.
    """
    return roi_align(images, list(boxes), size, sampling_ratio=-1, aligned=True).unflatten(0, boxes.shape[:2])
