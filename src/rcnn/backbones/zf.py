"""The "fast" network of Zeiler and Fergus (2014) as in Faster R-CNN: 5 convolutions, stride 16."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from rcnn.backbones.trunk import SequentialTrunk, Tap, initialise


class WithinChannelNorm(nn.Module):
    """Caffe's LRN of region WITHIN_CHANNEL: x / (1 + alpha * mean of x^2 over 3x3 cells)^beta, with zeros outside."""

    def __init__(self, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x / (1 + self.alpha * F.avg_pool2d(x * x, 3, 1, 1)) ** self.beta


def zf(in_channels: int = 3, last: int | None = None) -> SequentialTrunk:
    """Level 4 alone, 256 channels; stage n is conv n. Pooling rounds up: 600x1000 gives 39x64 cells, 224x224 15x15."""
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, 96, 7, 2, 3),
        relu1=nn.ReLU(inplace=True),
        norm1=WithinChannelNorm(),
        pool1=nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, 2, 2),
        relu2=nn.ReLU(inplace=True),
        norm2=WithinChannelNorm(),
        pool2=nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(inplace=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1),
        relu4=nn.ReLU(inplace=True),
        conv5=nn.Conv2d(384, 256, 3, padding=1),
        relu5=nn.ReLU(inplace=True),
    )
    features = nn.Sequential(layers)
    initialise(features)
    stages = tuple((f"conv{n}",) for n in range(1, 6))
    return SequentialTrunk(features, [Tap(4, "relu5", 256)], stages)
