"""The head of the region proposal network (paper, section 3.1): a sliding window and two sibling layers.

A pyramid of filters (paper, figure 1b) has several windows of different sizes, each with its own sibling layers.
B images, a anchors per cell, n chosen anchors.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcnn.config import RPN
from rcnn.ops.rois import at_least_float32


class RPNHead(nn.Module):
    """An n x n convolution (or several) and two 1 x 1 siblings, shared by all levels (paper, section 3.1).

    Args:
        in_channels: channels of every level.
        channels: channels of the hidden convolutions.
        anchors: anchors per cell.
        logits: number per anchor; 1 (sigmoid) or 2 (softmax) for objectness, otherwise one per class.
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
        widths = pairwise((in_channels, *(channels,) * convs))
        hidden = [nn.Conv2d(before, after, kernel, padding=kernel // 2) for before, after in widths]
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

        The channels of several logits per anchor are ordered as in the paper's code: the `a` channels of the first
        logit (background), then the `a` channels of the second (object), and so on.
        """
        hidden = self.hidden(feature)
        logits = self.cls(hidden).permute(0, 2, 3, 1)  # (B, H, W, logits * a)
        deltas = self.reg(hidden).permute(0, 2, 3, 1)
        if self.logits > 1:
            logits = logits.unflatten(3, (self.logits, -1)).transpose(3, 4)
        logits = logits.flatten(1, 3)
        return at_least_float32(logits), at_least_float32(deltas).unflatten(3, (-1, 4)).flatten(1, 3)

    def hidden(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H, W), the input of both siblings (paper, section 3.1: 256 or 512 channels)."""
        for conv in self.conv if isinstance(self.conv, nn.ModuleList) else (self.conv,):
            feature = conv(feature).relu()
        return feature

    @property
    def local(self) -> bool:
        """True if the output of an anchor depends on one window only, so that `at_anchors` can compute it."""
        return isinstance(self.conv, nn.Conv2d)

    def at_anchors(self, levels: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps (B, C, H_l, W_l), (B, n) anchors of all levels -> their logits and deltas (B, n, 4).

        This is the output of `forward` at these anchors, computed from the windows around them. Since few anchors are
        sampled, the gradient of the convolution, two thirds of its cost, takes almost no time.
        """
        assert isinstance(self.conv, nn.Conv2d)
        anchors = self.reg.out_channels // 4
        windows = patches(levels, index // anchors, self.conv.kernel_size[0])
        hidden = F.linear(windows, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias).relu()
        logits = F.linear(hidden, self.cls.weight.flatten(1), self.cls.bias)
        deltas = F.linear(hidden, self.reg.weight.flatten(1), self.reg.bias).unflatten(2, (-1, 4))
        which = (index % anchors)[..., None]
        deltas = deltas.take_along_dim(which[..., None], dim=2).squeeze(2)
        logits = logits.unflatten(2, (-1, anchors)).take_along_dim(which[..., None], dim=3).squeeze(3)
        return at_least_float32(logits.squeeze(2) if self.logits == 1 else logits), at_least_float32(deltas)


class FilterPyramid(nn.Module):
    """Sliding windows of several sizes, each with its own siblings and its share of the anchors of a cell.

    This is a pyramid of filters (paper, figure 1b). The sizes of a level are divided among the windows in order: with
    sizes 128, 256, 512 and windows 3, 5, 7, the window of 3 x 3 cells predicts the anchors of size 128, of all ratios.
    All levels share the layers. Inputs and outputs are those of one `RPNHead`, the anchors in the same order.

    Args:
        in_channels: channels of every level.
        channels: channels of the hidden convolutions.
        anchors: anchors per cell, a multiple of the number of windows.
        kernels: sides of the windows, cells.
        runs: how often the anchors of a cell, in order, run through the sizes: once if the size is the outer index
            (`anchors.order=size`), once per ratio if it is the inner one.
        logits, convs, prior: as for `RPNHead`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        anchors: int,
        *,
        logits: int,
        kernels: Sequence[int],
        runs: int,
        convs: int = 1,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.anchors, self.runs = anchors, runs
        own = anchors // len(kernels)
        self.windows = nn.ModuleList(
            RPNHead(in_channels, channels, own, logits=logits, kernel=kernel, convs=convs, prior=prior)
            for kernel in kernels
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, H * W * a[, n]) and deltas (B, H * W * a, 4), the anchor fastest."""
        logits, deltas = zip(*(window(feature) for window in self.windows), strict=True)
        return self._in_order(logits), self._in_order(deltas)

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """The outputs (B, H * W * a / m, ...) of m windows as one (B, H * W * a, ...)."""
        width = self.anchors // (self.runs * len(self.windows))  # anchors of a window in a run
        return torch.cat([part.unflatten(1, (-1, width)) for part in parts], dim=2).flatten(1, 2)

    @property
    def local(self) -> bool:
        """As `RPNHead.local`."""
        return all(window.local for window in self.windows)

    def at_anchors(self, levels: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """As `RPNHead.at_anchors`: (B, n) anchors -> their logits and deltas (B, n, 4).

        Every window is computed at every anchor, since shapes must not depend on which anchors are sampled.
        """
        width = self.anchors // (self.runs * len(self.windows))
        run, rest = index // (width * len(self.windows)), index % (width * len(self.windows))
        index = run * width + rest % width  # into the anchors of each window, the same for all windows
        windows = cast("list[RPNHead]", list(self.windows))
        logits, deltas = zip(*(window.at_anchors(levels, index) for window in windows), strict=True)
        window = rest // width
        return _chosen(logits, window), _chosen(deltas, window)


def _chosen(parts: tuple[Tensor, ...], which: Tensor) -> Tensor:
    """(B, n, ...) of each of m parts, (B, n) indices 0..m - 1 -> (B, n, ...), each row from the part of its index."""
    stacked = torch.stack(parts, dim=2)  # (B, n, m, ...)
    which = which.view(*which.shape, *(1,) * (stacked.dim() - 2))
    return stacked.take_along_dim(which, dim=2).squeeze(2)


def build_head(
    in_channels: int, settings: RPN, *, anchors: int, runs: int, logits: int, prior: float | None = None
) -> RPNHead | FilterPyramid:
    """Return the head that `rpn.kernel` describes, with one window or several; arguments as for `FilterPyramid`."""
    shape = (in_channels, settings.channels or in_channels, anchors)
    options: dict[str, Any] = {"logits": logits, "convs": settings.convs, "prior": prior}
    if isinstance(settings.kernel, int):
        return RPNHead(*shape, kernel=settings.kernel, **options)
    return FilterPyramid(*shape, kernels=settings.kernel, runs=runs, **options)


def patches(levels: Sequence[Tensor], cells: Tensor, kernel: int) -> Tensor:
    """Return the inputs of a convolution at chosen cells.

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
    # The size of the level of each cell (B, n), and the number of the level's first cell.
    height, width, start = (torch.full_like(cells, number) for number in (*levels[0].shape[2:], 0))
    before = 0
    for below, level in pairwise(levels):
        before += below.shape[2] * below.shape[3]
        later = cells >= before
        height, width = (size.masked_fill(later, n) for size, n in zip((height, width), level.shape[2:], strict=True))
        start = start.masked_fill(later, before)
    height, width, start = (number[..., None, None] for number in (height, width, start))
    cell = cells[..., None, None] - start  # within its level
    y, x = cell // width + reach[:, None], cell % width + reach  # (B, n, kernel, 1), (B, n, 1, kernel)
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    index = (start + y * width + x).masked_fill(outside, rows.shape[1] - 1)
    image = torch.arange(batch, device=cells.device)[:, None] * rows.shape[1]
    # Not rows[index], whose gradient is summed in no fixed order.
    windows = F.embedding(index.flatten(1) + image, rows.flatten(0, 1))
    return windows.unflatten(1, (cells.shape[1], -1)).flatten(2)
