"""`rcnn::nms` on a GPU: a kernel for the keys, a sort, and a kernel that scans the boxes in order of score.

B images, N boxes, M = max_output. One program per image compares blocks of candidates with the list of those kept, so
that no matrix of N x N is needed, and stops when M are kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import as_bytes, corners, launch, overlap

BLOCK = 1024  # scores per program of the first kernel
ROWS = 64  # candidates compared at a time
WIDTH, PART = 32, 16  # boxes that they are compared with at a time, in float32 and in float64
WARPS = 8
UNUSABLE = tl.constexpr(-(2**31))  # below the key of every number
CLOSE = tl.constexpr(2e-6)
"""Of the sum of both areas: what float32 may be wrong by, three times over. Closer than this, float64 decides."""


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """The body of `rcnn::nms` on a GPU."""
    batch, count = scores.shape
    keys = scores.new_empty(batch, count, dtype=torch.int32)
    total = batch * count
    launch(keys_of, (triton.cdiv(total, BLOCK),), scores.contiguous(), as_bytes(valid), keys, total, BLOCK=BLOCK)
    keys, order = keys.sort(dim=1, descending=True, stable=True)
    index = torch.empty(batch, max_output, dtype=torch.int64, device=boxes.device)
    kept_mask = torch.empty_like(index, dtype=torch.bool)
    list_boxes = torch.empty(batch, max_output + ROWS, 4, dtype=torch.float32, device=boxes.device)
    list_groups = torch.empty(batch, max_output + ROWS, dtype=torch.int64, device=boxes.device)
    threshold = torch.full((1,), iou_threshold, dtype=torch.float64, device=boxes.device)
    scene = (boxes.contiguous(), groups.contiguous(), keys, order.contiguous(), threshold)
    found = (index, kept_mask.view(torch.uint8), list_boxes, list_groups)
    launch(scan, (batch,), *scene, *found, count, max_output, ROWS=ROWS, WIDTH=WIDTH, PART=PART, num_warps=WARPS)
    return index, kept_mask


@triton.jit(do_not_specialize=["total"])
def keys_of(scores, valid, keys, total, BLOCK: tl.constexpr):
    """Integers in the order of the scores, the lowest where a box is not valid or its score is NaN."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + i, i < total, 0.0).to(tl.float32)
    usable = (tl.load(valid + i, i < total, 0) != 0) & (score == score)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    tl.store(keys + i, tl.where(usable, ordered, UNUSABLE), i < total)


@triton.jit
def met(
    x1, y1, x2, y2, group, boxes, groups, first, end, threshold,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Bit j of a candidate: its IoU with box `first` + j (of its group, before `end`) is above the threshold."""
    x1, y1, x2, y2, group = x1[:, None], y1[:, None], x2[:, None], y2[:, None], group[:, None]
    column = tl.arange(0, WIDTH)
    row = first + column
    X1, Y1, X2, Y2 = corners(boxes, row, row < end)
    wide = tl.minimum(x2, X2[None]) - tl.maximum(x1, X1[None])
    high = tl.minimum(y2, Y2[None]) - tl.maximum(y1, Y1[None])
    common = tl.maximum(wide, 0.0) * tl.maximum(high, 0.0)
    areas = (x2 - x1) * (y2 - y1) + ((X2 - X1) * (Y2 - Y1))[None]
    gap = common - threshold.to(tl.float32) * (areas - common)
    # Sides, since the product of tiny ones is 0 in float32; such pairs count as close.
    touch = (group == tl.load(groups + row, row < end, 0)[None]) & (row < end)[None] & (wide > 0) & (high > 0)
    bits = tl.sum(tl.where(touch & (gap > 0), (tl.full((WIDTH,), 1, tl.int64) << column.to(tl.int64))[None], 0), 1)
    close = touch & (tl.abs(gap) <= CLOSE * areas)
    if tl.max(tl.max(close.to(tl.int32), 1), 0) > 0:  # seldom; then fewer at a time, which spills no register
        bits = tl.zeros((ROWS,), tl.int64)
        a1, b1, a2, b2 = x1.to(tl.float64), y1.to(tl.float64), x2.to(tl.float64), y2.to(tl.float64)
        for part in range(0, WIDTH, PART):
            place = part + tl.arange(0, PART)
            near = first + place
            p1, q1, p2, q2 = corners(boxes, near, near < end)
            A1, B1, A2, B2 = p1.to(tl.float64), q1.to(tl.float64), p2.to(tl.float64), q2.to(tl.float64)
            exact = overlap(a1, b1, a2, b2, A1[None], B1[None], A2[None], B2[None])
            union = (a2 - a1) * (b2 - b1) + ((A2 - A1) * (B2 - B1))[None] - exact
            same = (group == tl.load(groups + near, near < end, 0)[None]) & (near < end)[None] & (exact > 0)
            bit = tl.full((PART,), 1, tl.int64) << place.to(tl.int64)
            bits += tl.sum(tl.where(same & (exact / union > threshold), bit[None], 0), 1)
    return bits


@triton.jit
def put(boxes, groups, row, x1, y1, x2, y2, group, mask):
    """Write rows of the list of boxes."""
    tl.store(boxes + row * 4, x1, mask)
    tl.store(boxes + row * 4 + 1, y1, mask)
    tl.store(boxes + row * 4 + 2, x2, mask)
    tl.store(boxes + row * 4 + 3, y2, mask)
    tl.store(groups + row, group, mask)


@triton.jit(do_not_specialize=["N", "M"])
def scan(
    boxes, groups, keys, order, threshold, index, kept_mask, list_boxes, list_groups, N, M,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Greedy choice, a block of candidates at a time: against those kept before, then among themselves.

    The list has the boxes that are kept, and behind them the candidates of the block.
    """
    image = tl.program_id(0).to(tl.int64)
    limit = tl.load(threshold)
    lane = tl.arange(0, ROWS)
    bit = tl.full((ROWS,), 1, tl.int64) << lane.to(tl.int64)
    head = image * (M + ROWS)
    total = N * 0
    start = N * 0
    left = (N > 0) & (M > 0)
    while left:
        real = start + lane < N
        real = real & (tl.load(keys + image * N + start + lane, real, UNUSABLE) != UNUSABLE)
        which = tl.load(order + image * N + start + lane, real, 0)
        x1, y1, x2, y2 = corners(boxes, image * N + which, real)
        group = tl.load(groups + image * N + which, real, 0)
        put(list_boxes, list_groups, head + total + lane, x1, y1, x2, y2, group, real)
        tl.debug_barrier()  # other threads read what is written here
        alive = real
        own = head + total
        for first in range(head, own, WIDTH):
            bits = met(x1, y1, x2, y2, group, list_boxes, list_groups, first, own, limit, ROWS, WIDTH, PART)
            alive = alive & (bits == 0)
        earlier = tl.zeros((ROWS,), tl.int64)
        for begin in range(0, ROWS, WIDTH):
            first, end = own + begin, own + ROWS
            bits = met(x1, y1, x2, y2, group, list_boxes, list_groups, first, end, limit, ROWS, WIDTH, PART)
            earlier |= bits << begin
        earlier &= bit - 1
        chosen = tl.sum(tl.where(alive, bit, 0), 0)
        before = ~chosen
        while chosen != before:  # each round settles one more link of a chain of suppressions
            before = chosen
            chosen = tl.sum(tl.where(alive & ((earlier & before) == 0), bit, 0), 0)
        keep = (chosen & bit) != 0
        place = total + tl.cumsum(keep.to(tl.int32), 0) - 1
        keep = keep & (place < M)
        tl.store(index + image * M + place, which, keep)
        tl.debug_barrier()  # all have read the candidates
        put(list_boxes, list_groups, head + place, x1, y1, x2, y2, group, keep)
        tl.debug_barrier()
        total += tl.sum(keep.to(tl.int32), 0)
        start += ROWS
        left = (start < N) & (total < M) & (tl.max(real.to(tl.int32), 0) > 0)
    for begin in range(0, M, ROWS):
        place = begin + lane
        tl.store(kept_mask + image * M + place, (place < total).to(tl.uint8), place < M)
        tl.store(index + image * M + place, tl.zeros((ROWS,), tl.int64), (place >= total) & (place < M))
