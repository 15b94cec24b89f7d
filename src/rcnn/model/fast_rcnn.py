"""The second stage: features of RoIs, their classes and refined boxes, losses and final boxes.

One head is Fast R-CNN; several heads, each on the boxes that the one before has refined, are Cascade R-CNN.

B images, P proposals, G padded ground-truth boxes, R RoIs, K classes, C channels, S cells per side, D detections.
Background is the last column of the logits, in this file alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

import rcnn.ops as ops
from rcnn.config import RoI, Settings
from rcnn.errors import SettingsError
from rcnn.model import boxes as box_ops
from rcnn.model.assign import Assignment, Rule, Sample, assign, sample
from rcnn.model.losses import box_loss
from rcnn.model.mining import hardest_rois
from rcnn.model.structures import (
    Detections,
    Losses,
    Proposals,
    RoIOutput,
    Targets,
    all_finite,
    take,
    take_truth,
)
from rcnn.model.suppress import NMS, Suppressor
from rcnn.ops.rois import at_least_float32

AT_ONCE = 2048
"""RoIs per image that go through the head together, without gradient; larger numbers are split into blocks."""
BLOCK = 2**25
"""Pooled numbers per image in a block: 128 MB in float32. RoI max pooling briefly takes four times as much."""


class UnscaledDropout(nn.Dropout):
    """Dropout that does not scale kept units in training, but all units by 1 - p in eval mode (Caffe's scale_train)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return super().forward(input) * (1 - self.p)


_DROPOUT: dict[str, type[nn.Dropout]] = {"training": nn.Dropout, "prediction": UnscaledDropout}


class FCHead(nn.Module):
    """Two fully connected layers on the flattened RoI features; with dropout these are fc6 and fc7 of VGG and ZF."""

    def __init__(
        self, channels: int, size: int, hidden: int, dropout: float = 0.0, dropout_scale: str = "training"
    ) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * size * size, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = _DROPOUT[dropout_scale](dropout)
        self.out_features = hidden
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, hidden)."""
        x = self.dropout(self.fc6(rois.flatten(1)).relu())
        return self.dropout(self.fc7(x).relu())


class ConvFCHead(nn.Module):
    """3x3 convolutions on the RoI features, then one fully connected layer.

    Args:
        channels: channels of the RoI features.
        size: cells per side of the RoI features.
        width: channels of the convolutions.
        settings: `convs`, `head_norm` (a batch norm after every convolution, which then has no bias), `hidden`,
            `dropout`.
    """

    conv_norms = (("conv", "norm"),)

    def __init__(self, channels: int, size: int, width: int, settings: RoI) -> None:
        super().__init__()
        norm = settings.head_norm == "batch"
        widths = (channels, *(width,) * settings.convs)
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=not norm) for a, b in pairwise(widths))
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(settings.convs if norm else 0))
        self.fc6 = nn.Linear(width * size * size, settings.hidden)
        self.dropout = _DROPOUT[settings.dropout_scale](settings.dropout)
        self.out_features = settings.hidden
        for conv in self.conv:
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.kaiming_uniform_(self.fc6.weight, a=1)
        nn.init.zeros_(self.fc6.bias)

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, hidden).

        While its batch norm is trained, padded RoIs count in the statistics: with a mask, these would differ from the
        statistics of a plain batch norm, and sampling rarely pads. Otherwise padding does not affect other RoIs.
        """
        x = rois
        for i, conv in enumerate(self.conv):
            x = conv(x)
            x = (self.norm[i](x) if len(self.norm) else x).relu()
        return self.dropout(self.fc6(x.flatten(1)).relu())


class BoxPredictor(nn.Module):
    """K + 1 class logits and K (or 1) boxes of each RoI, initialised from N(0, 0.01) and N(0, 0.001)."""

    def __init__(self, features: int, classes: int, *, class_agnostic: bool) -> None:
        super().__init__()
        self.cls = nn.Linear(features, classes + 1)
        self.reg = nn.Linear(features, 4 * (1 if class_agnostic else classes))
        for layer, std in ((self.cls, 0.01), (self.reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) -> logits (N, K + 1) and deltas (N, K or 1, 4)."""
        return at_least_float32(self.cls(features)), at_least_float32(self.reg(features)).unflatten(-1, (-1, 4))


class SampledRoIs(NamedTuple):
    """The RoIs that a training step passes to the second stage.

    Attributes:
        rois: (B, R, 4), zeros where not valid.
        drawn: indices into the proposals followed by the ground-truth boxes, and which are valid or positive.
        truth: (B, R) int64, the ground-truth box that each was matched to.
    """

    rois: Tensor
    drawn: Sample
    truth: Tensor


class RoIHead(nn.Module):
    """One head of the second stage: the classes of RoIs and their refined boxes.

    Args:
        head: maps (N, C, S, S) RoI features to (N, `out_features`).
        strides: stride of each level that RoIs are read from, pixels, finest first.
        classes: K.
        settings: pooling, sampling, losses, NMS.
    """

    box_mean: Tensor
    box_std: Tensor
    unit_box: Tensor

    def __init__(self, head: nn.Module, strides: Sequence[int], classes: int, settings: RoI) -> None:
        super().__init__()
        self.strides, self.classes, self.settings = tuple(strides), classes, settings
        self.head = head
        self.predictor = BoxPredictor(int(head.out_features), classes, class_agnostic=settings.class_agnostic)  # type: ignore[arg-type]
        constants = {"box_mean": settings.box_mean, "box_std": settings.box_std, "unit_box": (0, 0, 1, 1)}
        for name, numbers in constants.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64), persistent=False)

    def level_of(self, boxes: Tensor) -> Tensor:
        """(..., 4) -> (...) int64 index into the levels: floor(k0 + log2(sqrt(wh) / canonical)) (FPN, eq. 1)."""
        lowest = int(math.log2(self.strides[0]))
        size = box_ops.area(boxes).sqrt().clamp(min=1e-6)
        level = (self.settings.canonical_level + (size / self.settings.canonical_size).log2() + 1e-6).floor()
        return (level - lowest).clamp(0, len(self.strides) - 1).long()

    def pool(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Feature maps (B, C, H_l, W_l), boxes (B, R, 4) -> (B, R, C, S, S)."""
        s = self.settings
        level = self.level_of(boxes)
        if s.pool == "max":
            return ops.roi_pool(levels, boxes, level, self.strides, s.size)
        if s.pool == "warp":
            return ops.roi_warp(levels, boxes, level, self.strides, s.size, s.sampling_ratio, s.aligned)
        return ops.roi_align(levels, boxes, level, self.strides, s.size, s.sampling_ratio, s.aligned)

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIOutput:
        """Feature maps and RoIs (B, R, 4) -> the output of the head for every RoI.

        Without gradient, more than `AT_ONCE` RoIs per image go through the head in blocks of at most `BLOCK` pooled
        numbers per image, since the features of an image's 20,000 sliding windows take 2 GB in VGG-16.
        """
        count, numbers = boxes.shape[1], levels[0].shape[1] * self.settings.size**2  # of one RoI
        if torch.is_grad_enabled() or count <= AT_ONCE:
            return self._at_once(levels, boxes)
        # The blocks have nearly equal sizes, since a short last block might use another matrix product kernel.
        blocks = math.ceil(count / max(1, BLOCK // numbers))
        parts = [self._at_once(levels, part) for part in boxes.chunk(blocks, dim=1)]
        return RoIOutput(boxes, *(torch.cat(field, dim=1) for field in list(zip(*parts, strict=True))[1:]))

    def _at_once(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIOutput:
        features = self.head(self.pool(levels, boxes).flatten(0, 1))
        logits, deltas = self.predictor(features)
        return RoIOutput(boxes, *(rows.unflatten(0, boxes.shape[:2]) for rows in (logits, deltas, features)))

    def sample(self, levels: Sequence[Tensor], proposals: Proposals, targets: Targets, keys: Tensor) -> SampledRoIs:
        """Label the proposals and the ground-truth boxes, and draw the RoIs to train.

        With `roi.sampler=ohem`, the loss of all RoIs is computed without gradient, and those with the highest loss are
        drawn.

        Args:
            levels: feature maps.
            proposals: treated as constants.
            targets: the ground truth.
            keys: (B, >= P + G) uniform numbers that decide which RoIs are sampled.
        """
        s = self.settings
        truth_boxes, real = targets.boxes.to(proposals.boxes.dtype), targets.valid & ~targets.ignore
        boxes = torch.cat((proposals.boxes.detach(), truth_boxes), dim=1)  # (B, P + G, 4)
        assignment = self._assign(boxes, torch.cat((proposals.valid, real), dim=1), targets)
        if s.sampler == "ohem":
            drawn = self._hardest(levels, boxes, assignment, targets)
        else:
            drawn = sample(assignment, keys[:, : boxes.shape[1]], s.samples, s.positive_fraction)
        rois = take(boxes, drawn.indices).masked_fill(~drawn.valid[..., None], 0.0)
        return SampledRoIs(rois, drawn, take(assignment.truth, drawn.indices))

    def label(self, boxes: Tensor, valid: Tensor, targets: Targets) -> SampledRoIs:
        """Label all boxes (B, R, 4), to train this head on the boxes that an earlier head refined."""
        assignment = self._assign(boxes, valid, targets)
        drawn = _labelled(assignment)
        return SampledRoIs(boxes.masked_fill(~drawn.valid[..., None], 0.0), drawn, assignment.truth)

    def _assign(self, boxes: Tensor, allowed: Tensor, targets: Targets) -> Assignment:
        s = self.settings
        rule = Rule(s.positive_iou, *s.negative_iou, force=False, forget=s.ignore == "drop")
        return assign(boxes, allowed, targets.boxes.to(boxes.dtype), targets.valid, targets.ignore, rule)

    @torch.no_grad()
    def _hardest(self, levels: Sequence[Tensor], boxes: Tensor, assignment: Assignment, targets: Targets) -> Sample:
        """Return the RoIs of the highest loss among all boxes (B, R, 4) (OHEM, arXiv 1604.03540)."""
        s, labelled = self.settings, _labelled(assignment)
        rois = boxes.masked_fill(~labelled.valid[..., None], 0.0)
        classification, box = self.roi_losses(self(levels, rois), rois, labelled, assignment.truth, targets)
        classes = torch.where(labelled.positive, take_truth(targets.labels, assignment.truth), self.classes)
        return hardest_rois(rois, assignment, classes, classification + s.box_weight * box, s.sampler_nms, s.samples)

    def roi_losses(
        self, out: RoIOutput, rois: Tensor, drawn: Sample, truth: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Return the class and box loss (B, R) of every RoI, 0 where not valid or not positive."""
        s = self.settings
        positive = drawn.positive[..., None]
        classes = take_truth(targets.labels, truth)  # (B, R)
        classification = class_loss(out.logits.masked_fill(~drawn.valid[..., None], 0.0), drawn.positive, classes)
        row = torch.zeros_like(classes) if s.class_agnostic else torch.where(drawn.positive, classes, 0)
        deltas = out.deltas.take_along_dim(row[..., None, None], dim=2).squeeze(2)  # (B, R, 4) of its class
        # RoIs that do not count become unit boxes that are their own targets, which avoids a division by zero.
        unit = self.unit_box.to(rois.dtype)
        matched = take_truth(targets.boxes.to(rois.dtype), truth)
        box = box_loss(
            torch.where(positive, deltas, 0.0),
            torch.where(positive, matched, unit),
            torch.where(positive, rois, unit),
            s.box_loss,
            s.beta,
            self.delta_normal(rois.dtype),
        )
        return classification * drawn.valid, box * drawn.positive

    def delta_normal(self, dtype: torch.dtype) -> box_ops.Normal:
        """Return the normalisation of the deltas (`roi.box_mean`, `roi.box_std`)."""
        return box_ops.Normal(self.box_mean.to(dtype), self.box_std.to(dtype))

    def refine(self, out: RoIOutput, sizes: Tensor) -> Tensor:
        """Return every RoI's boxes (B, R, K, 4), clipped; (B, R, 1, 4) for a class-agnostic head."""
        boxes = box_ops.decode(out.deltas, out.boxes[:, :, None], self.delta_normal(out.deltas.dtype))
        return box_ops.clip(boxes, sizes)


class FastRCNN(RoIHead):
    """The second stage: a list of heads, each of which takes the boxes that the previous head refined.

    One head is Fast R-CNN. Several, with a `roi.positive_iou` that rises, are Cascade R-CNN (arXiv 1712.00726). This
    module is the first head itself, so that its weights have the same names whether or not others follow.

    Args:
        head, strides, classes, settings: arguments of the first head, as for `RoIHead`.
        later: the heads that follow, in order.

    Raises:
        SettingsError: a head before the last one refines one box per class.
    """

    def __init__(
        self, head: nn.Module, strides: Sequence[int], classes: int, settings: RoI, later: Sequence[RoIHead] = ()
    ) -> None:
        super().__init__(head, strides, classes, settings)
        self.later = nn.ModuleList(later)
        if not all(head.settings.class_agnostic for head in self.heads[:-1]):
            raise SettingsError("a head that another head follows refines one box: set roi.class_agnostic=true")

    @property
    def heads(self) -> tuple[RoIHead, ...]:
        """All heads, in order."""
        return (self, *self.later)  # type: ignore[arg-type]

    def execute(self, levels: Sequence[Tensor], boxes: Tensor, sizes: Tensor) -> tuple[RoIOutput, ...]:
        """Feature maps, boxes (B, P, 4) and sizes of the images -> the output of every head."""
        outputs = [self(levels, boxes)]
        for before, head in pairwise(self.heads):
            outputs.append(head(levels, before.refine(outputs[-1], sizes).squeeze(2)))
        return tuple(outputs)

    def refined(self, outputs: Sequence[RoIOutput], sizes: Tensor) -> Tensor:
        """Return the last head's boxes (B, P, K or 1, 4) of every proposal, clipped."""
        return self.heads[-1].refine(outputs[-1], sizes)

    def probabilities(self, outputs: Sequence[RoIOutput]) -> Tensor:
        """Return the class probabilities (B, P, K) of every proposal, averaged over the heads."""
        first, *others = (class_probabilities(out.logits) for out in outputs)
        return sum(others, first) / len(outputs) if others else first

    def detect(
        self,
        outputs: Sequence[RoIOutput],
        proposals: Proposals,
        sizes: Tensor,
        suppress: Suppressor | None = None,
    ) -> Detections:
        """Drop low scores, suppress within classes, keep the best (B, D).

        Args:
            outputs: result of `execute`.
            proposals: whose boxes `execute` was called with.
            sizes: (B, 2) height and width of each unpadded image.
            suppress: chooses the boxes. None: NMS by `roi.nms`.
        """
        suppress = suppress or NMS(self.settings.nms)
        boxes = self.refined(outputs, sizes)
        finite = all_finite(*(part for out in outputs for part in (out.logits, out.deltas)))
        return final_boxes(boxes, self.probabilities(outputs), proposals.valid, finite, self.settings, suppress)

    def loss(
        self,
        levels: Sequence[Tensor],
        sampled: SampledRoIs,
        targets: Targets,
        sizes: Tensor,
        *,
        rois: Tensor | None = None,
        target_gradient: bool = False,
    ) -> Losses:
        """Return the class and box losses of all heads as (sum, count); the count is the number of RoIs.

        The losses of the first head are `roi_class` and `roi_box`, those of the second `roi_class_2` and `roi_box_2`. A
        later head is trained on all RoIs of the previous head, as refined by it and without a gradient. Its losses have
        half of the weight of the previous head's, as in the configurations of mmdetection.

        Args:
            levels: feature maps.
            sampled: result of `sample`.
            targets: the ground truth.
            sizes: (B, 2) height and width of each unpadded image.
            rois: (B, R, 4) the sampled RoIs with a gradient. None: they are constants.
            target_gradient: whether that gradient also flows through the regression targets, which are relative to the
                RoIs.
        """
        losses: dict[str, tuple[Tensor, Tensor]] = {}
        for number, head in enumerate(self.heads, start=1):
            suffix, weight = f"_{number}" if number > 1 else "", 0.5 ** (number - 1)
            boxes = sampled.rois if rois is None else rois
            anchors = boxes if target_gradient else sampled.rois
            out = head(levels, boxes)
            classification, box = head.roi_losses(out, anchors, sampled.drawn, sampled.truth, targets)
            count = sampled.drawn.valid.sum()
            class_sum = classification.sum()
            if number > 1:  # a product with 1 would be one more kernel for all detectors with one head
                class_sum = weight * class_sum
            losses[f"roi_class{suffix}"] = class_sum, count
            losses[f"roi_box{suffix}"] = (weight * head.settings.box_weight) * box.sum(), count
            if number < len(self.heads):
                refined = head.refine(out, sizes).squeeze(2).detach()
                sampled, rois = self.heads[number].label(refined, sampled.drawn.valid, targets), None
        return losses


def build_second_stage(
    settings: Settings, channels: int, strides: Sequence[int], classes: int, head: nn.Module | None = None
) -> FastRCNN:
    """Return the second stage that settings describe, with fresh weights.

    Args:
        settings: of all parts.
        channels: channels of the levels that RoIs are read from.
        strides: strides of these levels, pixels, finest first.
        classes: K.
        head: replaces the head of `roi.head`; as for `RoIHead`.

    Raises:
        SettingsError: this function can't make the head of `roi.head`, and no `head` is passed; or a `head` is passed,
            and `roi.stages` needs several.
    """
    roi = settings.roi
    if head is None and roi.head == "conv5":
        raise SettingsError(
            "roi.head=conv5 is the fifth stage of a ResNet: build the detector with rcnn.presets.build, which makes "
            "it, or pass the module as `head`"
        )
    if head is not None and roi.stages > 1:
        raise SettingsError(f"roi.stages={roi.stages} needs a head for each stage, and one module was passed")

    def fresh() -> nn.Module:
        if roi.head == "conv-fc":
            return ConvFCHead(channels, roi.size, settings.model.channels, roi)
        return FCHead(channels, roi.size, roi.hidden, roi.dropout, roi.dropout_scale)

    first, *later = roi.cascade
    others = [RoIHead(fresh(), strides, classes, stage) for stage in later]
    return FastRCNN(head or fresh(), strides, classes, first, others)


def _labelled(assignment: Assignment) -> Sample:
    """Return all candidates; those that are positive or negative are valid."""
    index = torch.arange(assignment.truth.shape[1], device=assignment.truth.device).expand_as(assignment.truth)
    return Sample(index, assignment.positive | assignment.negative, assignment.positive)


def class_loss(logits: Tensor, positive: Tensor, label: Tensor) -> Tensor:
    """Log loss of classes: logits (B, n, K + 1), positive (B, n), label (B, n) where positive -> (B, n)."""
    label = torch.where(positive, label, logits.shape[-1] - 1)
    return -logits.log_softmax(dim=-1).take_along_dim(label[..., None], dim=-1).squeeze(-1)


def class_probabilities(logits: Tensor) -> Tensor:
    """Logits (..., K + 1) -> probabilities (..., K) of the classes without background."""
    return logits.softmax(dim=-1)[..., :-1]


def final_boxes(
    boxes: Tensor, probability: Tensor, valid: Tensor, finite: Tensor, settings: RoI, suppress: Suppressor
) -> Detections:
    """Drop low scores and small boxes, suppress within classes, keep the best.

    Args:
        boxes: (B, P, K, 4), or (B, P, 1, 4) where the classes share them.
        probability: (B, P, K).
        valid: (B, P) bool.
        finite: (B,) as in `Detections`.
        settings: `score`, `min_size` and `detections` are read.
        suppress: chooses the boxes.
    """
    _, count, classes = probability.shape
    boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)  # (B, P * K, 4)
    scores = probability.flatten(1)
    groups = torch.arange(classes, device=scores.device).repeat(count).expand(scores.shape[0], -1)
    big = box_ops.larger_than(boxes, settings.min_size)
    eligible = valid.repeat_interleave(classes, dim=1) & (scores > settings.score) & big
    index, scores, valid = suppress(boxes, scores, groups, eligible, settings.detections)
    padded = ~valid
    return Detections(
        boxes=take(boxes, index).masked_fill(padded[..., None], 0.0),
        scores=scores.masked_fill(padded, 0.0),
        labels=take(groups, index) * valid,
        valid=valid,
        proposal=index // classes,
        finite=finite,
    )
