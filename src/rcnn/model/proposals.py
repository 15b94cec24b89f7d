"""Proposals as plain tensors: the filter that tutorials describe, and crops of the image. The detector uses neither.

n boxes of one image, B images, P proposals an image.
"""

import torch
from torch import Tensor

import rcnn.ops as ops


def filter_proposals(
    boxes: Tensor,
    scores: Tensor,
    pre_nms_topk: int = 2000,
    post_nms_topk: int = 300,
    nms_threshold: float = 0.7,
    score_threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Score threshold, the best before NMS, NMS, the best after it, for one image, as tutorials have it.

    Nothing is clipped, and no small box dropped: `RegionProposalNetwork.propose` does both, of a whole batch. The
    paper's numbers are 12000 and 2000 in training, 6000 and 300 in prediction, and no threshold.

    Args:
        boxes: (n, 4) decoded boxes, pixels.
        scores: (n,) probabilities; of logits a threshold of 0 would lose half.
        pre_nms_topk: boxes that enter NMS at most.
        post_nms_topk: boxes that are returned at most.
        nms_threshold: IoU above which the lower-scored box goes.
        score_threshold: only boxes of a higher score stay.

    Returns:
        boxes (m, 4) and scores (m,), best first.
    """
    best = scores.topk(min(pre_nms_topk, scores.shape[0])).indices
    boxes, scores = boxes[best], scores[best]
    one_group, valid = torch.zeros_like(best)[None], (scores > score_threshold)[None]
    index, kept = ops.nms(boxes[None], scores[None], one_group, valid, nms_threshold, post_nms_topk)
    index = index[kept]
    return boxes[index], scores[index]


def crop_regions(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut proposals out of the images, as R-CNN does before its network, which then runs once a box.

    Faster R-CNN pools features from the shared map instead, and runs once an image.

    Args:
        images: (B, C, H, W).
        boxes: (B, P, 4) pixels; what lies outside the image repeats its edge or, a pixel further out, is 0.
        size: side of every crop, pixels; bilinear, 2 x 2 samples a pixel.

    Returns:
        (B, P, C, size, size).
    """
    level = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=boxes.device)
    return ops.roi_align([images], boxes, level, (1,), size, 2, True)
