import math

import pytest
import torch
import torch.nn.functional as F
from torchvision import ops as tv

from rcnn.errors import SettingsError
from rcnn.model.boxes import clip, decode
from rcnn.model.losses import focal_loss
from rcnn.model.one_stage import FocalClasses
from rcnn.model.structures import take
from tests.model import tiny

ENTROPY = {"rpn": {"classify": "classes"}, "roi": {"head": "none"}}
FOCAL = {"rpn": {"classify": "classes", "loss": "focal"}, "roi": {"head": "none"}}
KINDS = pytest.mark.parametrize("changes", [ENTROPY, FOCAL], ids=["cross-entropy", "focal"])
EASY = {"positive_iou": 0.5, "negative_iou": 0.3}
"""Enough positives among the few anchors of the tiny detector."""


def changed(changes: dict, **rpn: object) -> dict:
    return {**changes, "rpn": {**changes["rpn"], **rpn}}


@KINDS
@pytest.mark.parametrize("classes", [1, 3])
def test_detections_equal_a_loop_over_images(changes, classes):
    net = tiny.model(changed(changes, min_size=4.0), classes=classes).eval()
    data, _ = tiny.batch(3)
    with torch.no_grad():
        _, out, proposals, _, found = net.execute(data)
    assert found.valid.any(dim=1).all()
    anchors, deltas = torch.cat(out.anchors), torch.cat(out.deltas, dim=1)
    for i in range(3):
        rows, start = [], 0
        for logits in out.logits:
            logits = logits[i].reshape(logits.shape[1], -1)
            every = logits.sigmoid() if changes is FOCAL else logits.softmax(-1)[:, :classes]
            best = every.max(dim=1).values.topk(min(40, len(every))).indices
            rows += [(start + a, k, float(every[a, k])) for a in best.tolist() for k in range(classes)]
            start += len(logits)
        anchor, label = (torch.tensor(column) for column in list(zip(*rows, strict=True))[:2])
        score = torch.tensor([row[2] for row in rows])
        boxes = clip(decode(deltas[i][anchor], anchors[anchor])[None], data.sizes[i : i + 1])[0]
        keep = (score > 0.01) & ((boxes[:, 2:] - boxes[:, :2]) >= 4).all(dim=1)
        boxes, score, label, anchor = boxes[keep], score[keep], label[keep], anchor[keep]
        kept = tv.batched_nms(boxes, score, label, 0.5)[:12]
        real = found.valid[i]
        torch.testing.assert_close(found.boxes[i][real], boxes[kept])
        torch.testing.assert_close(found.scores[i][real], score[kept])
        assert torch.equal(found.labels[i][real], label[kept])
        assert torch.equal(found.proposal[i][real], anchor[kept])
    torch.testing.assert_close(proposals, net.propose(data))
    torch.testing.assert_close(found, net(data))


@KINDS
def test_proposals_are_scored_by_their_best_class(changes):
    net = tiny.model(changes).eval()
    data, _ = tiny.batch(2)
    with torch.no_grad():
        proposals = net.propose(data)
        out = net.execute(data, fields=()).rpn
    logits = take(torch.cat(out.logits, dim=1), proposals.anchor)
    best = (logits.sigmoid() if changes is FOCAL else logits.softmax(-1)[..., :-1]).amax(-1)
    assert proposals.valid.any(dim=1).all()
    torch.testing.assert_close(proposals.scores[proposals.valid], best[proposals.valid])
    assert (proposals.scores.diff(dim=1) <= 0).all()


def test_cross_entropy_is_of_the_sampled_anchors_and_background_is_last():
    net = tiny.model(changed(ENTROPY, **EASY))
    data, targets, keys = tiny.scene(net, 3)
    losses = net.loss(data, targets, keys)
    out = net.execute(data, fields=()).rpn
    anchors = torch.cat(out.anchors)
    labels = net.rpn.assign(anchors, targets, data.sizes)
    drawn = net.rpn.draw(out, labels, targets, keys.rpn)
    logits = take(torch.cat(out.logits, dim=1), drawn.indices)[drawn.valid]
    label = torch.where(drawn.positive, take(targets.labels, take(labels.truth, drawn.indices)), 3)[drawn.valid]
    assert 5 < (label < 3).sum() < len(label) <= 3 * 32
    value, count = losses["rpn_class"]
    torch.testing.assert_close(value, F.cross_entropy(logits, label, reduction="sum"))
    assert count == len(label)
    assert losses.keys() == {"rpn_class", "rpn_box"}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5)])
def test_focal_loss_is_of_all_anchors_that_are_not_ignored(gamma, alpha, classes):
    net = tiny.model(changed(FOCAL, **EASY, focal_gamma=gamma, focal_alpha=alpha), classes=classes)
    data, targets = tiny.batch(3)
    targets = targets._replace(labels=targets.labels.clamp(max=classes - 1))
    losses = net.loss(data, targets, tiny.keys(net, data, targets))
    out = net.execute(data, fields=()).rpn
    labels = net.rpn.assign(torch.cat(out.anchors), targets, data.sizes)
    positive, trained = labels.positive, labels.positive | labels.negative
    assert 5 < positive.sum() < trained.sum() < trained.numel()
    logits = torch.cat(out.logits, dim=1).reshape(3, -1, classes)
    target = torch.zeros_like(logits)
    for image, anchor in positive.nonzero().tolist():
        target[image, anchor, targets.labels[image, labels.truth[image, anchor]]] = 1
    expected = tv.sigmoid_focal_loss(logits[trained], target[trained], alpha, gamma, reduction="sum")
    torch.testing.assert_close(losses["rpn_class"][0], expected)
    assert losses["rpn_class"][1] == losses["rpn_box"][1] == positive.sum()


@KINDS
def test_boxes_are_trained_as_the_rpns(changes):
    """If all anchors are sampled, the box losses of both kinds and of the RPN are equal."""
    everyone = {**EASY, "samples": 500, "positive_fraction": 1.0}
    net, rpn = tiny.model(changed(changes, **everyone)), tiny.model({"rpn": everyone, "roi": {"head": "none"}})
    state = {name: tensor for name, tensor in net.state_dict().items() if "head.cls" not in name}
    rpn.load_state_dict({**rpn.state_dict(), **state})
    losses, expected = (each.loss(*tiny.scene(net, 2)) for each in (net, rpn))
    torch.testing.assert_close(losses["rpn_box"][0], expected["rpn_box"][0])


def test_with_one_class_it_is_an_rpn():
    """Scores and losses of (class, background) equal those of the RPN's (object, background)."""
    two = {"rpn": {"logits": 2, "score_order": "object-first"}, "roi": {"head": "none"}}
    one, rpn = tiny.model(ENTROPY, classes=1), tiny.model(two)
    rpn.load_state_dict(one.state_dict())
    data, targets = tiny.batch(2)
    targets = targets._replace(labels=targets.labels * 0)
    keys = tiny.keys(one, data, targets)
    losses, expected = one.loss(data, targets, keys), rpn.loss(data, targets, keys)
    torch.testing.assert_close(losses["rpn_class"], expected["rpn_objectness"])
    torch.testing.assert_close(losses["rpn_box"], expected["rpn_box"])
    torch.testing.assert_close(one.propose(data), rpn.propose(data))


def test_focal_loss_of_hand_worked_numbers():
    """A prediction that gives the true answer a probability of 0.9 keeps a hundredth of its log loss, times alpha."""
    logit = torch.tensor(math.log(9.0))
    right, wrong = (float(focal_loss(logit, torch.tensor(target), 2.0, 0.25)) for target in (True, False))
    assert right == pytest.approx(0.25 * 0.1**2 * -math.log(0.9))
    assert wrong == pytest.approx(0.75 * 0.9**2 * -math.log(0.1))


def test_focal_gradients_are_finite_at_any_logit():
    logits = torch.tensor([-200.0, -30, 0, 30, 200]).repeat(2, 1).requires_grad_()
    target = torch.tensor([[True], [False]]).expand(2, 5)
    for gamma in (0.0, 0.5, 2.0):
        (gradient,) = torch.autograd.grad(focal_loss(logits, target, gamma, 0.25).sum(), logits)
        assert gradient.isfinite().all()


def test_focal_loss_starts_from_the_prior():
    net = tiny.FasterRCNN(tiny.TinyBackbone(), tiny.settings(FOCAL), 3)
    data, _ = tiny.batch(1)
    out = net.execute(data, fields=()).rpn
    assert torch.cat(out.logits, dim=1).sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


@KINDS
@pytest.mark.parametrize("what", ["no object", "fillers", "empty batch", "absurd padding", "one without"])
def test_padding_does_not_affect_gradients(changes, what):
    tiny.assert_padding_reaches_no_gradient(tiny.model(changes), *tiny.batch(2), what)


@KINDS
def test_losses_are_equal_in_evaluation_and_gradients_flow_through_sampled_anchors(changes):
    net = tiny.model(changed(changes, **EASY))
    data, targets, keys = tiny.scene(net, 3)
    pass_ = net.execute(data)
    torch.testing.assert_close(pass_.detections, net(data))
    torch.testing.assert_close(pass_.proposals, net.propose(data))
    of_all_anchors = tiny.backward(net, net.loss(data, targets, keys, pass_=pass_))
    torch.testing.assert_close(tiny.backward(net, net.loss(data, targets, keys)), of_all_anchors)


@KINDS
def test_compiles_into_one_graph(changes):
    net = tiny.model(changes)
    tiny.assert_one_graph(net, (2,))


def test_weights_that_are_not_finite_are_reported():
    net = tiny.model(FOCAL).eval()
    data, _ = tiny.batch(2)
    data.images[1, 0, 0, 0] = float("nan")
    with torch.no_grad():
        assert net(data).finite.tolist() == [True, False]


def test_which_detectors_predict_classes():
    assert tiny.model().settings.predicts_classes
    assert not tiny.model({"roi": {"head": "none"}}).settings.predicts_classes
    net = tiny.model(FOCAL)
    assert net.settings.predicts_classes
    assert net.fast_rcnn is None
    assert isinstance(net.rpn.meaning, FocalClasses)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rpn": {"classify": "classes"}}, r"rpn\.classify=classes makes a one-stage detector.* set roi\.head=none"),
        ({"rpn": {"loss": "focal"}}, r"rpn\.loss=focal is for one-stage detectors"),
        ({"rpn": {"loss": "focal"}, "roi": {"head": "none"}}, r"set rpn\.classify=classes and roi\.head=none"),
    ],
)
def test_settings_that_make_no_detector_are_refused(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        tiny.settings(changes)
