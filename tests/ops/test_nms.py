import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from rcnn.ops.nms import nms, nms_reference

BOXES = torch.tensor(
    [
        [0, 0, 10, 10],
        [1, 1, 11, 11],
        [0, 0, 10, 5],
        [20, 20, 30, 30],
        [21, 20, 31, 30],
        [5, 5, 15, 15],
        [0, 0, 10, 10],
    ],
    dtype=torch.float32,
)
GROUP, VALID = torch.zeros(1, 7, dtype=torch.int64), torch.ones(1, 7, dtype=torch.bool)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.5, 0.4])


def crowd(seed: int, batch: int = 2, count: int = 40, groups: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping boxes on a coarse grid, with many ties in score."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 20, (batch, count, 2), generator=generator).float()
    side = torch.randint(1, 20, (batch, count, 2), generator=generator).float()
    scores = torch.randint(0, 10, (batch, count), generator=generator) / 10
    group = torch.randint(0, groups, (batch, count), generator=generator)
    valid = torch.rand(batch, count, generator=generator) < 0.8
    return torch.cat((corner, corner + side), dim=2), scores, group, valid


def kept(index: Tensor, valid: Tensor, image: int = 0) -> list[int]:
    return index[image, valid[image]].tolist()


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.3, [4, 0, 5]), (0.5, [4, 0, 2, 5]), (0.7, [4, 0, 1, 2, 5]), (1.0, [4, 0, 1, 2, 3, 5, 6])],
)
@pytest.mark.parametrize("function", [nms, nms_reference])
def test_worked_example(function, threshold, expected):
    # At a threshold of 1 nothing is suppressed, and box 6 comes last by score.
    assert kept(*function(BOXES[None], SCORES[None], GROUP, VALID, threshold, 10)) == expected


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([0, 1, 5, 60]),
    groups=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    max_output=st.sampled_from([1, 3, 10, 100]),
)
def test_equals_the_reference(seed, count, groups, threshold, max_output):
    arguments = (*crowd(seed, count=count, groups=groups), threshold, max_output)
    for got, expected in zip(nms(*arguments), nms_reference(*arguments), strict=True):
        assert torch.equal(got, expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.3, 0.5, 0.7]))
def test_survivors_are_apart_and_every_suppressed_box_overlaps_a_better_survivor(seed, threshold):
    boxes, scores, group, valid = crowd(seed, batch=1)
    survivors = kept(*nms(boxes, scores, group, valid, threshold, 40))
    meets = (box_iou(boxes[0].double(), boxes[0].double()) > threshold) & (group[0][:, None] == group[0])
    rank = {i: place for place, i in enumerate(scores[0].sort(descending=True, stable=True).indices.tolist())}
    for i in valid[0].nonzero().flatten().tolist():
        better = [j for j in survivors if meets[i, j] and rank[j] < rank[i]]
        assert bool(better) == (i not in survivors)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_a_batch_equals_its_images_alone(seed):
    arguments = crowd(seed, batch=3)
    index, valid = nms(*arguments, 0.5, 12)
    for image in range(3):
        alone = nms(*(a[image : image + 1] for a in arguments), 0.5, 12)
        assert torch.equal(alone[0][0], index[image])
        assert torch.equal(alone[1][0], valid[image])


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_order_and_padding_do_not_matter(seed):
    boxes, _, group, valid = crowd(seed, batch=1)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(boxes.shape[1], generator=generator)[None] / 100  # no ties, which are ordered by index
    before = kept(*nms(boxes, scores, group, valid, 0.5, 20))
    order = torch.randperm(boxes.shape[1], generator=generator)
    shuffled = nms(boxes[:, order], scores[:, order], group[:, order], valid[:, order], 0.5, 20)
    assert [int(order[i]) for i in kept(*shuffled)] == before
    padding = (torch.full((1, 5, 4), torch.nan), torch.full((1, 5), torch.inf), torch.zeros(1, 5).long())
    padded = [torch.cat((a, b), dim=1) for a, b in zip((boxes, scores, group), padding, strict=True)]
    longer = torch.cat((valid, torch.zeros(1, 5, dtype=torch.bool)), dim=1)
    assert kept(*nms(*padded, longer, 0.5, 20)) == before


def test_equals_torchvision_on_a_pyramid():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(4).repeat_interleave(300)[None]
    centre, side = torch.rand(1, 1200, 2, generator=generator) * 400, 16 * 2.0 ** group[..., None]
    boxes = torch.cat((centre - side, centre + side), dim=2)
    scores = torch.rand(1, 1200, generator=generator)
    expected = batched_nms(boxes[0], scores[0], group[0], 0.7)
    for count in (10, 200, 1200):
        assert kept(*nms(boxes, scores, group, torch.ones(1, 1200).bool(), 0.7, count)) == expected[:count].tolist()


def test_groups_of_large_numbers_stay_apart():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9.999]]])
    group = torch.tensor([[10**12, -5, 10**12]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert kept(*nms(boxes, torch.tensor([[0.3, 0.2, 0.1]]), group, valid, 0.9, 3)) == [0, 1]


def test_numbers_that_are_not_finite_do_no_harm():
    boxes = BOXES[None].clone()
    boxes[0, 1], boxes[0, 3, 2], boxes[0, 6, 0] = torch.nan, torch.inf, -torch.inf
    scores = SCORES[None].clone()
    scores[0, 0] = torch.nan
    index, valid = nms(boxes, scores, GROUP, VALID, 0.5, 7)
    assert 0 not in kept(index, valid)
    assert kept(index, valid)[0] == 4


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_empty_inputs(shape):
    index, valid = nms(
        torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape).long(), torch.ones(shape).bool(), 0.5, 6
    )
    assert index.shape == valid.shape == (shape[0], 6)
    assert not valid.any()


def test_half_precision_boxes():
    assert kept(*nms(BOXES[None].bfloat16(), SCORES[None].bfloat16(), GROUP, VALID, 0.5, 10)) == [4, 0, 2, 5]


def test_opcheck():
    boxes, scores, group, valid = crowd(0, count=9)
    torch.library.opcheck(torch.ops.rcnn.nms.default, (boxes, scores, group, valid, 0.5, 4))
