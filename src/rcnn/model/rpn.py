"""Region proposal network: an objectness and a box for every anchor, its loss, and the proposals it makes.

B images, A anchors (A_l of level l), a anchors a cell, n sampled anchors, P proposals.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rcnn.ops as ops
from rcnn.config import RPN, Anchors, SettingsError
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.model import mining
from rcnn.model.assign import Assignment, Rule, Sample, assign, sample
from rcnn.model.losses import box_loss, normalise, objectness_loss
from rcnn.model.structures import Losses, Proposals, RPNOutput, Targets, take


class RPNHead(nn.Module):
    """An n x n convolution (or several) and two 1 x 1 siblings, shared by all levels (paper, section 3.1).

    Args:
        in_channels: channels of every level.
        channels: channels of the hidden convolutions.
        anchors: anchors a cell.
        logits: of an anchor; 1 (sigmoid) or 2 (softmax) tell objects from background, others classes.
        kernel: side of the sliding window, cells.
        convs: hidden convolutions.
    """

    def __init__(
        self, in_channels: int, channels: int, anchors: int, *, logits: int, kernel: int, convs: int = 1
    ) -> None:
        super().__init__()
        self.logits = logits
        hidden = [
            nn.Conv2d(channels if i else in_channels, channels, kernel, padding=kernel // 2) for i in range(convs)
        ]
        self.conv = hidden[0] if convs == 1 else nn.ModuleList(hidden)
        self.cls = nn.Conv2d(channels, logits * anchors, 1)
        self.reg = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (*hidden, self.cls, self.reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, H * W * a[, n]) and deltas (B, H * W * a, 4), the anchor fastest.

        Two logits lie as in the paper's code: first the `a` background channels, then the `a` object channels. So do n.
        """
        hidden = self.hidden(feature)
        logits = self.cls(hidden).permute(0, 2, 3, 1)  # (B, H, W, logits * a)
        deltas = self.reg(hidden).permute(0, 2, 3, 1)
        if self.logits > 1:
            logits = logits.unflatten(3, (self.logits, -1)).transpose(3, 4)
        logits = logits.flatten(1, 3)
        return at_least_float32(logits), at_least_float32(deltas).unflatten(3, (-1, 4)).flatten(1, 3)

    def hidden(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W): what both siblings read; the paper's 256 or 512 numbers a position."""
        for conv in self.conv if isinstance(self.conv, nn.ModuleList) else (self.conv,):
            feature = conv(feature).relu()
        return feature

    @property
    def local(self) -> bool:
        """Does an anchor depend on one window alone, so that `at` can compute it?"""
        return isinstance(self.conv, nn.Conv2d)

    def at(self, levels: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, H_l, W_l), (B, n) anchors of all levels -> their logits and deltas (B, n, 4).

        What `forward` says of these anchors, from the windows around them alone. Few anchors are sampled, so the
        gradient of the convolution, two thirds of its cost, all but disappears.
        """
        assert isinstance(self.conv, nn.Conv2d)
        anchors = self.reg.out_channels // 4
        seen = patches(levels, index // anchors, self.conv.kernel_size[0])
        hidden = F.linear(seen, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias).relu()
        logits = F.linear(hidden, self.cls.weight.flatten(1), self.cls.bias)
        deltas = F.linear(hidden, self.reg.weight.flatten(1), self.reg.bias).unflatten(2, (-1, 4))
        which = (index % anchors)[..., None]
        deltas = deltas.take_along_dim(which[..., None], dim=2).squeeze(2)
        logits = logits.unflatten(2, (-1, anchors)).take_along_dim(which[..., None], dim=3).squeeze(3)
        return at_least_float32(logits.squeeze(2) if self.logits == 1 else logits), at_least_float32(deltas)


def patches(levels: Sequence[Tensor], cells: Tensor, kernel: int) -> Tensor:
    """The features that a convolution sees at chosen cells.

    Args:
        levels: (B, C, H_l, W_l).
        cells: (B, n) places, counted row by row and level after level.
        kernel: side of the window.

    Returns:
        (B, n, kernel * kernel * C), zeros beyond the edge of a map.
    """
    batch = cells.shape[0]
    rows = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], dim=1)
    rows = torch.cat((rows, rows.new_zeros(batch, 1, rows.shape[2])), dim=1)
    reach = torch.arange(kernel, device=cells.device) - kernel // 2
    index = cells.new_full((*cells.shape, kernel, kernel), rows.shape[1] - 1)
    start = 0
    for level in levels:
        height, width = level.shape[2:]
        place = cells - start
        y, x = (place // width)[..., None, None] + reach[:, None], (place % width)[..., None, None] + reach
        here = ((place >= 0) & (place < height * width))[..., None, None]
        index = torch.where(here & (y >= 0) & (y < height) & (x >= 0) & (x < width), start + y * width + x, index)
        start += height * width
    image = torch.arange(batch, device=cells.device)[:, None] * rows.shape[1]
    # Not rows[index], whose gradient is added up in no fixed order.
    seen = F.embedding(index.flatten(1) + image, rows.flatten(0, 1))
    return seen.unflatten(1, (cells.shape[1], -1)).flatten(2)


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
        logits: of an anchor. None: as set.

    Raises:
        SettingsError: anchor sizes and strides differ in their number of levels, or levels in their number of sizes.
    """

    def __init__(
        self, in_channels: int, strides: Sequence[int], anchors: Anchors, settings: RPN, *, logits: int | None = None
    ) -> None:
        super().__init__()
        if len(strides) != len(anchors.sizes):
            raise SettingsError(
                f"anchors.sizes has {len(anchors.sizes)} levels {anchors.sizes}, but the backbone has {len(strides)} "
                f"of strides {tuple(strides)}; give one tuple of sizes a level"
            )
        per_cell = {len(sizes) * len(anchors.ratios) for sizes in anchors.sizes}
        if len(per_cell) != 1:
            raise SettingsError(f"anchors.sizes must have equally many sizes on every level, got {anchors.sizes}")
        self.strides, self.anchors, self.settings = tuple(strides), anchors, settings
        self.per_cell = per_cell.pop()
        self.head = RPNHead(
            in_channels,
            settings.channels or in_channels,
            self.per_cell,
            logits=logits or settings.logits,
            kernel=settings.kernel,
            convs=settings.convs,
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

    def for_loss(self, levels: Sequence[Tensor], image_shape: tuple[int, int]) -> RPNOutput:
        """As `forward`, where the output serves `propose` and `loss` alone: gradients flow through sampled anchors."""
        if not self.head.local:
            return self.with_texture(self(levels, image_shape), levels)
        with torch.no_grad():
            out = self(levels, image_shape)
        return self.with_texture(out._replace(features=tuple(levels)), levels)

    def with_texture(self, out: RPNOutput, levels: Sequence[Tensor]) -> RPNOutput:
        """`out` with what `loss` needs beside the output of `forward`: with `rpn.negatives=texture` the texture."""
        if self.settings.negatives != "texture":
            return out
        with torch.no_grad():
            return out._replace(texture=mining.texture(levels, self.cells, self.strides, self.anchors))

    def at(self, out: RPNOutput, index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n[, 2]) and deltas (B, n, 4) of (B, n) anchors of all levels, with their gradient."""
        if out.features is None:
            logits, deltas = (take(torch.cat(part, dim=1), index) for part in (out.logits, out.deltas))
            return logits, deltas
        return self.head.at(out.features, index)

    def boxes_at(self, out: RPNOutput, index: Tensor, sizes: Tensor) -> Tensor:
        """Decoded and clipped boxes (B, n, 4) of (B, n) anchors of all levels, with the gradient of their deltas."""
        _, deltas = self.at(out, index)
        return box_ops.clip(box_ops.decode(deltas, torch.cat(out.anchors)[index]), sizes)

    def scores(self, logits: Tensor) -> Tensor:
        """(B, A) or (B, A, 2) logits -> (B, A) logit of the object's probability."""
        if self.settings.logits == 1:
            return logits
        background, foreground = logits.unbind(dim=-1)
        if self.settings.score_order == "object-first":
            background, foreground = foreground, background
        return foreground - background

    def candidates(self, out: RPNOutput, sizes: Tensor, pre: int) -> Proposals:
        """The `pre` best of each level, decoded and clipped, not yet suppressed; tiny and improbable ones not valid."""
        boxes, scores, level, anchor = [], [], [], []
        start = 0
        for number, (logits, deltas, anchors) in enumerate(zip(*out[:3], strict=True)):
            score, index = self.scores(logits).topk(min(pre, anchors.shape[0]), dim=1)
            delta = take(deltas, index)
            boxes.append(box_ops.decode(delta, anchors[index]))
            scores.append(score)
            anchor.append(index + start)
            level.append(torch.full_like(index, number))
            start += anchors.shape[0]
        box, score = box_ops.clip(torch.cat(boxes, dim=1), sizes), torch.cat(scores, dim=1).sigmoid()
        levels, anchor_index = torch.cat(level, dim=1), torch.cat(anchor, dim=1)
        sides = box[..., 2:] - box[..., :2]
        big = ((sides > 0) & (sides >= self.settings.min_size)).all(dim=-1)
        return Proposals(box, score, big & (score >= self.settings.score), levels, anchor_index)

    def propose(self, out: RPNOutput, sizes: Tensor, *, pre: int, post: int) -> Proposals:
        """The best boxes of each image after suppression within levels.

        Args:
            out: of `forward`.
            sizes: (B, 2) height and width of each unpadded image.
            pre: boxes a level that enter NMS.
            post: proposals that leave it, the best.
        """
        box, score, eligible, levels, anchor = self.candidates(out, sizes, pre)
        kept, valid = ops.nms(box, score, levels, eligible, self.settings.nms, post)
        return Proposals(
            boxes=take(box, kept).masked_fill(~valid[..., None], 0.0),
            scores=take(score, kept).masked_fill(~valid, 0.0),
            valid=valid,
            level=take(levels, kept),
            anchor=take(anchor, kept),
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
            out: of `for_loss`, or of `forward` and `with_texture`.
            targets: ground truths.
            sizes: (B, 2) height and width of each unpadded image.
            keys: (B, >= A) uniform numbers that decide which anchors are sampled.
        """
        anchors = torch.cat(out.anchors)
        labels = self.assign(anchors, targets, sizes)
        return self.sample_loss(out, anchors, labels, self.draw(out, labels, targets, keys), targets, sizes)

    def draw(self, out: RPNOutput, labels: Assignment, targets: Targets, keys: Tensor) -> Sample:
        """The anchors that are trained; `rpn.negatives` says which negatives go first. Arguments as of `loss`."""
        settings = self.settings
        first = self._precedence(out, labels, targets)
        keys = keys[:, : labels.label.shape[1]]
        return sample(labels.label, keys, settings.samples, settings.positive_fraction, first)

    @torch.no_grad()
    def _precedence(self, out: RPNOutput, labels: Assignment, targets: Targets) -> Tensor | None:
        settings, anchors = self.settings, torch.cat(out.anchors)
        if settings.negatives == "overlap":
            return mining.overlapping(anchors, labels, targets, settings.negatives_iou)
        if settings.negatives == "texture":
            assert out.texture is not None
            return mining.textured(out.texture, labels, settings.negatives_smooth)
        if settings.negatives == "hard":  # a negative's loss grows with its score
            loss = self.scores(torch.cat(out.logits, dim=1))
            return mining.hardest_apart(anchors, labels, loss, settings.negatives_nms, settings.samples)
        return None

    def sample_loss(
        self, out: RPNOutput, anchors: Tensor, labels: Assignment, drawn: Sample, targets: Targets, sizes: Tensor
    ) -> Losses:
        """The losses of sampled anchors."""
        classification, box = self.anchor_losses(out, anchors, labels, drawn, targets)
        return normalise(
            classification,
            box,
            drawn.valid,
            drawn.positive,
            self.settings.normaliser,
            self._locations(sizes),
            self.settings.positive_weight,
        )

    def anchor_losses(
        self, out: RPNOutput, anchors: Tensor, labels: Assignment, drawn: Sample, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Class and box loss (B, n) of sampled anchors, 0 where not valid or not positive; lambda is in the latter."""
        settings = self.settings
        logits, deltas = self.at(out, drawn.indices)
        # A row that does not count gets logit 0 and its anchor as its box: finite losses of finite gradients.
        logits = logits.masked_fill(~drawn.valid.view(*drawn.valid.shape, *(1,) * (logits.dim() - 2)), 0.0)
        positive = drawn.positive[..., None]
        anchor, gt = anchors[drawn.indices], take(labels.gt, drawn.indices)
        wanted = take(targets.boxes.to(anchor.dtype), gt)
        box = box_loss(
            torch.where(positive, deltas, 0.0),
            torch.where(positive, wanted, anchor),
            anchor,
            settings.box_loss,
            settings.beta,
        )
        classification = self.class_loss(logits, drawn.positive, targets, gt) * drawn.valid
        return classification, settings.lambda_ * box * drawn.positive

    def class_loss(self, logits: Tensor, positive: Tensor, targets: Targets, gt: Tensor) -> Tensor:
        """Log loss (B, n) of sampled anchors: is there an object? Which one, `gt` (B, n), does not matter here."""
        if self.settings.logits == 2 and self.settings.score_order == "object-first":
            logits = logits.flip(-1)
        return objectness_loss(logits, positive)

    def _locations(self, sizes: Tensor) -> Tensor:
        """(B, 2) -> (B,) cells of each unpadded image over all levels, the paper's N_reg."""
        strides = sizes.new_tensor(self.strides)
        return (sizes[:, None] / strides[None, :, None]).ceil().prod(dim=-1).sum(dim=-1)


def all_finite(out: RPNOutput) -> Tensor:
    """(B,) were all logits and deltas of the image finite?"""
    parts = [part.isfinite().flatten(1).all(dim=1) for part in (*out.logits, *out.deltas)]
    return torch.stack(parts).all(dim=0)
