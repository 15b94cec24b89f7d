"""A detector small enough to differentiate, compile and train in a test: two levels of 8 channels."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from rcnn.config import Settings, merge, validate
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Batch, Keys, NormalisedBatch, Targets, take


class TinyBackbone(nn.Module):
    strides = (8, 16)
    channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.stem(images).tanh()
        return OrderedDict(p3=fine, p4=self.down(fine).tanh())


TREE = {
    "model": {"levels": [3, 4]},
    "anchors": {"sizes": [[16], [32]]},
    "rpn": {"samples": 32, "pre_train": 40, "post_train": 24, "pre_test": 40, "post_test": 24},
    "roi": {
        "levels": [3, 4],
        "size": 3,
        "hidden": 16,
        "samples": 16,
        "detections": 12,
        "canonical_size": 32.0,
        "score": 0.01,
    },
}


def settings(changes: dict | None = None) -> Settings:
    return validate(merge(TREE, changes or {}))


def model(changes: dict | None = None, *, classes: int = 3, seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    net = FasterRCNN(TinyBackbone(), settings(changes), classes)
    with torch.no_grad():  # spread the outputs, so that scores and boxes differ
        for name, parameter in net.named_parameters():
            if "backbone" not in name:
                parameter.normal_(std=0.2)
    return net


def batch(
    count: int = 2,
    height: int = 64,
    width: int = 96,
    *,
    objects: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[AnyBatch, Targets]:
    """Return random images; the last one has no object, the others have a padded row.

    With uint8 they are a `Batch`, with floating-point types a `NormalisedBatch`.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)
    kind, number = NormalisedBatch, dtype
    if dtype == torch.uint8:
        images, kind, number = (128 + 50 * images).clamp(0, 255), Batch, torch.float32
    sizes = torch.tensor([[float(height - 3), float(width - 5)]], dtype=number).repeat(count, 1)
    low = torch.rand(count, objects, 2, generator=generator) * torch.tensor([width - 45.0, height - 45.0])
    sides = 8 + 30 * torch.rand(count, objects, 2, generator=generator)
    boxes = torch.cat((low, low + sides), dim=-1).to(number)
    labels = torch.randint(0, 3, (count, objects), generator=generator)
    valid = torch.ones(count, objects, dtype=torch.bool)
    valid[:, -1] = False
    valid[count - 1 :] = False
    boxes = torch.where(valid[..., None], boxes, 0.0)
    ones = torch.ones(count, 2, dtype=number)
    return kind(images.to(dtype), sizes, ones, sizes.clone()), Targets(boxes, labels, valid, torch.zeros_like(valid))


def keys(net: FasterRCNN, data: AnyBatch, targets: Targets, seed: int = 7) -> Keys:
    return net.keys(data, targets, torch.arange(len(data.images)) + seed)


def scene(net: FasterRCNN, *arguments: int, **options: Any) -> tuple[AnyBatch, Targets, Keys]:
    """Return a `batch` and its keys for a network: the arguments of the loss."""
    data, targets = batch(*arguments, **options)
    return data, targets, keys(net, data, targets)


def rows(tensors: Any, chosen: Any) -> Any:
    """Return some images of a batch, of targets, of keys or of proposals."""
    return type(tensors)(*(part[chosen] for part in tensors))


def total(losses) -> Tensor:
    return sum((value / count.clamp(min=1) for value, count in losses.values()), torch.zeros(()))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def backward(net: nn.Module, losses: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the losses and their gradients, without those of earlier losses."""
    net.zero_grad(set_to_none=True)
    total(losses).backward()
    return dict(losses), gradients(net)


def one_graph(function: Any, backend: Any = "aot_eager") -> Any:
    """Compile a function into one graph; a graph break is an error."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=False)


def assert_one_graph(net, *shapes, backend="aot_eager"):
    """`forward` and `loss` are one graph each, with eager mode's outputs, losses and gradients on such batches."""
    forward, loss = one_graph(net.forward, backend), one_graph(net.loss, backend)
    for shape in shapes:
        data, targets = batch(*shape)
        with torch.no_grad():
            torch.testing.assert_close(forward(data), net(data))
        assert_same_losses(net, net.loss, loss, data, targets)


def assert_same_losses(net, loss, other, data, targets):
    """Two forms of a network's loss give the same losses and gradients."""
    drawn = keys(net, data, targets)
    first, second = (backward(net, function(data, targets, drawn)) for function in (loss, other))
    torch.testing.assert_close(second, first)


def assert_same_at_anchors(head, levels, index):
    """At chosen anchors (B, n), a head has the same values and gradients as on the full feature maps."""
    whole = (torch.cat(part, dim=1) for part in zip(*(head(level) for level in levels), strict=True))
    chosen, expected = head.at_anchors(levels, index), tuple(take(part, index) for part in whole)
    torch.testing.assert_close(chosen, expected, rtol=0, atol=1e-12)
    leaves, weights = [*levels, *head.parameters()], [torch.randn_like(part) for part in chosen]
    gradients = (torch.autograd.grad(parts, leaves, weights) for parts in (chosen, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def assert_padding_reaches_no_gradient(net, data, targets, what):
    """With a batch changed or padded as `what` describes, every gradient is finite, and fillers do not count."""
    if what == "no object":
        targets = targets._replace(valid=targets.valid & False)
    elif what == "fillers":
        data, targets = data._replace(sizes=data.sizes * 0), targets._replace(valid=targets.valid & False)
    elif what == "empty batch":
        data, targets = rows(data, slice(0)), rows(targets, slice(0))
    elif what == "absurd padding":
        boxes = torch.where(targets.valid[..., None], targets.boxes, torch.tensor(float("nan")))
        targets = targets._replace(boxes=boxes, labels=torch.where(targets.valid, targets.labels, -7))
    losses = net.loss(data, targets, keys(net, data, targets))
    total(losses).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} is outside the graph"
        assert parameter.grad.isfinite().all(), name
    if what in ("fillers", "empty batch"):
        assert all(value == 0 and count == 0 for value, count in losses.values())
