"""The head of the region proposal network (paper, section 3.1): a sliding window and two sibling layers.

B images, a anchors per cell, n chosen anchors.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnn.model.structures import at_least_float32


class RPNHead(nn.Module):
    """An n x n convolution (or several) and two 1 x 1 siblings, shared by all levels (paper, section 3.1).

    Args:
        in_channels: channels of every level.
        channels: channels of the hidden convolutions.
        anchors: anchors per cell.
        logits: per anchor; 1 (sigmoid) or 2 (softmax) tell objects from background, others classes.
        kernel: side of the sliding window, cells.
        convs: hidden convolutions.
        prior: initial probability of the sigmoids. None: 1 / 2.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        anchors: int,
        *,
        logits: int,
        kernel: int,
        convs: int = 1,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.logits = logits
        hidden = [
            nn.Conv2d(channels if i else in_channels, channels, kernel, padding=kernel // 2) for i in range(convs)
        ]
        self.conv = hidden[0] if convs == 1 else nn.ModuleList(hidden)
        self.cls = nn.Conv2d(channels, logits * anchors, 1)
        self.reg = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (*hidden, self.cls, self.reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]
        if prior is not None:
            nn.init.constant_(self.cls.bias, -math.log(1 / prior - 1))  # type: ignore[arg-type]

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, H * W * a[, n]) and deltas (B, H * W * a, 4), the anchor fastest.

        Several logits per anchor are laid out as in the paper's code: first the `a` channels of the first logit
        (background), then the `a` channels of the second (object), and so on.
        """
        hidden = self.hidden(feature)
        logits = self.cls(hidden).permute(0, 2, 3, 1)  # (B, H, W, logits * a)
        deltas = self.reg(hidden).permute(0, 2, 3, 1)
        if self.logits > 1:
            logits = logits.unflatten(3, (self.logits, -1)).transpose(3, 4)
        logits = logits.flatten(1, 3)
        return at_least_float32(logits), at_least_float32(deltas).unflatten(3, (-1, 4)).flatten(1, 3)

    def hidden(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W): the input of both siblings (256 or 512 channels in the paper)."""
        for conv in self.conv if isinstance(self.conv, nn.ModuleList) else (self.conv,):
            feature = conv(feature).relu()
        return feature

    @property
    def local(self) -> bool:
        """Does the output of an anchor depend on one window only, so that `at_anchors` can compute it?"""
        return isinstance(self.conv, nn.Conv2d)

    def at_anchors(self, levels: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, H_l, W_l), (B, n) anchors of all levels -> their logits and deltas (B, n, 4).

        The output of `forward` at these anchors, computed from the windows around them. Few anchors are sampled, so
        the gradient of the convolution, two thirds of its cost, all but disappears.
        """
        assert isinstance(self.conv, nn.Conv2d)
        anchors = self.reg.out_channels // 4
        seen = patches(levels, index // anchors, self.conv.kernel_size[0])
        hidden = F.linear(seen, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias).relu()
        logits = F.linear(hidden, self.cls.weight.flatten(1), self.cls.bias)
        deltas = F.linear(hidden, self.reg.weight.flatten(1), self.reg.bias).unflatten(2, (-1, 4))
        which = (index % anchors)[..., None]
        deltas = deltas.take_along_dim(which[..., None], dim=2).squeeze(2)
        logits = logits.unflatten(2, (-1, anchors)).take_along_dim(which[..., None], dim=3).squeeze(3)
        return at_least_float32(logits.squeeze(2) if self.logits == 1 else logits), at_least_float32(deltas)


def patches(levels: Sequence[Tensor], cells: Tensor, kernel: int) -> Tensor:
    """The features that a convolution sees at chosen cells.

    Args:
        levels: (B, C, H_l, W_l).
        cells: (B, n) int64, counted row by row and level after level.
        kernel: side of the window.

    Returns:
        (B, n, kernel * kernel * C), zeros beyond the edge of a map.
    """
    batch = cells.shape[0]
    rows = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], dim=1)
    rows = torch.cat((rows, rows.new_zeros(batch, 1, rows.shape[2])), dim=1)
    reach = torch.arange(kernel, device=cells.device) - kernel // 2
    # Of the level of each cell (B, n): its sizes, and the number of its first cell.
    height, width, start = (torch.full_like(cells, number) for number in (*levels[0].shape[2:], 0))
    before = 0
    for below, level in pairwise(levels):
        before += below.shape[2] * below.shape[3]
        later = cells >= before
        height, width = (size.masked_fill(later, n) for size, n in zip((height, width), level.shape[2:], strict=True))
        start = start.masked_fill(later, before)
    height, width, start = (number[..., None, None] for number in (height, width, start))
    place = cells[..., None, None] - start
    y, x = place // width + reach[:, None], place % width + reach  # (B, n, kernel, 1), (B, n, 1, kernel)
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    index = (start + y * width + x).masked_fill(outside, rows.shape[1] - 1)
    image = torch.arange(batch, device=cells.device)[:, None] * rows.shape[1]
    # Not rows[index], whose gradient is added up in no fixed order.
    seen = F.embedding(index.flatten(1) + image, rows.flatten(0, 1))
    return seen.unflatten(1, (cells.shape[1], -1)).flatten(2)
