"""Faster R-CNN: a backbone, the region proposal network, and Fast R-CNN on its proposals.

`forward`, `propose` and `loss` are each one tensor program of fixed shape: no loop over images, and no shape depends on
data.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.errors import SettingsError
from rcnn.model import boxes as box_ops
from rcnn.model import philox
from rcnn.model.fast_rcnn import SampledRoIs, build_second_stage
from rcnn.model.normalise import Pixels
from rcnn.model.one_stage import Classes, FocalClasses, detect
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.structures import AnyBatch, Detections, Keys, Losses, Pass, Proposals, RPNOutput, Targets, take
from rcnn.model.suppress import Suppression


class FasterRCNN(nn.Module):
    """The complete detector. With `roi.head=none` it is the first stage alone, and `fast_rcnn` is None.

    The first stage alone has no detections, unless it predicts classes itself (`rpn.classify=classes`).

    Args:
        backbone: maps (B, C, H, W) to a dictionary of feature maps, finest first, and has the attributes `strides` (one
            per output) and `channels` (of every output).
        settings: settings of all parts.
        classes: K, background not counted.
        head: replaces the second stage's head of `roi.head`; maps (N, C, S, S) RoI features to (N, `out_features`).

    Attributes:
        suppression: chooses proposals and detections; it can be replaced before the first prediction.

    Raises:
        SettingsError: a level of `roi.levels` is not among the backbone's, `anchors.sizes` does not fit them, or
            `roi.head` needs a `head` that is not passed.
    """

    def __init__(self, backbone: nn.Module, settings: Settings, classes: int, head: nn.Module | None = None) -> None:
        super().__init__()
        strides = tuple(int(stride) for stride in backbone.strides)  # type: ignore[union-attr]
        channels = int(backbone.channels)  # type: ignore[arg-type]
        numbers = [int(math.log2(stride)) for stride in strides]
        self.settings, self.classes, self.suppression = settings, classes, Suppression.of(settings)
        self.pixels, self.backbone = Pixels(settings.preprocess), backbone
        meaning = None
        if settings.rpn.classify == "classes":
            meaning = FocalClasses(classes, settings.rpn) if settings.rpn.loss == "focal" else Classes(classes)
        self.rpn = RegionProposalNetwork(channels, strides, settings.anchors, settings.rpn, meaning=meaning)
        self.roi_levels, self.fast_rcnn = (), None
        if settings.roi.head == "none":
            return
        read = settings.roi.levels if len(strides) > 1 else tuple(numbers)
        missing = [level for level in read if level not in numbers]
        if missing:
            raise SettingsError(
                f"roi.levels names {missing}, but the backbone's levels are {numbers} "
                f"(strides {strides}); leave these out"
            )
        # Among levels of equal stride only the first is read, since the size of a RoI does not distinguish them.
        self.roi_levels = tuple(numbers.index(level) for level in dict.fromkeys(read))
        roi_strides = [strides[i] for i in self.roi_levels]
        self.fast_rcnn = build_second_stage(settings, channels, roi_strides, classes, head)

    def forward(self, batch: AnyBatch) -> Detections:
        """Return the final boxes of every image, in pixels of the resized image."""
        detections = self.execute(batch, fields=("detections",)).detections
        assert detections is not None
        return detections

    def propose(self, batch: AnyBatch) -> Proposals:
        """Return class-agnostic boxes of every image, in pixels of the resized image."""
        proposals = self.execute(batch, fields=("proposals",)).proposals
        assert proposals is not None
        return proposals

    def execute(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "rois", "detections"),
    ) -> Pass:
        """Run the network once over a batch, and return the results of its parts. Gradients flow if they are enabled.

        Args:
            batch: images.
            proposals: replace the RPN's; in pixels of the resized images.
            fields: fields of the record to compute; others are computed only if these need them.
        """
        levels = tuple(self.backbone(self.pixels(batch)).values())
        rpn, rois, detections = None, (), None
        second = self.fast_rcnn if "rois" in fields or "detections" in fields else None
        if proposals is None:
            rpn = self.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
            if second is not None or "proposals" in fields:
                s = self.settings.rpn
                proposals = self.rpn.propose(
                    rpn, batch.sizes, pre=s.pre_test, post=s.post_test, suppress=self.suppression.proposals
                )
        if second is not None:
            assert proposals is not None
            rois = second.execute(self._roi_maps(levels), proposals.boxes, batch.sizes)
            detections = second.detect(rois, proposals, batch.sizes, self.suppression.detections)
            if rpn is not None:
                # PyTorch 2.11 does not compile `_replace`.
                detections = Detections(*detections[:-1], detections.finite & rpn.finite)
        elif rpn is not None and "detections" in fields:
            detections = (
                detect(self.rpn, rpn, batch.sizes, self.settings.roi, self.suppression.detections)
                if self.settings.predicts_classes
                else no_detections(rpn)
            )
        return Pass(levels, rpn, proposals, rois, detections)

    def loss(
        self,
        batch: AnyBatch,
        targets: Targets,
        keys: Keys,
        *,
        proposals: Proposals | None = None,
        pass_: Pass | None = None,
        box_gradient: bool = False,
        target_gradient: bool = False,
    ) -> Losses:
        """Return name -> (sum, count): `rpn_objectness`, `rpn_box`, and with a second stage `roi_class`, `roi_box`.

        A one-stage detector has `rpn_class` and `rpn_box`. The losses are equal in train and eval mode if there is no
        dropout and no trained batch norm.

        Args:
            batch: images.
            targets: the ground truth.
            keys: see `keys`.
            proposals: in pixels of the resized images. If passed, only the second stage's losses on them are computed.
            pass_: a pass over this batch, whose feature maps and RPN output are used. None: the backbone runs.
            box_gradient: whether the gradient of the second stage's loss also flows to the RPN through the coordinates
                of its proposals. If not, these are constants, as in approximate joint training (paper, section 3.2).
                The choice of proposals and their matches never have a gradient.
            target_gradient: whether, with `box_gradient`, it also flows through the second stage's regression targets.
        """
        levels = tuple(self.backbone(self.pixels(batch)).values()) if pass_ is None else pass_.levels
        losses: dict[str, tuple[Tensor, Tensor]] = {}
        out, again = None if pass_ is None else pass_.rpn, False
        if proposals is None:
            if out is None:
                # A few hundred of a hundred thousand anchors are trained: `loss` recomputes them with a gradient.
                again = self.rpn.learns_from_samples
                with torch.set_grad_enabled(torch.is_grad_enabled() and not again):
                    out = self.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
            losses.update(self.rpn.loss(out, targets, batch.sizes, keys.rpn, levels, again=again))
            if self.fast_rcnn is None:
                return losses
            s = self.settings.rpn
            with torch.no_grad():  # the choice of proposals has no gradient
                proposals = self.rpn.propose(
                    out, batch.sizes, pre=s.pre_train, post=s.post_train, suppress=self.suppression.proposals
                )
        assert self.fast_rcnn is not None
        maps, rois = self._roi_maps(levels), None
        sampled = self.fast_rcnn.sample(maps, proposals, targets, keys.roi)
        if box_gradient:
            assert out is not None
            rois = self._decoded_again(out, levels if again else None, proposals, sampled, batch.sizes)
        second = self.fast_rcnn.loss(maps, sampled, targets, batch.sizes, rois=rois, target_gradient=target_gradient)
        return {**losses, **second}

    def _decoded_again(
        self,
        out: RPNOutput,
        again: Sequence[Tensor] | None,
        proposals: Proposals,
        sampled: SampledRoIs,
        sizes: Tensor,
    ) -> Tensor:
        """Decode the sampled RoIs (B, R, 4) from their anchors, with gradient; ground-truth boxes are constants.

        `again` is as for `RegionProposalNetwork.at`.
        """
        indices, count = sampled.drawn.indices, proposals.anchor.shape[1]
        anchor = take(proposals.anchor, indices.clamp(max=count - 1))  # (B, R) of the anchors of all levels
        _, deltas = self.rpn.at(out, anchor, again)
        boxes = box_ops.clip(box_ops.decode(deltas, torch.cat(out.anchors)[anchor]), sizes)
        proposed = sampled.drawn.valid & (indices < count)
        return torch.where(proposed[..., None], boxes, sampled.rois)

    def _roi_maps(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the feature maps that RoIs are read from."""
        return [levels[i] for i in self.roi_levels]

    def keys(self, batch: AnyBatch, targets: Targets, seeds: Tensor, proposals: Proposals | None = None) -> Keys:
        """Return uniform numbers for `loss`, on the device of the images; row i depends on `seeds[i]` alone.

        There are at least as many numbers as anchors: since pooling may round up or down, they are drawn for one more
        row and column of cells. `proposals` are those passed to `loss`, if any; there may be more than the RPN's.
        """
        height, width = batch.images.shape[2:]
        cells = sum((height // stride + 2) * (width // stride + 2) for stride in self.rpn.strides)
        passed = 0 if proposals is None else proposals.boxes.shape[1]
        max_proposals = max(self.settings.rpn.post_train, self.settings.rpn.post_test, passed)
        counts = (cells * self.rpn.per_cell, max_proposals + targets.boxes.shape[1])
        seeds = seeds.to(batch.images.device, non_blocking=True)
        return Keys(*philox.uniform(seeds, sum(counts)).split(counts, dim=1))


def no_detections(out: RPNOutput) -> Detections:
    """Return the empty detections (B, 0) of an RPN alone."""
    finite = out.finite
    empty = finite[:, None][:, :0]  # (B, 0)
    boxes = empty.float()[..., None].expand(-1, -1, 4)
    return Detections(boxes, empty.float(), empty.long(), empty, empty.long(), finite)
