"""Region proposal network: an objectness and a box for every anchor, its loss, and the proposals it makes.

B images, A anchors (A_l of level l), a anchors a cell, n sampled anchors, P proposals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import rcnn.ops as ops
from rcnn.config import RPN, Anchors
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.model.assign import Assignment, Rule, Sample, assign, sample
from rcnn.model.losses import box_loss, normalise, objectness_loss
from rcnn.model.structures import Losses, Proposals, RPNOutput, Targets, take


class RPNHead(nn.Module):
    """An n x n convolution and two 1 x 1 siblings, shared by all levels (paper, section 3.1).

    Args:
        in_channels: channels of every level.
        channels: channels of the hidden convolution.
        anchors: anchors a cell.
        logits: 1 (sigmoid) or 2 (softmax) objectness logits an anchor.
        kernel: side of the sliding window, cells.
    """

    def __init__(self, in_channels: int, channels: int, anchors: int, *, logits: int, kernel: int) -> None:
        super().__init__()
        self.logits = logits
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
        self.cls = nn.Conv2d(channels, logits * anchors, 1)
        self.reg = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, self.cls, self.reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, H * W * a[, 2]) and deltas (B, H * W * a, 4), the anchor fastest.

        Two logits lie as in the paper's code: first the `a` background channels, then the `a` object channels.
        """
        hidden = self.conv(feature).relu()
        logits = self.cls(hidden).permute(0, 2, 3, 1)  # (B, H, W, logits * a)
        deltas = self.reg(hidden).permute(0, 2, 3, 1)
        if self.logits == 2:
            logits = logits.unflatten(3, (2, -1)).transpose(3, 4)
        logits = logits.flatten(1, 3)
        return at_least_float32(logits), at_least_float32(deltas).unflatten(3, (-1, 4)).flatten(1, 3)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision ends here: boxes and losses are computed in float32, or float64 where the model is."""
    return x if x.dtype == torch.float64 else x.float()


class RegionProposalNetwork(nn.Module):
    """The RPN as a part that stands alone: feature maps in, proposals or losses out.

    Args:
        in_channels: channels of every level.
        strides: stride of every level, pixels, finest first.
        anchors: the anchor rule; one tuple of sizes a level.
        settings: head, label rules, sampling, loss, NMS.

    Raises:
        ValueError: anchor sizes and strides differ in their number of levels.
    """

    def __init__(self, in_channels: int, strides: Sequence[int], anchors: Anchors, settings: RPN) -> None:
        super().__init__()
        if len(strides) != len(anchors.sizes):
            raise ValueError(
                f"anchors.sizes has {len(anchors.sizes)} levels {anchors.sizes}, "
                f"but the backbone has {len(strides)} of strides {tuple(strides)}"
            )
        per_cell = {len(sizes) * len(anchors.ratios) for sizes in anchors.sizes}
        if len(per_cell) != 1:
            raise ValueError(f"anchors.sizes must have equally many sizes on every level, got {anchors.sizes}")
        self.strides, self.anchors, self.settings = tuple(strides), anchors, settings
        self.per_cell = per_cell.pop()
        self.head = RPNHead(
            in_channels, settings.channels or in_channels, self.per_cell, logits=settings.logits, kernel=settings.kernel
        )
        self.cells = [anchor_ops.cell_anchors(anchors, level, torch.float64) for level in range(len(strides))]

    def forward(self, levels: Sequence[Tensor], image_shape: tuple[int, int]) -> RPNOutput:
        """Feature maps (B, C, H_l, W_l) of images padded to `image_shape` -> logits, deltas, anchors of every level."""
        heads = [self.head(level) for level in levels]
        grids = [(level.shape[2], level.shape[3]) for level in levels]
        like = heads[0][1]
        cells = [cell.to(device=like.device, dtype=like.dtype) for cell in self.cells]
        anchors = anchor_ops.pyramid_anchors(self.anchors, grids, self.strides, image_shape, cells)
        return RPNOutput(tuple(head[0] for head in heads), tuple(head[1] for head in heads), anchors)

    def scores(self, logits: Tensor) -> Tensor:
        """(B, A) or (B, A, 2) logits -> (B, A) logit of the object's probability."""
        if self.settings.logits == 1:
            return logits
        background, foreground = logits.unbind(dim=-1)
        if self.settings.score_order == "object-first":
            background, foreground = foreground, background
        return foreground - background

    def propose(self, out: RPNOutput, sizes: Tensor, *, pre: int, post: int) -> Proposals:
        """Decode the `pre` best of each level, clip, drop the tiny, suppress within levels, keep the `post` best.

        Args:
            out: of `forward`.
            sizes: (B, 2) height and width of each unpadded image.
            pre: boxes a level that enter NMS.
            post: proposals that leave it.
        """
        boxes, scores, level, anchor = [], [], [], []
        start = 0
        for number, (logits, deltas, anchors) in enumerate(zip(*out, strict=True)):
            score, index = self.scores(logits).topk(min(pre, anchors.shape[0]), dim=1)
            delta = take(deltas, index)
            boxes.append(box_ops.decode(delta, anchors[index]))
            scores.append(score)
            anchor.append(index + start)
            level.append(torch.full_like(index, number))
            start += anchors.shape[0]
        box, score = box_ops.clip(torch.cat(boxes, dim=1), sizes), torch.cat(scores, dim=1).sigmoid()
        levels, anchor_index = torch.cat(level, dim=1), torch.cat(anchor, dim=1)
        big = ((box[..., 2:] - box[..., :2]) >= self.settings.min_size).all(dim=-1)
        kept, valid = ops.nms(box, score, levels, big, self.settings.nms, post)
        return Proposals(
            boxes=take(box, kept).masked_fill(~valid[..., None], 0.0),
            scores=take(score, kept).masked_fill(~valid, 0.0),
            valid=valid,
            level=take(levels, kept),
            anchor=take(anchor_index, kept),
        )

    def assign(self, anchors: Tensor, targets: Targets, sizes: Tensor) -> Assignment:
        """Labels of all anchors (A, 4) for every image; those of an image of size 0 (a filler) are not trained."""
        s = self.settings
        rule = Rule(s.positive_iou, 0.0, s.negative_iou, force=s.force_match, forget=s.ignore == "drop")
        allowed = (sizes > 0).all(dim=-1)[:, None].expand(-1, anchors.shape[0])
        if self.anchors.border is not None:
            allowed = allowed & anchor_ops.inside(anchors, sizes, self.anchors.border)
        return assign(anchors, allowed, targets.boxes.to(anchors.dtype), targets.valid, targets.ignore, rule)

    def loss(self, out: RPNOutput, targets: Targets, sizes: Tensor, keys: Tensor) -> Losses:
        """The two losses of equation 1 as (sum, count); lambda is inside the box loss's sum.

        Args:
            out: of `forward`.
            targets: ground truths.
            sizes: (B, 2) height and width of each unpadded image.
            keys: (B, >= A) uniform numbers that decide which anchors are sampled.
        """
        anchors = torch.cat(out.anchors)
        labels = self.assign(anchors, targets, sizes)
        settings = self.settings
        drawn = sample(labels.label, keys[:, : anchors.shape[0]], settings.samples, settings.positive_fraction)
        return self.sample_loss(out, anchors, labels, drawn, targets, sizes)

    def sample_loss(
        self, out: RPNOutput, anchors: Tensor, labels: Assignment, drawn: Sample, targets: Targets, sizes: Tensor
    ) -> Losses:
        """The losses of sampled anchors."""
        settings = self.settings
        # A row that does not count gets logit 0 and its anchor as its box: finite losses of finite gradients.
        logits = take(torch.cat(out.logits, dim=1), drawn.indices)
        logits = logits.masked_fill(~drawn.valid.view(*drawn.valid.shape, *(1,) * (logits.dim() - 2)), 0.0)
        if settings.logits == 2 and settings.score_order == "object-first":
            logits = logits.flip(-1)
        positive = drawn.positive[..., None]
        deltas = take(torch.cat(out.deltas, dim=1), drawn.indices)
        anchor = anchors[drawn.indices]
        wanted = take(targets.boxes.to(anchor.dtype), take(labels.gt, drawn.indices))
        box = box_loss(
            torch.where(positive, deltas, 0.0),
            torch.where(positive, wanted, anchor),
            anchor,
            settings.box_loss,
            settings.beta,
        )
        classification = objectness_loss(logits, drawn.positive) * drawn.valid
        return normalise(
            classification,
            settings.lambda_ * box * drawn.positive,
            drawn.valid,
            drawn.positive,
            settings.normaliser,
            self._locations(sizes),
        )

    def _locations(self, sizes: Tensor) -> Tensor:
        """(B, 2) -> (B,) cells of each unpadded image over all levels, the paper's N_reg."""
        strides = sizes.new_tensor(self.strides)
        return (sizes[:, None] / strides[None, :, None]).ceil().prod(dim=-1).sum(dim=-1)
