"""Run torchvision's detectors, with weights whose scores differ, on the same pixels as ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from rcnn.model.assign import sample
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import NormalisedBatch
from tests.model import worked

SPREAD = (
    ("rpn.head.cls_logits", 2.0),
    ("rpn.head.bbox_pred", 0.3),
    ("roi_heads.box_predictor.cls_score", 2.0),
    ("roi_heads.box_predictor.bbox_pred", 1.0),
)
"""Layer -> standard deviation of its outputs."""


def spread(model: nn.Module, channels: int = 3) -> nn.Module:
    """Give fresh weights outputs like trained ones: norms with real statistics, then logits and deltas that differ."""
    images = list(torch.rand(2, channels, 96, 128))
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.backbone.train()
    with torch.no_grad():
        model.backbone(torch.randn(2, channels, 96, 128))
        model.eval()
        for norm in norms:
            norm.momentum = 0.1
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.1)
        for name, std in SPREAD:
            outputs: list[Tensor] = []
            layer = model.get_submodule(name)
            hook = layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output.flatten()))
            model(images)
            hook.remove()
            layer.weight *= std / torch.cat(outputs).std()
    return model


@contextmanager
def nms_by_class() -> Iterator[None]:
    """Use torchvision's NMS without offsets between classes, which reduce precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.ops.boxes, "batched_nms", torchvision.ops.boxes._batched_nms_vanilla)
        yield


def run(model: Any, images: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return torchvision's proposals and detections on (B, C, H, W) normalised and padded images."""
    with torch.no_grad(), nms_by_class():
        features = model.backbone(images)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, _ = model.rpn(ImageList(images, list(sizes)), features)
        return proposals, model.roi_heads(features, proposals, list(sizes))[0]


def batch_of(images: Tensor, sizes: Sequence[tuple[int, int]]) -> NormalisedBatch:
    """Return a batch of images that are already normalised."""
    size = torch.tensor(sizes, dtype=images.dtype)
    return NormalisedBatch(images, size, torch.ones_like(size), size)


def assert_same_boxes(theirs: Any, ours: FasterRCNN, images: Tensor, sizes: Sequence[tuple[int, int]], least: int):
    """In float64, both give the same proposals, boxes, labels and scores, with more than `least` per image."""
    expected_proposals, expected = run(theirs, images, sizes)
    with torch.no_grad():
        _, _, proposed, _, found = ours.execute(batch_of(images, sizes))
    for row in range(len(images)):
        valid = proposed.valid[row]
        torch.testing.assert_close(proposed.boxes[row][valid], expected_proposals[row], atol=1e-6, rtol=0)
        valid = found.valid[row]
        assert valid.sum() > least
        assert torch.equal(found.labels[row][valid] + 1, expected[row]["labels"])
        torch.testing.assert_close(found.boxes[row][valid], expected[row]["boxes"], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.scores[row][valid], expected[row]["scores"], atol=1e-9, rtol=0)


class Drawn:
    """A sampler for torchvision that draws the same samples as ours from the same keys."""

    def __init__(self, keys: Tensor, count: int, fraction: float, objects: int = 0) -> None:
        self.keys, self.count, self.fraction, self.objects = keys, count, fraction, objects

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for label, keys in zip(labels, self.keys, strict=True):
            found = len(label) - self.objects
            own = torch.cat((keys[:found], keys[len(keys) - self.objects :]))[: len(label)]
            drawn = sample(worked.assignment(label.clamp(max=1)[None]), own[None], self.count, self.fraction)
            for chosen, masks in ((drawn.positive, positives), (drawn.valid & ~drawn.positive, negatives)):
                mask = torch.zeros(len(label), dtype=torch.uint8)
                mask[drawn.indices[chosen]] = 1
                masks.append(mask)
        return positives, negatives
