"""Hard examples: which negative anchors are preferred, and which RoIs are hardest.

The paper draws negatives uniformly, and nearly all of them are easy. Two alternatives prefer anchors that touch an
object, or whose features vary although they contain no object; OHEM (arXiv 1604.03540) takes those with the highest
loss. B images, A anchors, R RoIs, n samples. An integer precedence (B, A) is added to the keys in [0, 1) of the draw:
anchors of higher precedence are drawn first, and the keys decide among equal ones, so that the rest is random.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rcnn.ops as ops
from rcnn.config import Anchors
from rcnn.model import boxes as box_ops
from rcnn.model.assign import Assignment, Sample
from rcnn.model.structures import Targets, take, take_truth


def overlapping(anchors: Tensor, assignment: Assignment, targets: Targets, least: float) -> Tensor:
    """Return precedence 1 for anchors (A, 4) that overlap their best object with an IoU of at least `least`, else 0."""
    real = targets.valid & ~targets.ignore
    iou = box_ops.iou(anchors, take_truth(targets.boxes.to(anchors.dtype), assignment.truth))  # (B, A)
    return (iou * take_truth(real, assignment.truth) >= least).double()


def textured(texture: Tensor, assignment: Assignment, share: float) -> Tensor:
    """Return precedence 0 for the `share` of an image's negatives with the lowest `texture` (B, A), else 1."""
    negative = assignment.negative
    ascending = texture.masked_fill(~negative, torch.inf).sort(dim=1).values
    rank = (negative.sum(dim=1, keepdim=True) * share).long().clamp(max=texture.shape[1] - 1)
    return (texture >= ascending.gather(1, rank)).double()


def texture(levels: Sequence[Tensor], cells: Sequence[Tensor], strides: Sequence[int], settings: Anchors) -> Tensor:
    """Return the standard deviation of the features over the cells of every anchor, as root mean square over channels.

    Args:
        levels: feature maps (B, C, H_l, W_l).
        cells: anchors (a, 4) of one cell of each level, around the origin.
        strides: stride of each level, pixels.
        settings: `offset` is read.

    Returns:
        (B, A), levels concatenated, the anchor fastest. A cell is inside an anchor if its centre is; the anchor's own
        cell always is. The part of an anchor outside the map does not count.
    """
    textures = []
    for level, anchors, stride in zip(levels, cells, strides, strict=True):
        x = level.detach().float()
        both = torch.cat((x, x.square().mean(dim=1, keepdim=True)), dim=1)  # (B, C + 1, H, W), the last the mean square
        variances = []
        for right, bottom in (anchors[:, 2:] / stride).unbind():
            rows = _window(x.shape[2], bottom, settings.offset).to(x)  # (H, H)
            columns = _window(x.shape[3], right, settings.offset).to(x)  # (W, W)
            mean = rows @ both @ columns.mT  # (B, C + 1, H, W) over the cells of the anchor at each cell
            variances.append(mean[:, -1] - mean[:, :-1].square().mean(dim=1))  # (B, H, W)
        textures.append(torch.stack(variances, dim=-1).flatten(1))  # (B, A_l)
    return torch.cat(textures, dim=1).clamp(min=0).sqrt()


def _window(cells: int, half: Tensor, offset: float) -> Tensor:
    """Return (cells, cells): row i averages the cells within `half` cells of the centre of cell i's anchor."""
    position = torch.arange(cells, dtype=half.dtype, device=half.device)
    inside = ((position[:, None] + offset - 0.5 - position).abs() <= half.clamp(min=0.5)).to(half)
    return inside / inside.sum(dim=1, keepdim=True)


def hardest_apart(anchors: Tensor, assignment: Assignment, loss: Tensor, iou: float, count: int) -> Tensor:
    """Return the precedence of the `count` negatives with the highest `loss` (B, A), after suppression among them."""
    batch, number = loss.shape
    boxes, groups = anchors.expand(batch, -1, -1), torch.zeros_like(assignment.truth)
    index, valid = ops.nms(boxes, loss, groups, assignment.negative, iou, count)
    order = torch.arange(count, 0, -1, device=loss.device, dtype=torch.float64).expand(batch, -1)
    # If fewer survive, the remaining indices point to anchor 0, so the largest value of an anchor counts.
    return order.new_zeros(batch, number).scatter_reduce(1, index, order * valid, "amax")


def hardest_rois(rois: Tensor, assignment: Assignment, classes: Tensor, loss: Tensor, iou: float, count: int) -> Sample:
    """Return at most `count` RoIs (B, R, 4) with the highest `loss` (B, R), hardest first, regardless of their label.

    A RoI is dropped if a harder one of the same class (B, R), background included, overlaps it by more than `iou`.
    """
    index, valid = ops.nms(rois, loss, classes, assignment.positive | assignment.negative, iou, count)
    return Sample(index, valid, take(assignment.positive, index) & valid)
