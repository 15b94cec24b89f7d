"""Compare the kernels with the bodies for the CPU under Triton's interpreter; `test_kernels.py` runs this file.

The interpreter is chosen when Triton is imported, so these tests can't run beside others.
"""

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rcnn.ops.match import _match
from rcnn.ops.nms import nms as by_cpu
from rcnn.ops.roi_align import _roi_align, _roi_align_backward
from rcnn.ops.roi_pool import _roi_pool, _roi_pool_backward
from rcnn.ops.triton.match import match
from rcnn.ops.triton.nms import nms
from rcnn.ops.triton.roi_align import roi_align
from rcnn.ops.triton.roi_align_backward import roi_align_backward
from rcnn.ops.triton.roi_pool import roi_pool
from rcnn.ops.triton.roi_pool_backward import roi_pool_backward
from tests.ops.rois import EDGES
from tests.ops.test_nms import crowd

assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1 before Triton is imported"
SEEDS = st.integers(0, 10**6)
SCALES = [1 / 4, 1 / 8]
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def random_boxes(seed: int, *shape: int, size: float = 60.0) -> Tensor:
    """Return boxes on a grid of halves, so that equal IoUs occur; some are empty or inverted."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-10, int(2 * size), (*shape, 2), generator=generator) / 2
    return torch.cat((corner, corner + torch.randint(-4, 60, (*shape, 2), generator=generator) / 2), dim=-1)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    seed=SEEDS,
    batch=st.sampled_from([0, 1, 2]),
    anchors=st.sampled_from([0, 1, 50, 1100]),
    truths=st.sampled_from([1, 3]),
    bare=st.booleans(),
    dtype=DTYPES,
)
def test_matching(seed: int, batch: int, anchors: int, truths: int, bare: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = random_boxes(seed, batch, anchors) if seed % 2 else random_boxes(seed, anchors)
    boxes, valid = random_boxes(seed + 1, batch, truths), torch.rand(batch, truths, generator=generator) < 0.7
    boxes[:1, 0, 0] = torch.nan
    allowed = None if bare else torch.rand(batch, anchors, generator=generator) < 0.8
    arguments = (own.to(dtype), boxes.to(dtype), valid, allowed, None if bare else ~valid)
    assert same(match(*arguments), _match(*arguments))


@settings(deadline=None, max_examples=14, derandomize=True)
@given(
    seed=SEEDS,
    count=st.sampled_from([0, 1, 5, 60, 130]),
    groups=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    max_output=st.sampled_from([1, 3, 40, 200]),
    dtype=DTYPES,
)
def test_suppression(seed: int, count: int, groups: int, threshold: float, max_output: int, dtype: torch.dtype) -> None:
    boxes, scores, group, valid = crowd(seed, count=count, groups=groups)
    boxes[:, ::5], boxes[:, ::8] = boxes[:, ::5, [0, 3, 2, 1]], boxes[:, ::8, [2, 3, 0, 1]]  # inverted
    scores[:, ::7], scores[:, 1::11], scores[:, 2::11] = torch.nan, torch.inf, -torch.inf
    scores[:, 3::11], boxes[:, ::13, 0], boxes[:, 1::13, 2] = -0.0, torch.nan, torch.inf
    arguments = (boxes.to(dtype), scores.to(dtype), (group - 1) * 10**12, valid, threshold, max_output)
    assert same(nms(*arguments), by_cpu(*arguments))


@pytest.mark.parametrize(("ahead", "scale"), [(0, 1.0), (30, 1.0), (1120, 1.0), (30, 2.0**-70), (30, 2.0**-80)])
def test_overlaps_near_the_threshold_are_compared_in_float64(ahead: int, scale: float) -> None:
    """Pairs whose IoU is slightly above, at or slightly below 0.7: in one block, in two, and far down the list.

    float32 represents the areas of small boxes inexactly, or not at all.
    """
    x1 = torch.arange(ahead + 40, dtype=torch.float64)[:, None] * 100
    boxes = torch.cat((x1, 0 * x1, x1 + 10, 0 * x1 + 10), dim=1)
    near = boxes[ahead:].clone()
    near[:, 3] = 7 + torch.arange(20, -20, -1) * 2.0**-21
    both = torch.cat((boxes, near)).float()[None] * scale
    count = both.shape[1]
    scores = torch.arange(count, 0, -1).float()[None]
    zeros = torch.zeros(1, count, dtype=torch.int64)
    found, expected = (f(both, scores, zeros, zeros == 0, 0.7, count) for f in (nms, by_cpu))
    assert same(found, expected)
    assert expected[1].sum() == ahead + 60


def test_a_long_chain_of_suppressions_and_a_list_longer_than_a_block() -> None:
    left = torch.arange(300)[:, None] * torch.tensor([3.0, 0, 3, 0]) + torch.tensor([0, 0, 10, 10])
    boxes, scores = left[None], torch.arange(300, 0, -1)[None].float()
    zeros = torch.zeros(1, 300, dtype=torch.int64)
    for limit in (10, 100, 300):
        assert same(*(f(boxes, scores, zeros, zeros == 0, 0.5, limit) for f in (nms, by_cpu)))


def test_no_images_and_nothing_to_keep() -> None:
    boxes, scores, group, valid = crowd(0, batch=2, count=5)
    for images, limit in ((0, 3), (2, 0)):
        arguments = (*(part[:images] for part in (boxes, scores, group, valid)), 0.5, limit)
        assert same(nms(*arguments), by_cpu(*arguments))


def scene(seed: int, *, levels: int = 2, rois: int = 3, channels: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return levels of two images of 24 x 32, and boxes that are partly outside."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(6, 8), (3, 4)][:levels]
    maps = [torch.randn(2, channels, *size, generator=generator) for size in sizes]
    boxes = random_boxes(seed, 2, rois, size=24)
    return maps, boxes, torch.randint(0, levels, (2, rois), generator=generator)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    seed=SEEDS,
    levels=st.integers(1, 2),
    rois=st.sampled_from([0, 1, 2]),
    setting=st.sampled_from([(2, 2, True), (3, 1, False), (2, 0, True), (1, 0, False)]),
    dtype=DTYPES,
)
def test_alignment(seed: int, levels: int, rois: int, setting: tuple[int, int, bool], dtype: torch.dtype) -> None:
    maps, boxes, level = scene(seed, levels=levels, rois=rois)
    maps = [feature.to(dtype, memory_format=torch.channels_last) for feature in maps]
    arguments = (maps, boxes, level, SCALES[:levels], *setting)
    torch.testing.assert_close(roi_align(*arguments), _roi_align(*arguments), **tolerance(dtype))


@pytest.mark.parametrize(("samples", "aligned"), [(1, True), (2, False)])
def test_alignment_at_the_edges(samples: int, aligned: bool) -> None:
    maps = [torch.randn(1, 3, 12, 16)]
    boxes = torch.cat((EDGES.float(), torch.full((1, 4), torch.nan)))[None]
    arguments = (maps, boxes, torch.zeros(1, boxes.shape[1]).long(), [1 / 4], 2, samples, aligned)
    torch.testing.assert_close(roi_align(*arguments), _roi_align(*arguments), **tolerance(torch.float32))
    grad = torch.randn(1, boxes.shape[1], 2, 2, 3)
    arguments = (grad, *arguments[:4], samples, aligned, [True, True])
    torch.testing.assert_close(roi_align_backward(*arguments), _roi_align_backward(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2.0, 4.0, 6.0])
def test_a_last_bit_adds_no_samples_to_a_box_of_integer_cells(size: float) -> None:
    """With adaptive sampling, cells of exactly 1, 2 or 3 pixels, at positions that are no multiples of powers of 2."""
    corner = torch.tensor([[[4.0, 8.0], [8.0, 4.0], [12.0, 12.0]]])
    boxes = torch.cat((corner, corner + 4 * size), dim=-1)
    arguments = ([torch.randn(1, 3, 16, 16)], boxes, torch.zeros(1, 3).long(), [1 / 4], 2, 0, True)
    torch.testing.assert_close(roi_align(*arguments), _roi_align(*arguments), **tolerance(torch.float32))


@settings(deadline=None, max_examples=3, derandomize=True)
@given(seed=SEEDS, setting=st.sampled_from([(2, True), (1, False)]), dtype=DTYPES)
def test_gradients_of_alignment(seed: int, setting: tuple[int, bool], dtype: torch.dtype) -> None:
    maps, boxes, level = scene(seed)
    maps = [feature.to(dtype) for feature in maps]
    boxes[0, 0] = torch.tensor([torch.nan, 0, torch.inf, 9])
    grad = torch.randn(2, 3, 2, 2, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    grad[1, 1] = 0
    arguments = (grad, maps, boxes, level, SCALES, *setting, [True, True])
    found = roi_align_backward(*arguments)
    assert found is not None
    torch.testing.assert_close(found, _roi_align_backward(*arguments), **tolerance(dtype))


def test_gradients_that_are_not_wanted_or_not_there() -> None:
    maps, boxes, level = scene(6)
    arguments = (torch.ones(2, 3, 2, 2, 3), maps, boxes, level, SCALES)
    assert roi_align_backward(*arguments, 0, True, [True, False]) is None
    found = roi_align_backward(*arguments, 2, True, [False, False])
    assert found is not None
    assert not any(part.any() for part in found)
    empty = (torch.ones(2, 0, 2, 2, 3), maps, boxes[:, :0], level[:, :0], SCALES, 2, True, [True, True])
    assert same(roi_align_backward(*empty), _roi_align_backward(*empty))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_and_its_gradient(dtype: torch.dtype) -> None:
    maps, boxes, level = scene(3, rois=2, channels=2)
    boxes = torch.cat((boxes, EDGES[None, ::4].float().expand(2, -1, -1)), dim=1)
    level = torch.cat((level, level[:, :1].expand(-1, 3)), dim=1)
    maps = [feature.to(dtype) for feature in maps]
    maps[0][0, 0, 3, 3], maps[0][1, 0] = torch.nan, torch.nan
    maps[1][0, 1] = 1.0  # equal maxima: the first is taken
    found, expected = (function(maps, boxes, level, SCALES, 2) for function in (roi_pool, _roi_pool))
    assert same(found, expected)
    arguments = (torch.randn_like(found[0]), found[1], maps, boxes, level, SCALES)
    for one, other in zip(roi_pool_backward(*arguments), _roi_pool_backward(*arguments), strict=True):
        torch.testing.assert_close(one, other, **tolerance(dtype))
