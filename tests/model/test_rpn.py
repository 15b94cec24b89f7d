import pytest
import torch
from torchvision import ops as tv

from rcnn.config import RPN, Anchors
from rcnn.model.boxes import decode
from rcnn.model.rpn import RegionProposalNetwork, RPNHead
from tests.model import tiny


def test_head_has_the_papers_parameters():
    zf, vgg = (RPNHead(c, c, 9, logits=2, kernel=3) for c in (256, 512))
    count = lambda layer: sum(p.numel() for p in layer.parameters())  # noqa: E731
    assert [count(layer) for layer in (zf.conv, zf.cls, zf.reg)] == [590_080, 4_626, 9_252]
    assert [count(layer) for layer in (vgg.conv, vgg.cls, vgg.reg)] == [2_359_808, 9_234, 18_468]
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
