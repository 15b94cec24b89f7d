"""Reference boxes: cell anchors, grids, inside masks.

The rules of py-faster-rcnn, torchvision, detectron2 and of a tutorial (reference 004 of docs/references.md) differ in
what a ratio divides, in rounding, in order and in the centre. Each difference is a setting of `config.Anchors`.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from rcnn.config import Anchors

RULES: dict[str, dict[str, object]] = {
    "ours": {},
    "py-faster-rcnn": {"round": "base", "order": "ratio"},
    "torchvision": {"round": "half", "order": "ratio", "offset": 0.0, "stride": "image//grid"},
    "detectron2": {"offset": 0.0},
    "reference-004": {"ratio": "w/h"},
}
"""Name -> what differs from the defaults of `config.Anchors`. In ratio-major order sizes run fastest."""


def cell_anchors(settings: Anchors, level: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(sizes * ratios, 4) boxes of one level around the origin, in the order in which the head predicts them."""
    sizes, ratios = settings.sizes[level], settings.ratios
    by_size = settings.order == "size"
    pairs = product(sizes, ratios) if by_size else ((size, ratio) for ratio, size in product(ratios, sizes))
    size, ratio = torch.tensor(list(pairs), dtype=torch.float64).unbind(dim=-1)
    ratio = ratio if settings.ratio == "h/w" else 1 / ratio
    if settings.round == "base":
        # py-faster-rcnn rounds width and height of the base box, then scales: areas are no longer equal.
        width = (settings.base / ratio.sqrt()).round()
        half = torch.stack((width, (width * ratio).round()), dim=-1) * (size / settings.base)[:, None] / 2
    else:
        width = size / ratio.sqrt()
        half = torch.stack((width, width * ratio), dim=-1) / 2
    half = half.round() if settings.round == "half" else half
    return torch.cat((-half, half), dim=-1).to(dtype)


def grid_anchors(cells: Tensor, grid: tuple[int, int], stride: tuple[float, float], offset: float) -> Tensor:
    """(a, 4) cell anchors at every cell of an (H, W) grid -> (H * W * a, 4), the anchor fastest.

    Args:
        cells: boxes around the origin.
        grid: height and width of the feature map, cells.
        stride: vertical and horizontal distance between cells, pixels.
        offset: centre of the first cell, in strides: 0.5 is the middle of the pixels that the cell covers.
    """
    y, x = (
        (torch.arange(n, device=cells.device, dtype=cells.dtype) + offset) * step
        for n, step in zip(grid, stride, strict=True)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack((x, y, x, y), dim=-1)
    return (centres[:, :, None] + cells).reshape(-1, 4)


def pyramid_anchors(
    settings: Anchors,
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image: tuple[int, int],
    cells: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Anchors of all levels of one padded image: one (A_l, 4) tensor per level.

    Args:
        settings: the anchor rule.
        grids: (height, width) of each level, cells.
        strides: declared stride of each level, pixels.
        image: height and width of the padded image, pixels; read by the rule `image//grid` only.
        cells: `cell_anchors` of each level.
    """
    steps = [(stride, stride) for stride in strides]
    if settings.stride == "image//grid":
        steps = [(image[0] // rows, image[1] // columns) for rows, columns in grids]
    scene = zip(cells, grids, steps, strict=True)
    return tuple(grid_anchors(cell, grid, step, settings.offset) for cell, grid, step in scene)


def inside(anchors: Tensor, sizes: Tensor, border: float) -> Tensor:
    """(A, 4), (B, 2) as (height, width) -> (B, A): True if the anchor leaves its image by at most `border` pixels."""
    limit = sizes.to(anchors.dtype).flip(-1)[:, None] + border
    return (anchors[:, :2] >= -border).all(dim=-1) & (anchors[:, 2:] <= limit).all(dim=-1)
