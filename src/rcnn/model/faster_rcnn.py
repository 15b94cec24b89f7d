"""Faster R-CNN: a backbone, the region proposal network, and Fast R-CNN on its proposals.

`forward`, `propose` and `loss` are one tensor program of fixed shape: no loop over images, no shape made of data.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from rcnn.config import Settings, SettingsError
from rcnn.model.assign import Sample
from rcnn.model.fast_rcnn import ConvFCHead, FastRCNN, FCHead
from rcnn.model.one_stage import OneStageDetector
from rcnn.model.rpn import RegionProposalNetwork, all_finite
from rcnn.model.structures import Batch, Detections, Keys, Losses, Proposals, RPNOutput, Targets, take


class FasterRCNN(nn.Module):
    """The whole detector; with `roi.head=none` its first stage alone: `fast_rcnn` is None.

    Then nothing is detected, unless the first stage tells classes itself (`rpn.classify=classes`).

    Args:
        backbone: maps (B, C, H, W) to a dictionary of feature maps, finest first, and has the attributes `strides` (one
            an output) and `channels` (of every output).
        settings: of all parts.
        classes: K, background not counted.
        head: the second stage's head where it is not made of `roi.head=fc` or `conv-fc`: maps (N, C, S, S) RoI features
            to (N, `out_features`).

    Raises:
        SettingsError: a level that `roi.levels` names is not among the backbone's, or `anchors.sizes` fits them badly.
    """

    def __init__(self, backbone: nn.Module, settings: Settings, classes: int, head: nn.Module | None = None) -> None:
        super().__init__()
        strides = tuple(int(stride) for stride in backbone.strides)  # type: ignore[union-attr]
        channels = int(backbone.channels)  # type: ignore[arg-type]
        numbers = [int(math.log2(stride)) for stride in strides]
        self.settings, self.classes = settings, classes
        self.backbone = backbone
        if settings.rpn.classify == "classes":
            self.rpn = OneStageDetector(channels, strides, settings.anchors, settings.rpn, settings.roi, classes)
        else:
            self.rpn = RegionProposalNetwork(channels, strides, settings.anchors, settings.rpn)
        self.roi_levels, self.fast_rcnn = (), None
        if settings.roi.head == "none":
            return
        wanted = settings.roi.levels if len(strides) > 1 else tuple(numbers)
        missing = [level for level in wanted if level not in numbers]
        if missing:
            raise SettingsError(
                f"roi.levels names {missing}, but the backbone's levels are {numbers} "
                f"(strides {strides}); leave these out"
            )
        # Of levels of one stride the first is read: the size of a RoI can't tell them apart.
        self.roi_levels = tuple(numbers.index(level) for level in dict.fromkeys(wanted))
        head = head or _head(settings, channels)
        self.fast_rcnn = FastRCNN(head, [strides[i] for i in self.roi_levels], classes, settings.roi)

    @property
    def detects(self) -> bool:
        """Does it tell classes? If not, it is an RPN alone, and only proposes."""
        return self.fast_rcnn is not None or isinstance(self.rpn, OneStageDetector)

    def extract(self, batch: Batch) -> tuple[list[Tensor], RPNOutput]:
        """The levels that RoIs are read from, and what the RPN's head says of all levels."""
        levels = list(self.backbone(batch.images).values())
        out = self.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
        return [levels[i] for i in self.roi_levels], out

    def forward(self, batch: Batch) -> Detections:
        """Final boxes of every image, in pixels of the resized image."""
        roi_levels, out = self.extract(batch)
        if self.fast_rcnn is None:  # proposals are not needed
            return self._detect_alone(out, batch.sizes)
        return self._detect(roi_levels, out, batch.sizes)[0]

    def detect_and_propose(self, batch: Batch) -> tuple[Detections, Proposals]:
        """Final boxes, and the proposals: with a second stage those that they came from."""
        roi_levels, out = self.extract(batch)
        found, proposals, _ = self._detect(roi_levels, out, batch.sizes)
        return found, proposals

    def detect_with_features(self, batch: Batch) -> tuple[Detections, Tensor]:
        """Final boxes, and the second stage's last hidden layer (B, D, F) of the RoI that each came from."""
        roi_levels, out = self.extract(batch)
        found, _, features = self._detect(roi_levels, out, batch.sizes)
        return found, take(features, found.proposal)

    def _detect(self, roi_levels: list[Tensor], out: RPNOutput, sizes: Tensor) -> tuple[Detections, Proposals, Tensor]:
        rpn = self.settings.rpn
        proposals = self.rpn.propose(out, sizes, pre=rpn.pre_test, post=rpn.post_test)
        if self.fast_rcnn is None:
            return self._detect_alone(out, sizes), proposals, proposals.scores.new_zeros(sizes.shape[0], 0, 0)
        rois = self.fast_rcnn(roi_levels, proposals.boxes)
        found = self.fast_rcnn.detect(rois, proposals, sizes)
        return found._replace(finite=found.finite & all_finite(out)), proposals, rois.features

    def _detect_alone(self, out: RPNOutput, sizes: Tensor) -> Detections:
        """What there is to detect without a second stage."""
        return self.rpn.detect(out, sizes) if isinstance(self.rpn, OneStageDetector) else _nothing(all_finite(out))

    def propose(self, batch: Batch) -> Proposals:
        """Class-agnostic boxes of every image, in pixels of the resized image."""
        _, out = self.extract(batch)
        return self.rpn.propose(out, batch.sizes, pre=self.settings.rpn.pre_test, post=self.settings.rpn.post_test)

    def loss(
        self,
        batch: Batch,
        targets: Targets,
        keys: Keys,
        *,
        box_gradient: bool = False,
        target_gradient: bool = False,
    ) -> Losses:
        """Losses as name -> (sum, count): `rpn_objectness`, `rpn_box`, and of a second stage `roi_class`, `roi_box`.

        A one-stage detector has `rpn_class` and `rpn_box`. They are the same in train and eval mode where there is no
        dropout and no trained batch norm.

        Args:
            batch: images.
            targets: ground truths.
            keys: see `keys`.
            box_gradient: the second stage's loss reaches the RPN through the coordinates of its proposals as well. If
                not, these are constants: approximate joint training (paper, section 3.2). Which proposals there are,
                and what each is matched to, has no gradient either way.
            target_gradient: so do the targets of the second stage's boxes, with `box_gradient`.
        """
        levels = list(self.backbone(batch.images).values())
        out = self.rpn.for_loss(levels, (batch.images.shape[2], batch.images.shape[3]))
        losses = self.rpn.loss(out, targets, batch.sizes, keys.rpn)
        if self.fast_rcnn is None:
            return losses
        proposals = self._training_proposals(out, batch.sizes)
        trace = partial(self._trace, out, proposals, batch.sizes) if box_gradient else None
        roi_levels = [levels[i] for i in self.roi_levels]
        second = self.fast_rcnn.loss(
            roi_levels, proposals, targets, keys.roi, trace=trace, target_gradient=target_gradient
        )
        return {**losses, **second}

    def detect_on(self, batch: Batch, proposals: Proposals) -> Detections:
        """As `forward`, on proposals from elsewhere in pixels of the resized images; the RPN is not asked."""
        assert self.fast_rcnn is not None
        rois = self.fast_rcnn(self._roi_levels(batch), proposals.boxes)
        return self.fast_rcnn.detect(rois, proposals, batch.sizes)

    def second_loss(self, batch: Batch, targets: Targets, keys: Keys, proposals: Proposals) -> Losses:
        """The second stage's two losses on proposals from elsewhere, in pixels of the resized images."""
        assert self.fast_rcnn is not None
        return self.fast_rcnn.loss(self._roi_levels(batch), proposals, targets, keys.roi)

    def _roi_levels(self, batch: Batch) -> list[Tensor]:
        levels = list(self.backbone(batch.images).values())
        return [levels[i] for i in self.roi_levels]

    def _training_proposals(self, out: RPNOutput, sizes: Tensor) -> Proposals:
        rpn = self.settings.rpn
        with torch.no_grad():
            return self.rpn.propose(out, sizes, pre=rpn.pre_train, post=rpn.post_train)

    def _trace(self, out: RPNOutput, proposals: Proposals, sizes: Tensor, rois: Tensor, drawn: Sample) -> Tensor:
        """The sampled RoIs decoded anew from their anchors, with gradient; ground truths among them are constants."""
        count = proposals.anchor.shape[1]
        anchor = take(proposals.anchor, drawn.indices.clamp(max=count - 1))
        proposed = drawn.valid & (drawn.indices < count)
        return torch.where(proposed[..., None], self.rpn.boxes_at(out, anchor, sizes), rois)

    def evaluate(self, batch: Batch, targets: Targets, keys: Keys) -> tuple[Detections, Proposals, Losses]:
        """Detections, proposals and losses of one pass through the backbone."""
        levels = list(self.backbone(batch.images).values())
        roi_levels = [levels[i] for i in self.roi_levels]
        out = self.rpn.with_texture(self.rpn(levels, (batch.images.shape[2], batch.images.shape[3])), levels)
        found, proposals, _ = self._detect(roi_levels, out, batch.sizes)
        losses = self.rpn.loss(out, targets, batch.sizes, keys.rpn)
        if self.fast_rcnn is None:
            return found, proposals, losses
        trained_on = self._training_proposals(out, batch.sizes)
        return found, proposals, {**losses, **self.fast_rcnn.loss(roi_levels, trained_on, targets, keys.roi)}

    def evaluate_on(
        self, batch: Batch, targets: Targets, keys: Keys, proposals: Proposals
    ) -> tuple[Detections, Proposals, Losses]:
        """As `evaluate`, of the second stage alone, on proposals from elsewhere in pixels of the resized images."""
        assert self.fast_rcnn is not None
        levels = self._roi_levels(batch)
        found = self.fast_rcnn.detect(self.fast_rcnn(levels, proposals.boxes), proposals, batch.sizes)
        return found, proposals, self.fast_rcnn.loss(levels, proposals, targets, keys.roi)

    def keys(self, batch: Batch, targets: Targets, seeds: Tensor) -> Keys:
        """Uniform numbers for `loss`; row i comes from `seeds[i]` alone: order, batch and process do not matter.

        There are at least as many as there are anchors: pooling may round up or down, so one more row and column of
        cells is drawn for.
        """
        height, width = batch.images.shape[2:]
        cells = sum((height // stride + 2) * (width // stride + 2) for stride in self.rpn.strides)
        proposals = max(self.settings.rpn.post_train, self.settings.rpn.post_test)
        counts = (cells * self.rpn.per_cell, proposals + targets.boxes.shape[1])
        rows = [_uniform(int(seed), counts) for seed in seeds.tolist()]
        device = batch.images.device
        rpn, roi = (_stack([row[i] for row in rows], counts[i]).to(device) for i in (0, 1))
        return Keys(rpn, roi)


def _head(settings: Settings, channels: int) -> nn.Module:
    roi = settings.roi
    if roi.head == "conv-fc":
        return ConvFCHead(channels, roi.size, settings.model.channels, roi)
    return FCHead(channels, roi.size, roi.hidden, roi.dropout, roi.dropout_scale)


def _uniform(seed: int, counts: Sequence[int]) -> list[np.ndarray]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    return [generator.random(count) for count in counts]


def _stack(rows: list[np.ndarray], count: int) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, count, dtype=torch.float64)


def _nothing(finite: Tensor) -> Detections:
    """No detections; `finite` (B,) is the first stage's."""
    none = finite[:, None][:, :0]  # (B, 0)
    return Detections(none.float()[..., None].expand(-1, -1, 4), none.float(), none.long(), none, none.long(), finite)
