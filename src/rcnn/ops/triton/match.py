"""`rcnn::match` on a GPU: two kernels over blocks of anchors, with a maximum over blocks between them.

B images, A anchors, G truth boxes. IoUs are computed twice instead of stored, since reading (B, A, G) takes longer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.match import TIE
from rcnn.ops.triton.launch import as_bytes, corners, launch, overlap

BLOCK = 1024  # anchors per program
ALIKE = ("A", "G", "stride")  # their values are not compiled into the kernels


def match(
    anchors: Tensor, boxes: Tensor, valid: Tensor, allowed: Tensor | None, ignore: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The body of `rcnn::match` on a GPU."""
    (batch, truths), count = boxes.shape[:2], anchors.shape[-2]
    blocks = triton.cdiv(count, BLOCK)
    best_iou = boxes.new_empty(batch, count, dtype=torch.float32)
    best_truth = torch.empty_like(best_iou, dtype=torch.int64)
    is_best, covered = (torch.empty_like(best_iou, dtype=torch.bool) for _ in range(2))
    tops = boxes.new_empty(batch, blocks, truths, dtype=torch.float32)
    anchors, boxes, valid = anchors.contiguous(), boxes.contiguous(), as_bytes(valid)
    allowed = valid if (free := allowed is None) else as_bytes(allowed)
    ignored = valid if (bare := ignore is None) else as_bytes(ignore)
    scene = (anchors, boxes, valid, allowed)
    sizes = (count, truths, count if anchors.dim() == 3 else 0)
    found = (best_iou, best_truth, covered.view(torch.uint8), tops)
    grid = (batch, blocks)
    launch(first_pass, grid, *scene, ignored, *found, *sizes, FREE=free, BARE=bare, BLOCK=BLOCK)
    if count:
        top = tops.amax(dim=1)
        launch(second_pass, grid, *scene, top, is_best.view(torch.uint8), *sizes, FREE=free, TIE=TIE, BLOCK=BLOCK)
    return best_iou, best_truth, is_best, covered


@triton.jit
def truth(boxes, valid, row):
    """Return the corners and the area of one truth box, and whether it is matched."""
    X1, Y1, X2, Y2 = corners(boxes, row, True)
    return X1, Y1, X2, Y2, (X2 - X1) * (Y2 - Y1), tl.load(valid + row) != 0


@triton.jit(do_not_specialize=ALIKE)
def first_pass(
    anchors, boxes, valid, allowed, ignore, best_iou, best_truth, covered, tops, A, G, stride,
    FREE: tl.constexpr, BARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the best truth box and the coverage of a block of anchors, and the block's best IoU with each truth box."""
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = block * BLOCK + tl.arange(0, BLOCK)
    real = i < A
    x1, y1, x2, y2 = corners(anchors, image * stride + i, real)
    own = (x2 - x1) * (y2 - y1)
    may_win = real
    if not FREE:
        may_win = tl.load(allowed + image * A + i, real, 0) != 0
    best = tl.zeros((BLOCK,), tl.float32)
    which = tl.zeros((BLOCK,), tl.int64)
    hidden = tl.zeros((BLOCK,), tl.int1)
    for g in range(G):
        row = image * G + g
        X1, Y1, X2, Y2, area, counts = truth(boxes, valid, row)
        common = overlap(x1, y1, x2, y2, X1, Y1, X2, Y2)
        iou = tl.where(counts & (common > 0), tl.div_rn(common, own + area - common), 0.0)
        which = tl.where(iou > best, g, which)
        best = tl.maximum(best, iou)
        if not BARE:
            hidden = hidden | ((common >= own * 0.5) & (common > 0) & (tl.load(ignore + row) != 0))
        top = tl.max(tl.where(may_win, iou, 0.0), 0)
        tl.store(tops + (image * tl.num_programs(1) + block) * G + g, top)
    tl.store(best_iou + image * A + i, best, real)
    tl.store(best_truth + image * A + i, which, real)
    tl.store(covered + image * A + i, hidden.to(tl.uint8), real)


@triton.jit(do_not_specialize=ALIKE)
def second_pass(
    anchors, boxes, valid, allowed, top, is_best, A, G, stride,
    FREE: tl.constexpr, TIE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find the anchors of a block that are within `TIE` of the best IoU of a truth box."""
    image = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = i < A
    x1, y1, x2, y2 = corners(anchors, image * stride + i, real)
    own = (x2 - x1) * (y2 - y1)
    wins = tl.zeros((BLOCK,), tl.int1)
    for g in range(G):
        row = image * G + g
        X1, Y1, X2, Y2, area, counts = truth(boxes, valid, row)
        common = overlap(x1, y1, x2, y2, X1, Y1, X2, Y2)
        iou = tl.where(counts & (common > 0), tl.div_rn(common, own + area - common), 0.0)
        wins = wins | ((iou > 0) & (iou >= tl.load(top + row) - TIE))
    if not FREE:
        wins = wins & (tl.load(allowed + image * A + i, real, 0) != 0)
    tl.store(is_best + image * A + i, wins.to(tl.uint8), real)
