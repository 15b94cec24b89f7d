"""One-stage detection: an RPN whose head tells classes where it told object from background (paper, table 10).

Anchors, labels, sampling, box loss and proposals are the RPN's; background and the last steps are the second stage's.
B images, A anchors, n anchors that are trained, K classes, D detections.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rcnn.config import RPN, Anchors, RoI
from rcnn.model.assign import Assignment, Sample
from rcnn.model.fast_rcnn import class_loss, class_probabilities, final_boxes
from rcnn.model.losses import focal_loss
from rcnn.model.rpn import RegionProposalNetwork, all_finite
from rcnn.model.structures import Detections, Losses, RPNOutput, Targets, take

PRIOR = 0.01
"""What focal loss starts from: the probability of any class at any anchor. From 1 / 2 the many negatives diverge."""


class OneStageDetector(RegionProposalNetwork):
    """Feature maps in, final boxes or losses out. Boxes are class-agnostic: an anchor has one.

    With `rpn.loss=cross-entropy` an anchor has K + 1 logits, and the RPN's sample of anchors is trained; for one class
    this is the RPN with two logits. With `focal` it has K, each a class against everything else, and all anchors that
    are not ignored are trained (arXiv 1708.02002).

    Args:
        in_channels: channels of every level.
        strides: stride of every level, pixels, finest first.
        anchors: the anchor rule; one tuple of sizes a level.
        settings: head, label rules, sampling, losses, proposals.
        final: `score`, `min_size`, `nms` and `detections` are read.
        classes: K.
    """

    def __init__(
        self, in_channels: int, strides: Sequence[int], anchors: Anchors, settings: RPN, final: RoI, classes: int
    ) -> None:
        focal = settings.loss == "focal"
        super().__init__(in_channels, strides, anchors, settings, logits=classes if focal else classes + 1)
        self.focal, self.final = focal, final
        if focal:
            nn.init.constant_(self.head.cls.bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, A, K + 1), or with focal loss (B, A, K) or (B, A) of one class -> (B, A, K)."""
        return self._by_class(logits).sigmoid() if self.focal else class_probabilities(logits)

    def scores(self, logits: Tensor) -> Tensor:
        """(B, A, ...) logits -> (B, A) logit of the best class's probability."""
        return self.probabilities(logits).amax(dim=-1).logit()

    def detect(self, out: RPNOutput, sizes: Tensor) -> Detections:
        """The best anchors of each level by their best class, decoded; then the last steps of the second stage."""
        found = self.candidates(out, sizes, self.settings.pre_test)
        probability = self.probabilities(take(torch.cat(out.logits, dim=1), found.anchor))
        best = final_boxes(found.boxes[:, :, None], probability, found.valid, all_finite(out), self.final)
        return best._replace(proposal=take(found.anchor, best.proposal))

    def for_loss(self, levels: Sequence[Tensor], image_shape: tuple[int, int]) -> RPNOutput:
        """As of the RPN; with focal loss gradients flow through all anchors."""
        return self(levels, image_shape) if self.focal else super().for_loss(levels, image_shape)

    def draw(self, out: RPNOutput, labels: Assignment, targets: Targets, keys: Tensor) -> Sample:
        """As of the RPN; with focal loss all anchors, valid where they are not ignored."""
        if not self.focal:
            return super().draw(out, labels, targets, keys)
        everyone = torch.arange(labels.label.shape[1], device=labels.label.device).expand_as(labels.gt)
        return Sample(everyone, labels.label >= 0, labels.label == 1)

    def sample_loss(
        self, out: RPNOutput, anchors: Tensor, labels: Assignment, drawn: Sample, targets: Targets, sizes: Tensor
    ) -> Losses:
        """`rpn_class` and `rpn_box` of sampled anchors; with focal loss both are divided by the positives."""
        if self.focal:
            classification, box = self.anchor_losses(out, anchors, labels, drawn, targets)
            count = drawn.positive.sum()
            return {"rpn_class": (classification.sum(), count), "rpn_box": (box.sum(), count)}
        losses = super().sample_loss(out, anchors, labels, drawn, targets, sizes)
        return {"rpn_class": losses["rpn_objectness"], "rpn_box": losses["rpn_box"]}

    def class_loss(self, logits: Tensor, positive: Tensor, targets: Targets, gt: Tensor) -> Tensor:
        """Loss (B, n) of the classes of sampled anchors, where positive that of the matched objects `gt` (B, n)."""
        label = take(targets.labels, gt)
        if not self.focal:
            return class_loss(logits, positive, label)
        by_class = self._by_class(logits)
        wanted = (label[..., None] == torch.arange(by_class.shape[-1], device=label.device)) & positive[..., None]
        return focal_loss(by_class, wanted, self.settings.focal_gamma, self.settings.focal_alpha).sum(dim=-1)

    def _by_class(self, logits: Tensor) -> Tensor:
        """(B, n, K) also of one class, whose logits are (B, n) as the RPN's are."""
        return logits[..., None] if self.head.logits == 1 else logits
