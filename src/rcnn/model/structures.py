"""The tuples that travel through the model: padded tensors with a leading batch dimension and a mask beside them.

B images, G padded ground truths, A anchors, P proposals, R sampled RoIs, D detections, K classes without background.
Boxes are continuous float xyxy in pixels of the resized image. Masks are bool, True = real. Pairs are (height, width).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Losses = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> (sum, count), both scalars and not yet divided: whoever sums over processes divides afterwards."""


Tensors = TypeVar("Tensors", bound=Any)


class Batch(NamedTuple):
    """Images of one shape bucket, as the model reads them.

    Attributes:
        images: (B, C, H, W) float, normalised, zero where padded.
        sizes: (B, 2) float, height and width of each image after resizing and before padding.
        scales: (B, 2) float, resized size / original size.
        originals: (B, 2) float, height and width in the user's file.
    """

    images: Tensor
    sizes: Tensor
    scales: Tensor
    originals: Tensor


class Targets(NamedTuple):
    """Ground truth of a batch.

    Attributes:
        boxes: (B, G, 4) float.
        labels: (B, G) int64, 0..K-1.
        valid: (B, G) bool.
        ignore: (B, G) bool, crowd or difficult: neither positive nor negative.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignore: Tensor


class RPNOutput(NamedTuple):
    """What the RPN head says of every anchor, one entry a level.

    Attributes:
        logits: (B, A_l) objectness, or (B, A_l, 2) as (background, object); of a one-stage detector one a class, and
            background where there is one.
        deltas: (B, A_l, 4).
        anchors: (A_l, 4).
    """

    logits: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]


class Proposals(NamedTuple):
    """Class-agnostic boxes, best first.

    Attributes:
        boxes: (B, P, 4).
        scores: (B, P) objectness probability (of a one-stage detector, of the best class), 0 where not valid.
        valid: (B, P) bool.
        level: (B, P) int64, the pyramid level of the anchor.
        anchor: (B, P) int64, index into the anchors of all levels laid one after another.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor
    level: Tensor
    anchor: Tensor


class RoIOutput(NamedTuple):
    """What the second stage says of every RoI.

    Attributes:
        logits: (B, R, K + 1), background last.
        deltas: (B, R, K, 4), or (B, R, 1, 4) when class-agnostic.
        features: (B, R, F), the head's last hidden layer.
    """

    logits: Tensor
    deltas: Tensor
    features: Tensor


class Detections(NamedTuple):
    """Final boxes, best first.

    Attributes:
        boxes: (B, D, 4).
        scores: (B, D), 0 where not valid.
        labels: (B, D) int64, 0..K-1.
        valid: (B, D) bool.
        proposal: (B, D) int64, index into the proposals that these were made from; of a one-stage detector, into the
            anchors of all levels.
        finite: (B,) bool: were all logits, deltas and scores of the image finite?
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    proposal: Tensor
    finite: Tensor


class Pass(NamedTuple):
    """What one run of the network over a batch leaves behind; None where it was not asked for, or there is none.

    Attributes:
        levels: (B, C, H_l, W_l) feature maps of the backbone, finest first.
        rpn: what the RPN's head says; None where proposals were given.
        proposals: those of the RPN, or those that were given.
        rois: what the second stage says of the proposals; None without one.
        detections: final boxes.
    """

    levels: tuple[Tensor, ...]
    rpn: RPNOutput | None
    proposals: Proposals | None
    rois: RoIOutput | None
    detections: Detections | None


class Keys(NamedTuple):
    """Uniform numbers in [0, 1) that decide which anchors and RoIs are sampled; float64.

    Attributes:
        rpn: (B, A).
        roi: (B, P + G), proposals first, then ground truths.
    """

    rpn: Tensor
    roi: Tensor


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """Any of the tuples above on a device; the host does not wait for the copies."""
    return type(tensors)(*(part.to(device, non_blocking=True) for part in tensors))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision ends here: boxes and losses are computed in float32, or float64 where the model is."""
    return x if x.dtype == torch.float64 else x.float()


def take(rows: Tensor, index: Tensor) -> Tensor:
    """(B, N, ...), (B, M) int64 -> (B, M, ...): row `index[b, m]` of image b."""
    tail = rows.shape[2:]
    return rows.gather(1, index.view(*index.shape, *(1,) * len(tail)).expand(-1, -1, *tail))
