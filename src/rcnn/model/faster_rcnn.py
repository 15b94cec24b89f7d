"""Faster R-CNN: a backbone, the region proposal network, and Fast R-CNN on its proposals.

`forward`, `propose` and `loss` are one tensor program of fixed shape: no loop over images, no shape made of data.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.model.fast_rcnn import FastRCNN, FCHead
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.structures import Batch, Detections, Keys, Losses, Proposals, RPNOutput, Targets, take


class FasterRCNN(nn.Module):
    """The whole detector.

    Args:
        backbone: maps (B, C, H, W) to a dictionary of feature maps, finest first, and has the attributes `strides` (one
            an output) and `channels` (of every output).
        settings: of all parts.
        classes: K, background not counted.
        head: the second stage's head where it is not two fully connected layers; has the attribute `out_features`.

    Raises:
        ValueError: a level that `roi.levels` names is not among the backbone's.
    """

    def __init__(self, backbone: nn.Module, settings: Settings, classes: int, head: nn.Module | None = None) -> None:
        super().__init__()
        strides = tuple(int(stride) for stride in backbone.strides)  # type: ignore[union-attr]
        channels = int(backbone.channels)  # type: ignore[arg-type]
        numbers = [int(math.log2(stride)) for stride in strides]
        self.settings, self.classes = settings, classes
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(channels, strides, settings.anchors, settings.rpn)
        wanted = settings.roi.levels if len(strides) > 1 else tuple(numbers)
        missing = [level for level in wanted if level not in numbers]
        if missing:
            raise ValueError(f"roi.levels names {missing}, but the backbone's levels are {numbers} (strides {strides})")
        self.roi_levels = tuple(numbers.index(level) for level in wanted)
        roi = settings.roi
        head = head or FCHead(channels, roi.size, roi.hidden, roi.dropout)
        self.fast_rcnn = FastRCNN(head, [strides[i] for i in self.roi_levels], classes, roi)

    def extract(self, batch: Batch) -> tuple[list[Tensor], RPNOutput]:
        """The levels that RoIs are read from, and what the RPN's head says of all levels."""
        levels = list(self.backbone(batch.images).values())
        out = self.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
        return [levels[i] for i in self.roi_levels], out

    def forward(self, batch: Batch) -> Detections:
        """Final boxes of every image, in pixels of the resized image."""
        return self.detect_and_propose(batch)[0]

    def detect_and_propose(self, batch: Batch) -> tuple[Detections, Proposals]:
        """Final boxes, and the proposals that they came from."""
        roi_levels, out = self.extract(batch)
        found, proposals, _ = self._detect(roi_levels, out, batch.sizes)
        return found, proposals

    def detect_with_features(self, batch: Batch) -> tuple[Detections, Tensor]:
        """Final boxes, and the head's last hidden layer (B, D, F) of the RoI that each came from."""
        roi_levels, out = self.extract(batch)
        found, _, features = self._detect(roi_levels, out, batch.sizes)
        return found, take(features, found.proposal)

    def _detect(self, roi_levels: list[Tensor], out: RPNOutput, sizes: Tensor) -> tuple[Detections, Proposals, Tensor]:
        rpn = self.settings.rpn
        proposals = self.rpn.propose(out, sizes, pre=rpn.pre_test, post=rpn.post_test)
        rois = self.fast_rcnn(roi_levels, proposals.boxes)
        found = self.fast_rcnn.detect(rois, proposals, sizes)
        return found._replace(finite=found.finite & _finite(out)), proposals, rois.features

    def propose(self, batch: Batch) -> Proposals:
        """Class-agnostic boxes of every image, in pixels of the resized image."""
        _, out = self.extract(batch)
        return self.rpn.propose(out, batch.sizes, pre=self.settings.rpn.pre_test, post=self.settings.rpn.post_test)

    def loss(self, batch: Batch, targets: Targets, keys: Keys) -> Losses:
        """Four losses as name -> (sum, count): `rpn_objectness`, `rpn_box`, `roi_class`, `roi_box`.

        The same in train and eval mode where there is no dropout and no trained batch norm. Proposals are constants to
        the second stage (approximate joint training, paper section 3.2).
        """
        roi_levels, out = self.extract(batch)
        return self._losses(roi_levels, out, batch.sizes, targets, keys)

    def evaluate(self, batch: Batch, targets: Targets, keys: Keys) -> tuple[Detections, Proposals, Losses]:
        """Detections, proposals and losses of one pass through the backbone."""
        roi_levels, out = self.extract(batch)
        found, proposals, _ = self._detect(roi_levels, out, batch.sizes)
        return found, proposals, self._losses(roi_levels, out, batch.sizes, targets, keys)

    def _losses(self, roi_levels: list[Tensor], out: RPNOutput, sizes: Tensor, targets: Targets, keys: Keys) -> Losses:
        rpn = self.settings.rpn
        with torch.no_grad():
            proposals = self.rpn.propose(out, sizes, pre=rpn.pre_train, post=rpn.post_train)
        return {
            **self.rpn.loss(out, targets, sizes, keys.rpn),
            **self.fast_rcnn.loss(roi_levels, proposals, targets, keys.roi),
        }

    def keys(self, batch: Batch, targets: Targets, seeds: Tensor) -> Keys:
        """Uniform numbers for `loss`; row i comes from `seeds[i]` alone: order, batch and process do not matter.

        There are at least as many as there are anchors: pooling may round up or down, so one more row and column of
        cells is drawn for.
        """
        height, width = batch.images.shape[2:]
        cells = sum((height // stride + 2) * (width // stride + 2) for stride in self.rpn.strides)
        counts = (cells * self.rpn.per_cell, self.settings.rpn.post_train + targets.boxes.shape[1])
        rows = [_uniform(int(seed), counts) for seed in seeds.tolist()]
        device = batch.images.device
        rpn, roi = (_stack([row[i] for row in rows], counts[i]).to(device) for i in (0, 1))
        return Keys(rpn, roi)


def _uniform(seed: int, counts: Sequence[int]) -> list[np.ndarray]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    return [generator.random(count) for count in counts]


def _stack(rows: list[np.ndarray], count: int) -> Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, count, dtype=torch.float64)


def _finite(out: RPNOutput) -> Tensor:
    """(B,) were all objectness logits and deltas of the image finite?"""
    parts = [part.isfinite().flatten(1).all(dim=1) for part in (*out.logits, *out.deltas)]
    return torch.stack(parts).all(dim=0)
