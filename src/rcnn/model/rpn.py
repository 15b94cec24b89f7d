"""Region proposal network (paper, section 3.1): anchors, proposals, loss.

B images, A anchors of all levels (A_l of level l), a anchors per cell, n sampled anchors, P proposals, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rcnn.config import RPN, Anchors
from rcnn.errors import SettingsError
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.model import mining
from rcnn.model.assign import Assignment, Rule, Sample, assign, sample
from rcnn.model.losses import box_loss, normalise, objectness_loss
from rcnn.model.order import stable_topk
from rcnn.model.rpn_head import build_head
from rcnn.model.structures import Losses, Proposals, RPNOutput, Targets, take, take_truth
from rcnn.model.suppress import NMS, Suppressor

_Anchors = tuple[Tensor, ...]
_MAX_SHAPES = 8
"""Number of image shapes whose anchors are cached; the anchors of 800 x 1344 pixels take 4 MB."""


class Objectness:
    """Logits that tell objects from background: one (sigmoid), or two (softmax) as in the paper's code.

    Attributes:
        logits: number per anchor.
        name: name of the loss.
        of_every_anchor: whether the loss is summed over all anchors that are not ignored and divided by the number of
            positives. Otherwise it is computed for a sample and divided as `rpn.normaliser` specifies.
        prior: initial probability of a sigmoid. None: 1 / 2.
    """

    logits: int
    name = "rpn_objectness"
    of_every_anchor = False
    prior: float | None = None

    def __init__(self, settings: RPN) -> None:
        self.logits, self._object_first = settings.logits, settings.score_order == "object-first"

    def scores(self, logits: Tensor) -> Tensor:
        """(B, A) or (B, A, 2) logits -> (B, A) logit of the object's probability."""
        if self.logits == 1:
            return logits
        background, foreground = self._background_first(logits).unbind(dim=-1)
        return foreground - background

    def loss(self, logits: Tensor, positive: Tensor, labels: Tensor) -> Tensor:
        """Log loss (B, n) of anchors; `labels` (B, n), the classes of their objects, are not read here."""
        return objectness_loss(self._background_first(logits), positive)

    def _background_first(self, logits: Tensor) -> Tensor:
        return logits.flip(-1) if self.logits == 2 and self._object_first else logits


class RegionProposalNetwork(nn.Module):
    """The RPN, which can be used by itself: it takes feature maps and returns proposals or losses.

    Args:
        in_channels: channels of every level.
        strides: stride of every level, pixels, finest first.
        anchors: the anchor rule; one tuple of sizes per level.
        settings: head, label rules, sampling, loss, NMS.
        meaning: what the logits mean. None: `Objectness`.

    Raises:
        SettingsError: `anchors.sizes` and the strides differ in the number of levels, or the levels have different
            numbers of sizes.

    Attributes:
        cells: (L, a, 4) float64, the anchors of one cell of each level, around the origin.
    """

    cells: Tensor
    level_strides: Tensor

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        anchors: Anchors,
        settings: RPN,
        *,
        meaning: Objectness | None = None,
    ) -> None:
        super().__init__()
        if len(strides) != len(anchors.sizes):
            raise SettingsError(
                f"anchors.sizes has {len(anchors.sizes)} levels {anchors.sizes}, but the backbone has {len(strides)} "
                f"of strides {tuple(strides)}; give one tuple of sizes per level"
            )
        per_cell = {len(sizes) * len(anchors.ratios) for sizes in anchors.sizes}
        if len(per_cell) != 1:
            raise SettingsError(f"anchors.sizes must have equally many sizes on every level, got {anchors.sizes}")
        self.strides, self.anchors, self.settings = tuple(strides), anchors, settings
        self.per_cell, self.meaning = per_cell.pop(), meaning or Objectness(settings)
        settings.see_sizes(anchors)
        self.head = build_head(
            in_channels,
            settings,
            anchors=self.per_cell,
            runs=1 if anchors.order == "size" else len(anchors.ratios),
            logits=self.meaning.logits,
            prior=self.meaning.prior,
        )
        cells = [anchor_ops.cell_anchors(anchors, level, torch.float64) for level in range(len(strides))]
        self.register_buffer("cells", torch.stack(cells), persistent=False)
        self._known: dict[Any, _Anchors] = {}
        self.register_buffer("level_strides", torch.tensor(self.strides, dtype=torch.float64), persistent=False)

    @property
    def learns_from_samples(self) -> bool:
        """True if gradients flow through the sampled anchors only, so that the full maps need none."""
        return self.head.local and not self.meaning.of_every_anchor

    def forward(self, levels: Sequence[Tensor], image_shape: tuple[int, int]) -> RPNOutput:
        """Feature maps (B, C, H_l, W_l) of images padded to `image_shape` -> logits, deltas, anchors of every level."""
        heads = [self.head(level) for level in levels]
        grids = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = self._anchors(tuple(grids), image_shape, heads[0][1])
        return RPNOutput(tuple(head[0] for head in heads), tuple(head[1] for head in heads), anchors)

    def _anchors(self, grids: tuple[tuple[int, int], ...], image_shape: tuple[int, int], like: Tensor) -> _Anchors:
        """Return the anchors of every level, with the dtype and device of `like`, cached for the last image shapes.

        Computing them takes eight kernels per level, a ninth of the kernels of a prediction on a GPU.
        """
        if torch.compiler.is_compiling():
            return self._new_anchors(grids, image_shape, like)
        key = (grids, image_shape, like.dtype, like.device)
        known = self._known
        if key not in known:
            with torch.inference_mode(False), torch.no_grad():  # so that training can use those of a prediction
                new = self._new_anchors(grids, image_shape, like)
            # Replaced, not written to: other threads may read it.
            self._known = known = {**dict(list(known.items())[1 - _MAX_SHAPES :]), key: new}
        return known[key]

    def _new_anchors(self, grids: tuple[tuple[int, int], ...], image_shape: tuple[int, int], like: Tensor) -> _Anchors:
        cells = self.cells.to(like.dtype).unbind()
        return anchor_ops.pyramid_anchors(self.anchors, grids, self.strides, image_shape, cells)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached anchors out of copies."""
        return {**self.__dict__, "_known": {}}

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, A, ...) of anchors -> (B, A) logit of the probability that they are ranked by."""
        return self.meaning.scores(logits)

    def candidates(self, out: RPNOutput, sizes: Tensor, pre: int) -> Proposals:
        """Return the `pre` best boxes of each level before NMS, decoded and clipped; tiny or unlikely ones are invalid.

        They are ordered by level, best first, and boxes of equal logits by the order of their anchors.
        """
        best, start = [], 0
        for number, (logits, deltas, anchors) in enumerate(zip(*out, strict=True)):
            score, index = stable_topk(self.scores(logits), pre)  # (B, min(pre, A_l))
            best.append((take(deltas, index), anchors[index], score, torch.full_like(index, number), index + start))
            start += anchors.shape[0]
        deltas, anchors, score, level, anchor = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        box, score = box_ops.clip(box_ops.decode(deltas, anchors), sizes), score.sigmoid()
        valid = box_ops.larger_than(box, self.settings.min_size) & (score >= self.settings.score)
        return Proposals(box, score, valid, level, anchor)

    def propose(
        self, out: RPNOutput, sizes: Tensor, *, pre: int, post: int, suppress: Suppressor | None = None
    ) -> Proposals:
        """Return the best boxes of each image after suppression within levels.

        Args:
            out: result of `forward`.
            sizes: (B, 2) height and width of each unpadded image.
            pre: boxes per level that enter NMS.
            post: maximum number of proposals per image.
            suppress: chooses the boxes. None: NMS by `rpn.nms`.
        """
        box, score, eligible, level, anchor = self.candidates(out, sizes, pre)
        index, scores, valid = (suppress or NMS(self.settings.nms))(box, score, level, eligible, post)
        padded = ~valid
        return Proposals(
            boxes=take(box, index).masked_fill(padded[..., None], 0.0),
            scores=scores.masked_fill(padded, 0.0),
            valid=valid,
            level=take(level, index),
            anchor=take(anchor, index),
        )

    def assign(self, anchors: Tensor, targets: Targets, sizes: Tensor) -> Assignment:
        """Label all anchors (A, 4) for every image; anchors of a filler (an image of size 0) are not trained."""
        s = self.settings
        rule = Rule(s.positive_iou, 0.0, s.negative_iou, force=s.force_match, forget=s.ignore == "drop")
        allowed = (sizes > 0).all(dim=-1)[:, None].expand(-1, anchors.shape[0])
        if self.anchors.border is not None:
            allowed = allowed & anchor_ops.inside(anchors, sizes, self.anchors.border)
        return assign(anchors, allowed, targets.boxes.to(anchors.dtype), targets.valid, targets.ignore, rule)

    @torch.no_grad()
    def draw(
        self, out: RPNOutput, assignment: Assignment, targets: Targets, keys: Tensor, levels: Sequence[Tensor] = ()
    ) -> Sample:
        """Draw the anchors to train; `rpn.negatives` decides which negatives are preferred. Arguments as in `loss`."""
        s, anchors = self.settings, torch.cat(out.anchors)
        if self.meaning.of_every_anchor:
            every_anchor = torch.arange(len(anchors), device=anchors.device).expand_as(assignment.truth)
            return Sample(every_anchor, assignment.positive | assignment.negative, assignment.positive)
        first = None
        if s.negatives == "overlap":
            first = mining.overlapping(anchors, assignment, targets, s.negatives_iou)
        elif s.negatives == "texture":
            texture = mining.texture(levels, self.cells.unbind(), self.strides, self.anchors)
            first = mining.textured(texture, assignment, s.negatives_smooth)
        elif s.negatives == "hard":  # a negative's loss grows with its score
            scores = self.scores(torch.cat(out.logits, dim=1))
            first = mining.hardest_apart(anchors, assignment, scores, s.negatives_nms, s.samples)
        return sample(assignment, keys[:, : len(anchors)], s.samples, s.positive_fraction, first)

    def at(self, out: RPNOutput, index: Tensor, again: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (B, n[, k]) and deltas (B, n, 4) of (B, n) anchors of all levels, with their gradient.

        Args:
            out: result of `forward`.
            index: the anchors.
            again: feature maps from which to recompute these anchors, if `out` has no gradient.
        """
        if again is not None:
            return self.head.at_anchors(again, index)
        return take(torch.cat(out.logits, dim=1), index), take(torch.cat(out.deltas, dim=1), index)

    def loss(
        self,
        out: RPNOutput,
        targets: Targets,
        sizes: Tensor,
        keys: Tensor,
        levels: Sequence[Tensor] = (),
        *,
        again: bool = False,
    ) -> Losses:
        """Return the multi-task loss (paper, equation 1) as (sum, count) of its two parts; the second includes lambda.

        Args:
            out: result of `forward`.
            targets: the ground truth.
            sizes: (B, 2) height and width of each unpadded image.
            keys: (B, >= A) uniform numbers that decide which anchors are sampled.
            levels: feature maps; read if `rpn.negatives=texture` or `again`.
            again: whether `out` has no gradient, so that the sampled anchors are recomputed from `levels` with one.
        """
        s, anchors = self.settings, torch.cat(out.anchors)
        assignment = self.assign(anchors, targets, sizes)
        drawn = self.draw(out, assignment, targets, keys, levels)
        logits, deltas = self.at(out, drawn.indices, levels if again else None)  # (B, n[, k]), (B, n, 4)
        anchor, object_index = anchors[drawn.indices], take(assignment.truth, drawn.indices)
        matched, labels = (take_truth(rows, object_index) for rows in (targets.boxes.to(anchor.dtype), targets.labels))
        # L_cls. Rows that do not count get logit 0 and their anchor as the box, for finite losses and gradients.
        logits = logits.masked_fill(~drawn.valid.view(*drawn.valid.shape, *(1,) * (logits.dim() - 2)), 0.0)
        classification = self.meaning.loss(logits, drawn.positive, labels) * drawn.valid
        # lambda p* L_reg: positive anchors only
        positive = drawn.positive[..., None]
        deltas, matched = torch.where(positive, deltas, 0.0), torch.where(positive, matched, anchor)
        box = s.lambda_ * box_loss(deltas, matched, anchor, s.box_loss, s.beta) * drawn.positive
        # N_cls and N_reg
        if self.meaning.of_every_anchor:
            count = drawn.positive.sum()
            return {self.meaning.name: (classification.sum(), count), "rpn_box": (box.sum(), count)}
        strides = self.level_strides.to(sizes.dtype)
        cells = (sizes[:, None] / strides[None, :, None]).ceil().prod(dim=-1).sum(dim=-1)  # (B,) of the unpadded image
        parts = normalise(classification, box, drawn.valid, drawn.positive, s.normaliser, cells, s.positive_weight)
        return dict(zip((self.meaning.name, "rpn_box"), parts, strict=True))
