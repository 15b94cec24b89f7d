import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from rcnn.ops.match import match, match_reference

PEAK = """
import resource, torch
from rcnn.ops.match import match
torch.set_num_threads(1)
def boxes(*shape):
    corner = torch.rand(*shape, 2) * 800
    return torch.cat((corner, corner + 20), dim=-1)
match(boxes(100), boxes(1, 2), torch.ones(1, 2).bool())
anchors, truths, valid = boxes(20_000), boxes(2, 300), torch.ones(2, 300).bool()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
match(anchors, truths, valid)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def scene(seed: int, batch: int, anchors: int, truths: int, *, own: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on a coarse grid, so that IoUs tie."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        corner = torch.randint(0, 12, (*shape, 2), generator=generator).float()
        return torch.cat((corner, corner + torch.randint(1, 8, (*shape, 2), generator=generator)), dim=-1)

    valid = torch.rand(batch, truths, generator=generator) < 0.7
    return boxes(batch, anchors) if own else boxes(anchors), boxes(batch, truths), valid


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-6)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])
    assert torch.equal(got[3], expected[3])


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([0, 1, 3]),
    anchors=st.sampled_from([0, 1, 30, 700]),
    truths=st.integers(0, 5),
    own=st.booleans(),
    limited=st.booleans(),
)
def test_equals_the_reference(seed, batch, anchors, truths, own, limited):
    arguments = scene(seed, batch, anchors, truths, own=own)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(batch, anchors, generator=generator) < 0.5 if limited else None
    ignore = torch.rand(batch, truths, generator=generator) < 0.3 if limited else None
    assert_same(match(*arguments, allowed, ignore), match_reference(*arguments, allowed, ignore))


def test_best_iou_equals_torchvision():
    anchors, boxes, _ = scene(3, 2, 200, 4)
    best_iou, best_truth, *_ = match(anchors, boxes, torch.ones(2, 4, dtype=torch.bool))
    for image in range(2):
        iou = box_iou(anchors, boxes[image])
        torch.testing.assert_close(best_iou[image], iou.amax(dim=1))
        torch.testing.assert_close(iou.gather(1, best_truth[image, :, None])[:, 0], iou.amax(dim=1))


def test_all_ties_of_a_ground_truth_are_best():
    anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [20, 0, 24, 4]])
    _, _, is_best, _ = match(anchors, torch.tensor([[[2.0, 0, 6, 4]]]), torch.ones(1, 1, dtype=torch.bool))
    assert is_best.tolist() == [[True, True, False]]


def test_a_ground_truth_that_touches_nothing_has_no_best_anchor():
    anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4]])
    boxes = torch.tensor([[[0.0, 0, 4, 4], [50, 50, 53, 53]]])
    best_iou, best_truth, is_best, _ = match(anchors, boxes, torch.ones(1, 2, dtype=torch.bool))
    assert is_best.tolist() == [[True, False]]
    assert best_iou.tolist() == [[1.0, 0.0]]
    assert best_truth.tolist() == [[0, 0]]


def test_an_anchor_that_is_not_allowed_leaves_its_place_to_the_next():
    anchors = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4]])
    boxes, valid = torch.tensor([[[0.0, 0, 4, 4]]]), torch.ones(1, 1, dtype=torch.bool)
    best_iou, _, is_best, _ = match(anchors, boxes, valid, torch.tensor([[False, True]]))
    assert is_best.tolist() == [[False, True]]
    assert best_iou[0, 0] == 1


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_padded_ground_truths_change_nothing(seed):
    anchors, boxes, valid = scene(seed, 2, 50, 3)
    junk = torch.tensor([torch.nan, 0.0, torch.inf, 5.0]).expand(2, 1, 4)
    padded = match(
        anchors,
        torch.cat((boxes, junk, anchors[None, :1].expand(2, 1, 4)), dim=1),
        torch.cat((valid, torch.zeros(2, 2).bool()), dim=1),
    )
    assert_same(padded, match(anchors, boxes, valid))


def test_boxes_of_no_area_and_boxes_that_are_not_finite_match_nothing():
    anchors = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 2], [torch.nan, 0, 1, 1], [4, 4, 0, 0]])
    boxes = torch.tensor([[[2.0, 2, 2, 2], [5, 5, 1, 1], [torch.inf, 0, torch.inf, 3]]])
    best_iou, _, is_best, _ = match(anchors, boxes, torch.ones(1, 3, dtype=torch.bool))
    assert not best_iou.any()
    assert not is_best.any()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_stays_bounded():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24_000  # kilobytes; one IoU matrix would be 48 MB


@pytest.mark.parametrize("own", [False, True])
def test_opcheck(own):
    anchors, boxes, valid = scene(0, 2, 20, 3, own=own)
    torch.library.opcheck(torch.ops.rcnn.match.default, (anchors, boxes, valid, None, None))
    torch.library.opcheck(torch.ops.rcnn.match.default, (anchors, boxes, valid, torch.ones(2, 20).bool(), ~valid))
