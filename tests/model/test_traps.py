"""Common errors in short descriptions of Faster R-CNN, and the behaviour of this package: one test for each."""

import math

import pytest
import torch

from rcnn.config import RPN, Anchors
from rcnn.model.anchors import RULES, cell_anchors, grid_anchors
from rcnn.model.assign import Sample, sample
from rcnn.model.boxes import decode, encode, pairwise_iou
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.rpn_head import RPNHead
from rcnn.model.structures import Proposals
from rcnn.presets import build, settings_of
from rcnn.teaching import generate_anchors, rpn_loss
from tests.model import tiny, worked


def test_a_ratio_is_height_over_width_by_default():
    tall, wide = (cell_anchors(Anchors(sizes=((64,),), ratios=(2.0,), ratio=ratio), 0)[0] for ratio in ("h/w", "w/h"))
    assert (tall[3] - tall[1]) / (tall[2] - tall[0]) == pytest.approx(2)
    assert (wide[3] - wide[1]) / (wide[2] - wide[0]) == pytest.approx(0.5)


def test_the_first_of_two_scores_is_background_by_default():
    says_object = torch.tensor([[[-1.0, 2.0]]])
    assert worked.network().scores(says_object).item() == 3
    assert worked.network(score_order="object-first").scores(says_object).item() == -3


def test_there_are_k_sigmoids_or_2k_scores_and_4k_coordinates_a_position():
    for logits in (1, 2):
        head = RPNHead(8, 8, 9, logits=logits, kernel=3)
        assert (head.cls.out_channels, head.reg.out_channels) == (9 * logits, 36)


def test_features_are_pooled_from_the_shared_map_after_suppression_and_the_image_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
):
    net = tiny.model({"rpn": {"post_test": 80}}).eval()  # room for all boxes that enter suppression
    data, _ = tiny.batch(2)
    read, pooled, pool = [], [], net.fast_rcnn.pool
    net.backbone.register_forward_hook(lambda module, inputs, maps: read.append((inputs[0], maps)))
    monkeypatch.setattr(net.fast_rcnn, "pool", lambda *arguments: pooled.append(arguments) or pool(*arguments))
    with torch.no_grad():
        pass_ = net.execute(data)
        proposals = pass_.proposals
        before = net.rpn.candidates(pass_.rpn, data.sizes, net.settings.rpn.pre_test)
    ((images, maps),), ((levels, boxes),) = read, pooled
    assert images is data.images
    assert all(level is shared for level, shared in zip(levels, maps.values(), strict=True))
    assert torch.equal(boxes, proposals.boxes)

    def rivals(found: Proposals) -> int:
        """Count the pairs of one image and level that overlap by more than `rpn.nms`."""
        both = found.valid[:, :, None] & found.valid[:, None] & (found.level[:, :, None] == found.level[:, None])
        close = (pairwise_iou(found.boxes, found.boxes) > net.settings.rpn.nms) & both
        return int(close.triu(1).sum())

    assert rivals(before) > 0 == rivals(proposals)


def test_neighbouring_cells_are_16_pixels_apart_and_offsets_are_those_of_centres():
    anchors = generate_anchors((2, 3), 16, (32,), (1.0,)).view(2, 3, 4)
    assert (anchors[:, 1] - anchors[:, 0]).unique().tolist() == [0, 16]
    t = torch.tensor([[0.5, 0.0, 0.0, 0.0]])
    assert decode(t, torch.tensor([[0.0, 0, 10, 10]])).tolist() == [[5, 0, 15, 10]]
    deltas = encode(torch.tensor([[0.0, 0, 20, 5]]), torch.tensor([[0.0, 0, 10, 10]]))  # x, y, w, h
    torch.testing.assert_close(deltas, torch.tensor([[0.5, -0.25, math.log(2), -math.log(2)]]))


def test_anchors_over_the_edge_are_untrained_but_scored():
    inside, every = worked.network(), worked.network(worked.UNBOUNDED)
    out = worked.output(inside)
    for rpn, ignored in ((inside, True), (every, False)):
        labels = worked.labels(rpn.assign(out.anchors[0], worked.targets(), worked.SIZES))[0]
        assert bool((labels[:18] == -1).all()) == ignored
    a, b = (rpn.propose(out, worked.SIZES, pre=60, post=60) for rpn in (inside, every))
    assert torch.equal(a.boxes, b.boxes)
    assert (a.anchor[a.valid] < 18).any()
    assert (a.boxes >= 0).all()
    assert (a.boxes[..., 2] <= worked.WIDTH).all()


def test_positives_are_chosen_by_anchors_not_by_predicted_boxes():
    rpn = worked.network(normaliser="paper")
    out = worked.output(rpn)
    shifted = out._replace(deltas=tuple(deltas + 3 for deltas in out.deltas))
    keys = torch.rand(1, 60, dtype=torch.float64)
    labels = rpn.assign(out.anchors[0], worked.targets(), worked.SIZES)
    assert torch.equal(*(rpn.draw(o, labels, worked.targets(), keys).indices for o in (out, shifted)))


def test_the_batch_is_up_to_half_positive_and_negatives_fill_it():
    label = torch.zeros(1, 300, dtype=torch.int8)
    label[0, :7] = 1
    drawn = sample(worked.assignment(label), torch.rand(1, 300, dtype=torch.float64), 256, 0.5)
    assert (int(drawn.positive.sum()), int(drawn.valid.sum())) == (7, 256)


def test_box_loss_sums_positives_alone():
    rpn = worked.network()
    out = worked.output(rpn)
    losses = []
    for spoiled in ([], worked.NEGATIVE + worked.IGNORED):
        deltas = out.deltas[0].detach().clone()
        deltas[0, spoiled] += 5
        found = rpn.loss(out._replace(deltas=(deltas,)), worked.targets(), worked.SIZES, torch.rand(1, 60).double())
        losses.append(found["rpn_box"])
    assert losses[0] == losses[1]


def coordinate_weight(settings: RPN) -> float:
    """Return the slope of the box loss in a coordinate of one of 10 positives in 256 samples, at 640 x 960 pixels."""
    rpn = RegionProposalNetwork(2, (16,), worked.ANCHORS, settings)
    out = rpn([torch.randn(1, 2, 40, 60)], (640, 960))
    deltas = torch.full_like(out.deltas[0], 9.0, requires_grad=True)  # where smooth L1 is linear
    index = torch.arange(256)[None]
    labels = worked.assignment(torch.zeros(1, 7200))
    drawn = Sample(index, index >= 0, index < 10)
    sizes = torch.tensor([[640.0, 960.0]])
    worked.fix_sample(rpn, labels, drawn)
    losses = rpn.loss(out._replace(deltas=(deltas,)), worked.targets(), sizes, torch.zeros(1, 7200))
    total, count = losses["rpn_box"]
    return torch.autograd.grad(total / count, deltas)[0][0, 0, 0].item()


def test_a_mean_over_coordinates_weighs_each_60_times_as_much_as_the_paper():
    """With 10 positives and lambda 10: 10 / 40 in reference 004, 10 / 2400 in the paper; py-faster-rcnn: 1 / 256."""
    labels = torch.zeros(1, 2400)
    labels[0, :10] = 1
    deltas = torch.zeros(1, 2400, 4, requires_grad=True)
    loss = rpn_loss(torch.zeros(1, 2400, 2), deltas, labels, -torch.full((1, 2400, 4), 9.0))
    reference = torch.autograd.grad(loss, deltas)[0][0, 0, 0].item()
    paper = settings_of("paper-vgg16").rpn
    assert reference == pytest.approx(10 / 40)
    assert coordinate_weight(paper) == pytest.approx(10 / 2400)
    assert coordinate_weight(paper.model_copy(update={"normaliser": "mean"})) == pytest.approx(reference)
    assert coordinate_weight(RPN(normaliser="per-image")) == pytest.approx(1 / 256)
    assert reference / coordinate_weight(paper) == pytest.approx(60)


def test_anchors_that_were_not_sampled_do_not_enter_the_plain_loss():
    """Reference 004 has no sampling: labels must be sampled before its loss, with -1 for all other anchors."""
    torch.manual_seed(0)
    logits, deltas, targets = torch.randn(1, 500, 2), torch.randn(1, 500, 4), torch.randn(1, 500, 4)
    labels = torch.full((1, 500), -1)
    labels[0, [3, 7, 11]] = torch.tensor([1, 0, 0])
    loss = rpn_loss(logits, deltas, labels, targets)
    some = (labels >= 0)[0]
    torch.testing.assert_close(rpn_loss(logits[:, some], deltas[:, some], labels[:, some], targets[:, some]), loss)
    every = rpn_loss(logits, deltas, labels.clamp(min=0), targets)
    assert not torch.isclose(every, loss)


def test_samples_do_not_depend_on_scores_and_proposals_do():
    rpn = worked.network(samples=5)
    out, targets = worked.output(rpn), worked.targets()
    turned = out._replace(logits=(-out.logits[0],))
    keys = torch.rand(1, 60, dtype=torch.float64)
    labels = rpn.assign(out.anchors[0], targets, worked.SIZES)
    assert torch.equal(*(rpn.draw(o, labels, targets, keys).indices for o in (out, turned)))
    best = [rpn.propose(o, worked.SIZES, pre=60, post=5).scores for o in (out, turned)]
    assert all((scores.diff() <= 0).all() for scores in best)
    first = [rpn.propose(o, worked.SIZES, pre=1, post=1).anchor.item() for o in (out, turned)]
    objectness = rpn.scores(out.logits[0])[0]
    assert [objectness[anchor] for anchor in first] == [objectness.max(), objectness.min()]


def test_the_feature_of_a_position_has_512_numbers_in_vgg_and_256_in_zf():
    """One hidden convolution, read by both siblings; neither boxes nor anchors are flattened into it."""
    for name, width in (("paper-vgg16", 512), ("paper-zf", 256)):
        with torch.device("meta"):
            net = build(settings_of(name), 20)
            feature = net.rpn.head.hidden(torch.empty(1, net.backbone.channels, 38, 63))
        assert feature.shape == (1, width, 38, 63)
        assert net.rpn.head.cls.in_channels == net.rpn.head.reg.in_channels == width


def test_suppression_takes_12000_to_2000_in_training_and_6000_to_300_in_prediction():
    for rpn in (settings_of(name).rpn for name in ("paper-vgg16", "paper-zf")):
        assert (rpn.pre_train, rpn.post_train, rpn.pre_test, rpn.post_test) == (12000, 2000, 6000, 300)


def test_no_score_threshold_by_default_and_a_set_one_applies_to_probabilities():
    rpn = worked.network(score=0.5)
    out = worked.output(rpn)
    every, half = (net.propose(out, worked.SIZES, pre=60, post=60) for net in (worked.network(), rpn))
    assert every.scores[every.valid].min() < 0.5
    assert half.scores[half.valid].min() == 0.5  # logit 0: a threshold of 0 on logits, with >, would drop it
    assert settings_of("paper-vgg16").rpn.score == 0


def test_proposals_are_clipped_and_small_ones_dropped_before_the_best_are_taken():
    rpn = worked.network(min_size=30.0)
    found = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=60)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2])[found.valid]
    assert (sides >= 30).all()
    few = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=3)
    assert torch.equal(few.boxes, found.boxes[:, :3])


def test_the_best_score_survives_among_equal_boxes():
    rpn = worked.network(nms=0.0)
    found = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=60)
    every = rpn.propose(worked.output(worked.network(nms=1.0)), worked.SIZES, pre=60, post=60)
    overlap = pairwise_iou(every.boxes[0][every.valid[0]], found.boxes[0][found.valid[0]])
    rival = torch.where(overlap > 0, found.scores[0][found.valid[0]], -1.0).amax(dim=1)
    assert (rival >= every.scores[0][every.valid[0]]).all()


def test_areas_are_of_128_256_and_512_pixels_squared_and_there_are_9_anchors():
    anchors = settings_of("paper-vgg16").anchors
    assert anchors.sizes == ((128, 256, 512),)
    cells = cell_anchors(anchors, 0)
    assert len(cells) == 9
    squares = cells[3:6]
    assert (squares[:, 2:] - squares[:, :2]).prod(dim=1).tolist() == [128**2, 256**2, 512**2]


def test_the_base_of_anchors_and_the_stride_are_two_things():
    """The size is base 16 times 8, 16, 32 for any stride: at stride 8, the same boxes are twice as dense."""
    cells = cell_anchors(Anchors.model_validate({"sizes": ((128, 256, 512),), **RULES["py-faster-rcnn"]}), 0)
    coarse, fine = (grid_anchors(cells, (2, 2), (stride, stride), 0.5) for stride in (16, 8))
    sides = [(a[:, 2:] - a[:, :2]) for a in (coarse, fine)]
    assert torch.equal(*sides)
    assert (coarse[9, 0] - coarse[0, 0], fine[9, 0] - fine[0, 0]) == (16, 8)


@pytest.mark.parametrize(("iou", "label"), [(0.7, 1), (0.6999, -1), (0.3, -1), (0.2999, 0)])
def test_positive_is_at_least_0_7_and_negative_is_under_0_3(iou: float, label: int):
    anchor = torch.tensor([[0.0, 0, 100, 1000]], dtype=torch.float64)
    gt = torch.tensor([[[0.0, 0, 100, 1000 * iou]]], dtype=torch.float64)
    for positive_iou, expected in ((0.7, label), (0.7000001, -1 if label == 1 else label)):
        rpn = worked.network(worked.UNBOUNDED, force_match=False, positive_iou=positive_iou)
        found = rpn.assign(anchor, worked.targets(gt), torch.tensor([[1000.0, 100.0]]))
        assert worked.labels(found).tolist() == [[expected]]


def test_anchors_of_a_level_are_as_many_as_its_sizes_times_ratios():
    assert len(generate_anchors((1, 1), 16)) == 15
    assert len(cell_anchors(settings_of("resnet50-fpn").anchors, 0)) == 3
