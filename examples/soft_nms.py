"""Soft-NMS (arXiv 1704.04503) in place of NMS: a box that overlaps a better one loses score instead of being dropped.

python examples/soft_nms.py MODEL IMAGE
"""

import sys

import torch
from torch import Tensor

import rcnn
from rcnn.model.boxes import iou
from rcnn.model.structures import take
from rcnn.model.suppress import Suppressed


class SoftNMS:
    """Gaussian Soft-NMS: the best box that is left multiplies the scores of its group by exp(-IoU^2 / sigma)."""

    def __init__(self, sigma: float = 0.5, min_score: float = 0.001) -> None:
        self.sigma, self.min_score = sigma, min_score

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_output: int) -> Suppressed:
        """Choose boxes, as `rcnn.model.suppress.Suppressor` says."""
        left = scores.masked_fill(~valid, 0.0)
        chosen = []
        for _ in range(max_output):
            score, best = left.max(dim=1, keepdim=True)  # (B, 1)
            chosen.append((best, score))
            overlap = iou(boxes, take(boxes, best)) * (groups == take(groups, best))
            left = (left * (-overlap.square() / self.sigma).exp()).scatter(1, best, 0.0)
        index, score = (torch.cat(columns, dim=1) for columns in zip(*chosen, strict=True))
        return Suppressed(index, score, score > self.min_score)


def main(model: str, image: str) -> None:
    """Print how many detections of an image have a score of 0.3 with NMS and with Soft-NMS."""
    detector = rcnn.load(model)
    for name, one in (("NMS", detector), ("Soft-NMS", detector.with_suppression(detections=SoftNMS()))):
        print(f"{name}: {len(one.predict(image, score=0.3)[0])} boxes")


if __name__ == "__main__":
    main(*sys.argv[1:])
