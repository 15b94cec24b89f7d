"""A region proposal network on a backbone of timm, trained from random weights on made-up pictures.

In a clone: `pip install '.[timm]'`, then `python examples/rpn_on_timm.py` (half a minute; nothing is downloaded). It
prints the share of rectangles that one of the ten best proposals meets with IoU 0.5, before and after training.
"""

import timm
import torch
from torch import Tensor, nn

from rcnn import RegionProposalNetwork
from rcnn.config import RPN, Anchors
from rcnn.model.boxes import pairwise_iou
from rcnn.model.structures import Proposals, RPNOutput, Targets


class Proposer(nn.Module):
    """Any network of timm that gives feature maps, and an RPN on one of them."""

    def __init__(self, name: str, level: int = 3) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, features_only=True, out_indices=(level,), pretrained=False)
        info = self.backbone.feature_info
        anchors = Anchors(sizes=((24, 40, 64),), ratios=(0.5, 1.0, 2.0))  # one tuple of sizes a level, pixels
        self.rpn = RegionProposalNetwork(info.channels()[0], info.reduction(), anchors, RPN(channels=64))

    def forward(self, images: Tensor) -> RPNOutput:
        """(B, 3, H, W) -> logits, deltas and anchors."""
        return self.rpn(self.backbone(images), images.shape[2:])


def pictures(count: int, side: int) -> tuple[Tensor, Tensor, Targets]:
    """Noise with one bright rectangle each: images, their heights and widths, and the objects in them."""
    sides = torch.randint(side // 5, side // 2, (count, 2))
    corners = (torch.rand(count, 2) * (side - sides)).long()
    images, boxes = 0.3 * torch.rand(count, 3, side, side), torch.cat((corners, corners + sides), dim=1)
    for image, (x1, y1, x2, y2) in zip(images, boxes.tolist(), strict=True):
        image[:, y1:y2, x1:x2] += 0.7
    there = torch.ones(count, 1, dtype=torch.bool)
    targets = Targets(boxes[:, None].float(), torch.zeros(count, 1, dtype=torch.int64), valid=there, ignore=~there)
    return images, torch.full((count, 2), float(side)), targets


@torch.no_grad()
def recall(model: Proposer, side: int) -> float:
    """Share of objects that one of the ten best proposals meets."""
    images, sizes, targets = pictures(32, side)
    found: Proposals = model.eval().rpn.propose(model(images), sizes, pre=200, post=10)
    return (pairwise_iou(targets.boxes, found.boxes) >= 0.5).any(dim=2).float().mean().item()


def main(name: str = "mobilenetv3_small_050", steps: int = 100, batch: int = 8, side: int = 128) -> tuple[float, float]:
    """Train for `steps` steps; recall before and after."""
    torch.manual_seed(0)
    model = Proposer(name)
    before, optimizer = recall(model, side), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images, sizes, targets = pictures(batch, side)
        out = model.train()(images)
        keys = torch.rand(batch, len(out.anchors[0]), dtype=torch.float64)  # they decide which anchors are trained
        losses = model.rpn.loss(out, targets, sizes, keys)  # name -> (sum, count)
        optimizer.zero_grad()
        sum(total / count for total, count in losses.values()).backward()
        optimizer.step()
    return before, recall(model, side)


if __name__ == "__main__":
    print("recall of ten proposals: {:.2f} before, {:.2f} after training".format(*main()))
