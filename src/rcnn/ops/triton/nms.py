"""`rcnn::nms` on a GPU: a kernel for the keys, a sort, a kernel that puts the boxes in order, and one that scans them.

B images, N boxes, M = max_output. One program per image compares blocks of candidates, best first, with the list of
kept boxes, so that no N x N matrix is needed, and stops when M boxes are kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.triton.launch import as_bytes, corners, launch, overlap

BLOCK = 1024  # boxes per program of the first two kernels
ROWS = 64  # candidates compared at a time
WIDTH, PART = 32, 8  # boxes that candidates are compared with at a time, in float32 and in float64
WARPS = 8
UNUSABLE = tl.constexpr(-(2**31))  # below the key of every number
CLOSE, TINY = tl.constexpr(1e-6), tl.constexpr(1e-30)
"""Bounds of float32's error: three times its share of the sum of both areas, and square pixels. An IoU that is closer
than this to the threshold is decided in float64."""


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """The body of `rcnn::nms` on a GPU."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device=boxes.device)

    batch, count = scores.shape
    total = batch * count
    grid = (triton.cdiv(total, BLOCK),)
    keys = empty(count, dtype=torch.int32)
    launch(keys_of, grid, scores.contiguous(), as_bytes(valid), keys, total, BLOCK=BLOCK)
    keys, order = keys.sort(dim=1, descending=True, stable=True)
    order = order.contiguous()
    ranked = (empty(4, count, dtype=torch.float32), empty(count, dtype=torch.int64))
    scene = (boxes.contiguous(), groups.contiguous(), keys, order)
    launch(arrange, grid, *scene, *ranked, count, total, BLOCK=BLOCK)
    listed = (empty(4, max_output, dtype=torch.float32), empty(max_output, dtype=torch.int64))
    index, kept_mask = empty(max_output, dtype=torch.int64), empty(max_output, dtype=torch.bool)
    threshold = torch.full((1,), iou_threshold, dtype=torch.float64, device=boxes.device)
    found = (index, kept_mask.view(torch.uint8))
    sizes = {"ROWS": ROWS, "WIDTH": WIDTH, "PART": PART, "num_warps": WARPS}
    launch(scan, (batch,), *ranked, *listed, keys, order, *found, threshold, count, max_output, **sizes)
    return index, kept_mask


@triton.jit(do_not_specialize=["total"])
def keys_of(scores, valid, keys, total, BLOCK: tl.constexpr):
    """Write integers in the order of the scores, the lowest if a box is not valid or its score is NaN."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + i, i < total, 0.0).to(tl.float32)
    usable = (tl.load(valid + i, i < total, 0) != 0) & (score == score)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    tl.store(keys + i, tl.where(usable, ordered, UNUSABLE), i < total)


@triton.jit(do_not_specialize=["N", "total"])
def arrange(boxes, groups, keys, order, ranked, ranked_groups, N, total, BLOCK: tl.constexpr):
    """Write boxes in the order of their keys, column by column; zeros for boxes that can't overlap any other."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = i < total
    image = i // N
    row = image * N + tl.load(order + i, real, 0)
    usable = real & (tl.load(keys + i, real, UNUSABLE) != UNUSABLE)
    x1, y1, x2, y2 = corners(boxes, row, usable)
    x1, y1, x2, y2 = corners(boxes, row, (x2 > x1) & (y2 > y1))
    put(ranked + image * 3 * N, ranked_groups, N, i, (x1, y1, x2, y2, tl.load(groups + row, usable, 0)), real)


@triton.jit
def put(boxes, groups, N, row, values, mask):
    """Write corners and groups, where `boxes` has four columns of `N`."""
    for k in tl.static_range(4):
        tl.store(boxes + k * N + row, values[k], mask)
    tl.store(groups + row, values[4], mask)


@triton.jit
def get(boxes, groups, N, row, mask):
    """Read the values that `put` wrote; an empty box where `mask` is false."""
    x1, y1 = tl.load(boxes + row, mask, 0.0), tl.load(boxes + N + row, mask, 0.0)
    x2, y2 = tl.load(boxes + 2 * N + row, mask, 0.0), tl.load(boxes + 3 * N + row, mask, 0.0)
    return x1, y1, x2, y2, tl.load(groups + row, mask, 0)


@triton.jit
def compared(own, rivals, share):
    """Return for every pair whether its IoU is certainly, and whether it is possibly, above the threshold.

    An IoU is above t if the common area is more than t / (1 + t), the `share`, of the sum of both areas.
    """
    x1, y1, x2, y2, group = own
    X1, Y1, X2, Y2, other = rivals
    wide = tl.minimum(x2[:, None], X2[None]) - tl.maximum(x1[:, None], X1[None])
    high = tl.minimum(y2[:, None], Y2[None]) - tl.maximum(y1[:, None], Y1[None])
    common = wide * high
    most, least = (share + CLOSE).to(tl.float32), (share - CLOSE).to(tl.float32)
    area, Area = (x2 - x1) * (y2 - y1), (X2 - X1) * (Y2 - Y1)
    touch = (group[:, None] == other[None]) & (wide > 0)  # if they overlap in x alone, `common` is not positive
    surely = touch & (common > (area * most + TINY)[:, None] + (Area * most)[None])
    return surely, touch & (common >= (area * least - TINY)[:, None] + (Area * least)[None])


@triton.jit
def doubled(box):
    """Return the corners in float64, and the group."""
    x1, y1, x2, y2, group = box
    return x1.to(tl.float64), y1.to(tl.float64), x2.to(tl.float64), y2.to(tl.float64), group


@triton.jit
def compared_exactly(own, rivals, threshold):
    """Return for every pair whether its IoU is above the threshold, in float64."""
    x1, y1, x2, y2, group = doubled(own)
    X1, Y1, X2, Y2, other = doubled(rivals)
    common = overlap(x1[:, None], y1[:, None], x2[:, None], y2[:, None], X1[None], Y1[None], X2[None], Y2[None])
    union = ((x2 - x1) * (y2 - y1))[:, None] + ((X2 - X1) * (Y2 - Y1))[None] - common
    return (group[:, None] == other[None]) & (common > 0) & (common / union > threshold)


@triton.jit
def is_any(pairs):
    """Return whether any pair is true."""
    return tl.max(tl.max(pairs.to(tl.int32), 1), 0) > 0


@triton.jit
def bits_of(pairs, column):
    """Return a number per row whose bit `column` is the value of the pair."""
    return tl.sum(tl.where(pairs, (tl.full(column.shape, 1, tl.int64) << column.to(tl.int64))[None], 0), 1)


@triton.jit(do_not_specialize=["N", "M"])
def scan(
    ranked, ranked_groups, listed, listed_groups, keys, order, index, kept_mask, threshold, N, M,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Choose greedily, a block of candidates at a time: compare it with the boxes kept so far, then within itself."""
    image = tl.program_id(0).to(tl.int64)
    ranked, ranked_groups = ranked + image * 4 * N, ranked_groups + image * N
    listed, listed_groups = listed + image * 4 * M, listed_groups + image * M
    keys, order = keys + image * N, order + image * N
    index, kept_mask = index + image * M, kept_mask + image * M
    limit = tl.load(threshold)
    share = limit / (1 + limit)
    lane, column, few = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, PART)
    bit = tl.full((ROWS,), 1, tl.int64) << lane.to(tl.int64)
    total = N * 0
    start = N * 0
    left = (N > 0) & (M > 0)
    while left:
        i = start + lane
        real = tl.load(keys + i, i < N, UNUSABLE) != UNUSABLE
        own = get(ranked, ranked_groups, N, i, real)
        beaten = tl.zeros((ROWS, WIDTH), tl.int32)
        close = tl.zeros((ROWS, WIDTH), tl.int32)  # bit k: in step k, k + 32, k + 64, ...
        for first in range(0, total, WIDTH):
            rivals = get(listed, listed_groups, M, first + column, first + column < total)
            surely, perhaps = compared(own, rivals, share)
            beaten = tl.where(surely, 1, beaten)
            close |= tl.where(perhaps, 1 << (first // WIDTH % 32), 0)
        alive = real & (tl.max(beaten, 1) == 0)
        close = tl.where(alive[:, None], close, 0)
        if is_any(close != 0):
            for k in range(32):
                if is_any((close >> k) & 1 != 0):
                    for first in range(k * WIDTH, total, 32 * WIDTH):
                        for part in range(first, first + WIDTH, PART):  # few at a time, so that no register spills
                            close_rivals = get(listed, listed_groups, M, part + few, part + few < total)
                            beats = compared_exactly(own, close_rivals, limit)
                            alive = alive & (tl.max(beats.to(tl.int32), 1) == 0)
        earlier = tl.zeros((ROWS,), tl.int64)
        for begin in range(0, ROWS, WIDTH):
            j = begin + column
            rivals = get(ranked, ranked_groups, N, start + j, start + j < N)
            surely, perhaps = compared(own, rivals, share)
            if is_any(perhaps & ~surely & alive[:, None] & (j[None] < lane[:, None])):
                for part in range(begin, begin + WIDTH, PART):
                    close_rivals = get(ranked, ranked_groups, N, start + part + few, start + part + few < N)
                    earlier |= bits_of(compared_exactly(own, close_rivals, limit), part + few)
            earlier |= bits_of(surely, j)
        earlier &= bit - 1
        chosen = tl.sum(tl.where(alive, bit, 0), 0)
        before = ~chosen
        while chosen != before:  # each round settles one more link of a chain of suppressions
            before = chosen
            chosen = tl.sum(tl.where(alive & ((earlier & before) == 0), bit, 0), 0)
        keep = (chosen & bit) != 0
        place = total + tl.cumsum(keep.to(tl.int32), 0) - 1
        keep = keep & (place < M)
        tl.store(index + place, tl.load(order + i, keep, 0), keep)
        put(listed, listed_groups, M, place, own, keep)
        tl.debug_barrier()  # other threads read the values written above
        total += tl.sum(keep.to(tl.int32), 0)
        start += ROWS
        left = (start < N) & (total < M)
        left = left & (tl.load(keys + start, left, UNUSABLE) != UNUSABLE)
    for begin in range(0, M, ROWS):
        place = begin + lane
        tl.store(kept_mask + place, (place < total).to(tl.uint8), place < M)
        tl.store(index + place, tl.zeros((ROWS,), tl.int64), (place >= total) & (place < M))
