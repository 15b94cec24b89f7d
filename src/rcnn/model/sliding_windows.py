"""Dense sliding windows in place of proposals: the unchanged anchors at every cell (paper, table 10)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcnn.config import Anchors
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.model.structures import Proposals

"""Their name in `train.proposals` and `--proposals`."""


def sliding_windows(anchors: Anchors, strides: Sequence[int], shape: tuple[int, int], sizes: Tensor) -> Proposals:
    """Return the windows (B, P) of a batch: all anchors of all cells that begin inside the image, clipped to the image.

    With `paper-vgg16`, three scales and three ratios at stride 16, an image of 600 x 1000 has 21,546 of them. P and the
    order depend on `shape` alone. The windows are not ranked: all scores are 1, and the order is a permutation with a
    fixed seed, so that the first N windows are a random selection.

    Args:
        anchors: the anchor rule, in pixels of the resized image; one tuple of sizes per level.
        strides: stride of every level, pixels, finest first.
        shape: (height, width) of the padded images.
        sizes: (B, 2) height and width of each unpadded image.
    """
    grids = [(math.ceil(shape[0] / stride), math.ceil(shape[1] / stride)) for stride in strides]
    cells = [anchor_ops.cell_anchors(anchors, level) for level in range(len(strides))]
    levels = anchor_ops.pyramid_anchors(anchors, grids, strides, shape, cells)
    # (P, 2) upper left corner of each window's cell
    corners = torch.cat(
        [
            torch.cartesian_prod(*map(torch.arange, grid)).mul(stride).repeat_interleave(len(cell), dim=0)
            for grid, stride, cell in zip(grids, strides, cells, strict=True)
        ]
    )
    level = torch.cat([torch.full((len(part),), number) for number, part in enumerate(levels)])
    order = torch.from_numpy(np.random.Generator(np.random.Philox(key=0)).permutation(len(level)))
    sizes = sizes.float()
    boxes = box_ops.clip(torch.cat(levels)[order].expand(len(sizes), -1, -1), sizes)
    valid = (corners[order] < sizes[:, None]).all(dim=-1) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return Proposals(
        boxes=boxes.masked_fill(~valid[..., None], 0.0),
        scores=valid.float(),
        valid=valid,
        level=level[order].expand_as(valid),
        anchor=order.expand_as(valid),
    )
