"""The tuples that the parts of the model exchange: padded tensors with a leading batch dimension, each with a mask.

B images, G padded ground-truth boxes, A anchors, P proposals, R sampled RoIs, D detections, K classes (background not
counted). Boxes are continuous float xyxy in pixels of the resized image. Masks are bool, True = real. Pairs are
(height, width).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Losses = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> (sum, count), both scalars, not yet divided: the division comes after the sum over processes."""


Tensors = TypeVar("Tensors", bound=Any)


class Batch(NamedTuple):
    """Images of one shape bucket as they were read, padded at the right and the bottom. The network normalises them.

    Attributes:
        images: (B, C, H, W), red first, 0..255; padding may hold any values. The type is uint8, or floating point if
            `preprocess.resize` is `interpolate` (`model.pixels` refuses other types).
        sizes: (B, 2) float, height and width of each image after resizing and before padding.
        scales: (B, 2) float, resized size / original size.
        originals: (B, 2) float, height and width in the user's file.
    """

    images: Tensor
    sizes: Tensor
    scales: Tensor
    originals: Tensor


class NormalisedBatch(NamedTuple):
    """Images of one shape bucket that are already normalised; the backbone receives them unchanged.

    Attributes:
        images: (B, C, H, W), floating point, channels in the order of `preprocess.order`, zeros for padding.
        sizes, scales, originals: as of `Batch`.
    """

    images: Tensor
    sizes: Tensor
    scales: Tensor
    originals: Tensor


AnyBatch = Batch | NormalisedBatch


class Targets(NamedTuple):
    """The ground truth of a batch; G may be 0.

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
    """The output of the RPN head for every anchor, one entry per level.

    Attributes:
        logits: (B, A_l) objectness, or (B, A_l, 2) as (background, object); in a one-stage detector one per class,
            and one for background where the loss is cross-entropy.
        deltas: (B, A_l, 4).
        anchors: (A_l, 4).
    """

    logits: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]

    @property
    def finite(self) -> Tensor:
        """(B,) bool: True if all logits and deltas of the image are finite."""
        return all_finite(*self.logits, *self.deltas)


class Proposals(NamedTuple):
    """Class-agnostic boxes, best first.

    Attributes:
        boxes: (B, P, 4).
        scores: (B, P) objectness probability (in a one-stage detector that of the best class), 0 where not valid.
        valid: (B, P) bool.
        level: (B, P) int64, the pyramid level of the anchor.
        anchor: (B, P) int64, index into the anchors of all levels, concatenated.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor
    level: Tensor
    anchor: Tensor


class RoIOutput(NamedTuple):
    """The output of one head of the second stage for every RoI.

    Attributes:
        boxes: (B, R, 4), the RoIs.
        logits: (B, R, K + 1), background last.
        deltas: (B, R, K, 4), or (B, R, 1, 4) when class-agnostic.
        features: (B, R, F), the head's last hidden layer.
    """

    boxes: Tensor
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
        proposal: (B, D) int64, index of the proposal that the box was refined from; in a one-stage detector the
            index of its anchor.
        finite: (B,) bool, True if all logits, deltas and scores of the image are finite.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    proposal: Tensor
    finite: Tensor


class Pass(NamedTuple):
    """The record of one run of the network over a batch. A field is None if it was not requested or does not exist.

    Attributes:
        levels: (B, C, H_l, W_l) feature maps of the backbone, finest first.
        rpn: the output of the RPN's head; None if proposals were given.
        proposals: the RPN's, or those that were passed in.
        rois: the output of every head of the second stage; the first head reads the proposals. Empty if it was not
            requested or there is no second stage.
        detections: final boxes.
    """

    levels: tuple[Tensor, ...]
    rpn: RPNOutput | None
    proposals: Proposals | None
    rois: tuple[RoIOutput, ...]
    detections: Detections | None

    @property
    def finite(self) -> Tensor:
        """(B,) bool: True if everything that the detections, or else the proposals, were computed from is finite."""
        if self.detections is not None:
            return self.detections.finite
        assert self.rpn is not None
        return self.rpn.finite


class Keys(NamedTuple):
    """Uniform numbers in [0, 1) that decide which anchors and RoIs are sampled; float64.

    Attributes:
        rpn: (B, A).
        roi: (B, P + G), proposals first, then ground-truth boxes.
    """

    rpn: Tensor
    roi: Tensor


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """Copy any of the tuples above to a device. The host does not wait for the copies."""
    return type(tensors)(*(part.to(device, non_blocking=True) for part in tensors))


def pinned(tensors: Tensors) -> Tensors:
    """Copy any of the tuples above to pinned memory, from which a GPU can copy them while it computes."""
    return type(tensors)(*(part.pin_memory() for part in tensors))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU. Tensors on a device are packed into one download, so that the host synchronises once."""
    on_device = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if not on_device:
        return list(tensors)
    device_bytes = pack(on_device)
    on_cuda = device_bytes.is_cuda
    host_bytes = device_bytes.to("cpu", non_blocking=on_cuda)  # into pinned memory
    if on_cuda:
        torch.cuda.current_stream(device_bytes.device).synchronize()
    copied = iter(unpack(host_bytes, on_device))
    return [tensor if tensor.device.type == "cpu" else next(copied) for tensor in tensors]


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bytes (n,) of tensors, largest elements first, so that each tensor is aligned to its element size."""
    return torch.cat([tensors[i].flatten().view(torch.uint8) for i in _by_size(tensors)])


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `pack`: return views of the bytes with the shapes and types of the tensors `like`."""
    order = _by_size(like)
    parts = packed.split([like[i].numel() * like[i].element_size() for i in order])
    found = {i: part.view(like[i].dtype).view(like[i].shape) for i, part in zip(order, parts, strict=True)}
    return [found[i] for i in range(len(like))]


def _by_size(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())


def all_finite(*parts: Tensor) -> Tensor:
    """Tensors (B, ...) -> (B,) bool: True if all numbers of an image are finite."""
    # Concatenated first, because the check takes four kernels on a GPU.
    return torch.cat([part.flatten(1) for part in parts], dim=1).isfinite().all(dim=1)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """(B, N, ...), (B, M) int64 -> (B, M, ...): row `index[b, m]` of image b."""
    tail = rows.shape[2:]
    return rows.gather(1, index.view(*index.shape, *(1,) * len(tail)).expand(-1, -1, *tail))


def take_truth(rows: Tensor, index: Tensor) -> Tensor:
    """`take` from a field of `Targets` (B, G, ...); zeros if it has no column (G = 0), in which case `index` is 0."""
    return take(rows, index) if rows.shape[1] else rows.new_zeros(*index.shape, *rows.shape[2:])
