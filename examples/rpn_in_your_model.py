"""A region proposal network inside a model of your own, with a second part of your own.

`python examples/rpn_in_your_model.py` (half a minute): where is the fruit, and how ripe is it? The pictures, a disc
each from green to red, are made up. The second part gives a number, no class, and shares the RPN's features.
"""

import torch
from torch import Tensor, nn

from rcnn import RegionProposalNetwork
from rcnn.config import RPN, Anchors
from rcnn.model.structures import Targets
from rcnn.ops import roi_align

SIDE, STRIDE, CHANNELS = 96, 8, 32


class FruitScale(nn.Module):
    """Images (B, 3, SIDE, SIDE) -> boxes (B, P, 4) and how ripe each is (B, P)."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in ((3, 16), (16, 32), (32, CHANNELS))]
        self.features = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        anchors = Anchors(sizes=((14, 20, 28),), ratios=(1.0,))  # one tuple of sizes a level
        self.rpn = RegionProposalNetwork(CHANNELS, (STRIDE,), anchors, RPN(samples=16))
        self.ripeness = nn.Sequential(nn.Linear(CHANNELS * 3 * 3, 32), nn.ReLU(), nn.Linear(32, 1))

    def judge(self, feature: Tensor, boxes: Tensor) -> Tensor:
        """The second part: (B, P, 4) -> (B, P), from the features inside each box."""
        level = torch.zeros(boxes.shape[:2], dtype=torch.int64)  # there is one
        pooled = roi_align([feature], boxes, level, (STRIDE,), 3, 2, True)  # (B, P, C, 3, 3)
        return self.ripeness(pooled.flatten(2)).squeeze(2)

    def loss(self, images: Tensor, targets: Targets, ripe: Tensor) -> Tensor:
        """The RPN's two losses, and the error of the second part on the labelled boxes."""
        feature, sizes = self.features(images), torch.full((len(images), 2), float(SIDE))
        out = self.rpn([feature], (SIDE, SIDE))
        keys = torch.rand(len(images), len(out.anchors[0]), dtype=torch.float64)  # they decide what is sampled
        parts = self.rpn.loss(out, targets, sizes, keys)  # name -> (sum, count)
        error = (self.judge(feature, targets.boxes) - ripe).square().mean()
        return sum(total / count for total, count in parts.values()) + error

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The best box of every image, and its ripeness."""
        feature, sizes = self.features(images), torch.full((len(images), 2), float(SIDE))
        boxes = self.rpn.propose(self.rpn([feature], (SIDE, SIDE)), sizes, pre=100, post=1).boxes
        return boxes, self.judge(feature, boxes)


def fruits(count: int) -> tuple[Tensor, Targets, Tensor]:
    """Pictures of one disc each, where it is, and how ripe, from 0 (green) to 1 (red)."""
    radius, ripe = 6 + 10 * torch.rand(count, 1), torch.rand(count, 1)
    centre = radius + torch.rand(count, 2) * (SIDE - 2 * radius)
    y, x = torch.meshgrid(*(torch.arange(SIDE) + 0.5,) * 2, indexing="ij")
    disc = (x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2 < radius[..., None] ** 2
    colour = torch.stack((ripe, 1 - ripe, torch.zeros_like(ripe)), dim=1)[..., None]
    images = torch.where(disc[:, None], colour, 0.2 * torch.rand(count, 3, SIDE, SIDE))
    boxes, there = torch.cat((centre - radius, centre + radius), dim=1)[:, None], torch.ones_like(ripe).bool()
    return images, Targets(boxes, torch.zeros(count, 1, dtype=torch.int64), valid=there, ignore=~there), ripe


def main(steps: int = 200, batch: int = 8) -> tuple[float, float]:
    """Train, then look at new pictures: mean error of the corners, pixels, and of the ripeness."""
    torch.manual_seed(0)
    model = FruitScale()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(*fruits(batch)).backward()
        optimizer.step()
    images, targets, ripe = fruits(32)
    boxes, judged = model(images)
    return (boxes - targets.boxes).abs().mean().item(), (judged - ripe).abs().mean().item()


if __name__ == "__main__":
    print("boxes are {:.1f} pixels off, ripeness {:.2f}".format(*main()))
