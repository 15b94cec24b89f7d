import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import ops as tv

from rcnn.config import RPN, Anchors
from rcnn.model.boxes import decode
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.rpn_head import RPNHead, patches
from tests.model import tiny, worked


def test_head_has_the_papers_parameters():
    zf, vgg = (RPNHead(c, c, 9, logits=2, kernel=3) for c in (256, 512))
    for head, counts in ((zf, [590_080, 4_626, 9_252]), (vgg, [2_359_808, 9_234, 18_468])):
        layers = (head.conv, head.cls, head.reg)
        assert [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers] == counts
    assert vgg.cls.weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("logits", [1, 2])
def test_head_order_is_row_column_anchor(logits):
    head = RPNHead(4, 4, 3, logits=logits, kernel=3)
    feature = torch.randn(2, 4, 5, 6)
    scores, deltas = head(feature)
    raw = head.conv(feature).relu()
    y, x, a = 3, 4, 1
    row = (y * 6 + x) * 3 + a
    assert deltas.shape == (2, 90, 4)
    torch.testing.assert_close(deltas[:, row], head.reg(raw)[:, 4 * a : 4 * a + 4, y, x])
    if logits == 1:
        torch.testing.assert_close(scores[:, row], head.cls(raw)[:, a, y, x])
    else:  # first all background channels, then all object channels
        torch.testing.assert_close(scores[:, row], head.cls(raw)[:, [a, 3 + a], y, x])


def test_proposals_equal_a_loop_over_images_and_levels():
    net = tiny.model()
    data, _ = tiny.batch(3)
    rpn = net.rpn
    out = rpn(list(net.backbone(data.images).values()), (64, 96))
    found = rpn.propose(out, data.sizes, pre=40, post=24)
    for i in range(3):
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*out, strict=True)):
            best = logits[i].topk(min(40, len(anchors))).indices
            box = tv.clip_boxes_to_image(decode(deltas[i][best], anchors[best]), (61, 91))
            big = tv.remove_small_boxes(box, 1e-3)
            boxes.append(box[big])
            scores.append(logits[i][best][big].sigmoid())
            levels.append(torch.full_like(big, level))
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        kept = tv.batched_nms(boxes, scores, torch.cat(levels), 0.7)[:24]
        valid = found.valid[i]
        torch.testing.assert_close(found.boxes[i][valid], boxes[kept])
        torch.testing.assert_close(found.scores[i][valid], scores[kept])
        again = decode(torch.cat(out.deltas, 1)[i][found.anchor[i]], torch.cat(out.anchors)[found.anchor[i]])
        torch.testing.assert_close(found.boxes[i][valid], tv.clip_boxes_to_image(again, (61, 91))[valid])


@pytest.mark.parametrize("logits", [1, 2])
def test_the_first_of_several_anchors_of_equal_logits_are_the_candidates(logits):
    """On a level of 30,000 anchors, where `topk` takes others, and on one with fewer anchors than requested."""
    rpn = RegionProposalNetwork(4, (4, 8), Anchors(sizes=((16,), (32,))), RPN(logits=logits))
    torch.nn.init.zeros_(rpn.head.cls.weight)
    levels = [torch.randn(2, 4, 100, 100), torch.randn(2, 4, 4, 4)]
    found = rpn.candidates(rpn(levels, (400, 400)), torch.full((2, 2), 400.0), 60)
    assert found.anchor.tolist() == 2 * [[*range(60), *range(30_000, 30_048)]]
    assert (found.scores == 0.5).all()


def test_features_moved_by_a_cell_give_proposals_moved_by_a_stride():
    """Anchors, and the functions that score and move them, are translation invariant."""
    torch.manual_seed(0)
    rpn = worked.network(worked.UNBOUNDED)
    for layer in (rpn.head.conv, rpn.head.cls, rpn.head.reg):
        torch.nn.init.normal_(layer.weight, std=0.1)
    here = torch.zeros(1, 8, 20, 20, dtype=torch.float64)
    here[:, :, 8:11, 8:11] = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    there = here.roll((1, 2), dims=(2, 3))
    sizes = torch.full((1, 2), 320.0, dtype=torch.float64)
    first, second = (rpn.propose(rpn([feature], (320, 320)), sizes, pre=30, post=10) for feature in (here, there))
    assert (first.scores > 0.5).all()  # scores of the features, not ties of the background
    torch.testing.assert_close(second.boxes, first.boxes + torch.tensor([32.0, 16, 32, 16]).double())
    torch.testing.assert_close(second.scores, first.scores)


def test_proposals_of_a_tiny_image_are_padded():
    net = tiny.model()
    data, _ = tiny.batch(1, 16, 16)
    found = net.rpn.propose(net.rpn(list(net.backbone(data.images).values()), (16, 16)), data.sizes, pre=1000, post=24)
    assert found.boxes.shape == (1, 24, 4)
    assert 0 < found.valid.sum() <= 15
    assert (found.boxes[~found.valid] == 0).all()


def test_levels_and_sizes_must_agree():
    with pytest.raises(ValueError, match=r"2 levels .* 1 of strides \(16,\)"):
        RegionProposalNetwork(8, (16,), Anchors(sizes=((16,), (32,))), RPN())
    with pytest.raises(ValueError, match="equally many sizes"):
        RegionProposalNetwork(8, (8, 16), Anchors(sizes=((16, 24), (32,))), RPN())


@pytest.mark.parametrize("logits", [1, 2])
@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_gradients_equal_finite_differences(logits, kind):
    rpn = RegionProposalNetwork(
        2, (16,), Anchors(sizes=((24,),), ratios=(1.0, 2.0)), RPN(logits=logits, box_loss=kind, samples=8)
    ).double()
    torch.nn.init.normal_(rpn.head.reg.weight, std=0.1)
    targets = tiny.batch(2, 64, 64, dtype=torch.float64)[1]
    sizes = torch.full((2, 2), 64.0, dtype=torch.float64)
    keys = torch.rand(2, 200, dtype=torch.float64)
    feature = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: tiny.total(rpn.loss(rpn([f], (64, 64)), targets, sizes, keys)), feature)


@pytest.mark.parametrize("logits", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_head_at_chosen_anchors_equals_the_full_head_in_values_and_gradients(logits: int, kernel: int) -> None:
    torch.manual_seed(0)
    head = RPNHead(6, 5, 3, logits=logits, kernel=kernel).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    levels = [torch.randn(2, 6, *grid, dtype=torch.float64, requires_grad=True) for grid in ((4, 5), (2, 3), (1, 1))]
    index = torch.randint(0, 81, (2, 40))  # more than there are cells, so that some occur twice
    index[:, :3] = torch.tensor([0, 59, 80])  # corners of the maps
    tiny.assert_same_at_anchors(head, levels, index)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4), st.sampled_from([1, 3, 5, 7]))
def test_patches_equal_those_of_unfold(grids: list[tuple[int, int]], kernel: int) -> None:
    levels = [torch.randn(2, 3, *grid) for grid in grids]
    count = sum(height * width for height, width in grids)
    cells = torch.arange(count).expand(2, -1)
    cut = [F.unfold(level, kernel, padding=kernel // 2).unflatten(1, (3, -1)).permute(0, 3, 2, 1) for level in levels]
    assert torch.equal(patches(levels, cells, kernel), torch.cat(cut, dim=1).flatten(2))


def test_anchors_are_kept_by_shape_and_always_those_of_a_new_network() -> None:
    make = partial(RegionProposalNetwork, 2, (8, 16), Anchors(sizes=((24,), (48,)), stride="image//grid"), RPN())
    rpn = make()

    def anchors(rpn: RegionProposalNetwork, side: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
        levels = [torch.zeros(1, 2, side // stride, side // stride, dtype=dtype) for stride in (8, 16)]
        return rpn.to(dtype)(levels, (side, side)).anchors

    with torch.inference_mode():
        first = anchors(rpn, 64)
    assert anchors(rpn, 64) is first
    assert not any(level.is_inference() for level in first)  # training may use them
    assert anchors(rpn, 64, torch.float64)[0].dtype == torch.float64
    for side in range(48, 200, 16):
        torch.testing.assert_close(anchors(rpn, side), anchors(make(), side), rtol=0, atol=0)
    again = anchors(rpn, 64)
    assert again is not first  # nine others have replaced it
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert anchors(copy.deepcopy(rpn), 64) is not again
