"""One-stage detection: an RPN whose head predicts classes instead of objectness.

The paper only mentions it: the one-stage detector of its table 10 is Fast R-CNN on `sliding_windows`.

Anchors, labels, sampling, box loss and proposals are those of the RPN. Only the meaning of the logits differs, and the
last steps are those of the second stage. B images, A anchors, n anchors that are trained, K classes, D detections.
"""

import torch
from torch import Tensor

from rcnn.config import RPN, RoI
from rcnn.model.fast_rcnn import class_loss, class_probabilities, final_boxes
from rcnn.model.losses import focal_loss
from rcnn.model.rpn import Objectness, RegionProposalNetwork
from rcnn.model.structures import Detections, RPNOutput, take
from rcnn.model.suppress import Suppressor


class Classes(Objectness):
    """K + 1 logits per anchor, background last; cross-entropy over the RPN's sample of anchors.

    With one class, this is the RPN with two logits.
    """

    name = "rpn_class"

    def __init__(self, classes: int) -> None:
        self.logits = classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, n, ...) -> (B, n, K)."""
        return class_probabilities(logits)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, A, ...) -> (B, A) logit of the best class's probability."""
        return self.probabilities(logits).amax(dim=-1).logit()

    def loss(self, logits: Tensor, positive: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (B, n) of anchors; the class of a positive anchor is in `labels` (B, n)."""
        return class_loss(logits, positive, labels)


class FocalClasses(Classes):
    """K logits per anchor, one for each class against all others; focal loss of all anchors (arXiv 1708.02002)."""

    of_every_anchor = True
    prior = 0.01
    """Initial probability of every class at every anchor. With 1 / 2, the many negatives make training diverge."""

    def __init__(self, classes: int, settings: RPN) -> None:
        self.logits, self._gamma, self._alpha = classes, settings.focal_gamma, settings.focal_alpha

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, n, K), or (B, n) of one class -> (B, n, K)."""
        return self._by_class(logits).sigmoid()

    def loss(self, logits: Tensor, positive: Tensor, labels: Tensor) -> Tensor:
        """Loss (B, n), summed over the classes."""
        by_class = self._by_class(logits)
        target = (labels[..., None] == torch.arange(by_class.shape[-1], device=labels.device)) & positive[..., None]
        return focal_loss(by_class, target, self._gamma, self._alpha).sum(dim=-1)

    def _by_class(self, logits: Tensor) -> Tensor:
        """Return logits as (B, n, K), also for one class, for which the head returns (B, n)."""
        return logits[..., None] if self.logits == 1 else logits


def detect(
    rpn: RegionProposalNetwork, out: RPNOutput, sizes: Tensor, settings: RoI, suppress: Suppressor
) -> Detections:
    """Decode the best anchors of each level, ranked by their best class, and select boxes as the second stage does.

    Args:
        rpn: a network whose `meaning` is `Classes`.
        out: the output of its head.
        sizes: (B, 2) height and width of each unpadded image.
        settings: `score`, `min_size` and `detections` are read.
        suppress: chooses the boxes.
    """
    assert isinstance(rpn.meaning, Classes)
    best = rpn.candidates(out, sizes, rpn.settings.pre_test)
    probability = rpn.meaning.probabilities(take(torch.cat(out.logits, dim=1), best.anchor))
    found = final_boxes(best.boxes[:, :, None], probability, best.valid, out.finite, settings, suppress)
    anchor = take(best.anchor, found.proposal)
    return Detections(found.boxes, found.scores, found.labels, found.valid, anchor, found.finite)
