import copy

import pytest
import torch
from torchvision import ops as tv

from rcnn.model.boxes import Normal, clip, decode
from rcnn.model.fast_rcnn import SampledRoIs
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Targets
from tests.model import tiny


def test_detections_equal_a_loop_over_images_and_classes():
    net = tiny.model().eval()
    data, _ = tiny.batch(3)
    with torch.no_grad():
        _, _, proposals, (out,), found = net.execute(data)
    for i in range(3):
        valid = proposals.valid[i]
        scores = out.logits[i][valid].softmax(-1)[:, :-1]
        boxes = decode(
            out.deltas[i][valid], proposals.boxes[i][valid][:, None], Normal(0.0, torch.tensor([0.1, 0.1, 0.2, 0.2]))
        )
        boxes = clip(boxes[None], data.sizes[i : i + 1])[0]
        label = torch.arange(3).expand_as(scores)
        keep = scores > 0.01
        boxes, scores, label = boxes[keep], scores[keep], label[keep]
        kept = tv.batched_nms(boxes, scores, label, 0.5)[:12]
        real = found.valid[i]
        torch.testing.assert_close(found.boxes[i][real], boxes[kept])
        torch.testing.assert_close(found.scores[i][real], scores[kept])
        assert torch.equal(found.labels[i][real], label[kept])
    assert found.finite.all()


def test_an_image_alone_and_in_any_batch_gives_the_same_detections():
    net = tiny.model().eval()
    data, _ = tiny.batch(4)
    with torch.no_grad():
        together = net(data)
        for order in ([2], [3, 0], [1, 3, 2, 0]):
            torch.testing.assert_close(net(tiny.rows(data, order)), tiny.rows(together, order))


def test_losses_are_equal_in_train_and_eval_mode():
    net = tiny.model()
    data, targets, keys = tiny.scene(net, 3)
    train = net.train().loss(data, targets, keys)
    for name, (value, count) in net.eval().loss(data, targets, keys).items():
        torch.testing.assert_close(train[name], (value, count), rtol=0, atol=0)
    pass_ = net.execute(data)
    torch.testing.assert_close(tiny.total(net.loss(data, targets, keys, pass_=pass_)), tiny.total(train))
    torch.testing.assert_close(pass_.detections, net(data))
    torch.testing.assert_close(pass_.proposals, net.propose(data))


def test_losses_do_not_depend_on_padding_rows_or_batch_order():
    net = tiny.model()
    data, targets = tiny.batch(3)
    seeds = torch.tensor([5, 6, 7])
    whole = net.loss(data, targets, net.keys(data, targets, seeds))
    shuffled, *parts = (
        net.loss(tiny.rows(data, order), tiny.rows(targets, order), net.keys(data, targets, seeds[order]))
        for order in ([2, 0, 1], [0], [1], [2])
    )
    for name, (value, count) in whole.items():
        torch.testing.assert_close(shuffled[name], (value, count))
        torch.testing.assert_close(sum(part[name][0] for part in parts), value)
        assert sum(part[name][1] for part in parts) == count


@pytest.mark.parametrize("what", ["no object", "fillers", "empty batch", "absurd padding", "tiny images"])
def test_padding_does_not_affect_gradients(what):
    net = tiny.model()
    data, targets = tiny.batch(2, *((16, 16) if what == "tiny images" else (64, 96)))
    tiny.assert_padding_reaches_no_gradient(net, data, targets, what)


def no_objects(count: int, columns: int) -> Targets:
    boxes, none = torch.zeros(count, columns, 4), torch.zeros(count, columns, dtype=torch.bool)
    return Targets(boxes, none.long(), none, none.clone())


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"roi": {"class_agnostic": True, "sampler": "ohem"}}),
        *({"rpn": {"negatives": kind, "logits": 2}} for kind in ("overlap", "texture", "hard")),
        *(
            {"roi": {"head": "none"}, "rpn": {"classify": "classes", "loss": loss}}
            for loss in ("cross-entropy", "focal")
        ),
    ],
    ids=["default", "ohem", "overlap", "texture", "hard", "classes", "focal"],
)
def test_targets_without_a_column_are_images_without_objects(changes: dict):
    """Losses and gradients equal those of targets with one padded row to the last bit."""
    net = tiny.model(changes)
    data, _ = tiny.batch(2)
    results = []
    for targets in (no_objects(2, 0), no_objects(2, 1)):
        results.append(tiny.backward(net, net.loss(data, targets, tiny.keys(net, data, targets))))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert tiny.total(results[0][0]) > 0


def test_targets_without_a_column_compile_into_one_graph():
    net = tiny.model()
    data, _ = tiny.batch(2)
    tiny.assert_same_losses(net, net.loss, tiny.one_graph(net.loss, "eager"), data, no_objects(2, 0))


def test_keys_depend_on_the_seed_alone():
    net = tiny.model()
    data, targets = tiny.batch(2)
    both = net.keys(data, targets, torch.tensor([3, 9]))
    alone = net.keys(tiny.rows(data, [1]), tiny.rows(targets, [1]), torch.tensor([9]))
    torch.testing.assert_close(tiny.rows(both, [1]), alone, rtol=0, atol=0)
    assert not torch.equal(both.rpn[0], both.rpn[1])
    assert both.rpn.shape[1] >= sum(len(a) for a in net.execute(data, fields=()).rpn.anchors)


def sampled_inside_an_ignored_object(roi: dict, others: list[list[float]]) -> SampledRoIs:
    """Sample RoIs from proposals that all lie inside an ignored object, and from `others`, which are not ignored."""
    net, (data, targets) = tiny.model({"roi": roi}), tiny.batch(1, objects=1 + len(others))
    boxes = torch.tensor([[[50.0, 5, 90, 50], *others]])
    ignore = (torch.arange(boxes.shape[1]) == 0)[None]
    targets = targets._replace(boxes=boxes, valid=torch.ones_like(ignore), ignore=ignore)
    inside = torch.tensor([[[52.0, 6, 88, 48]]]).expand(1, 24, 4)
    proposals = net.propose(data)._replace(boxes=inside, valid=torch.ones(1, 24, dtype=torch.bool))
    return net.fast_rcnn.sample([], proposals, targets, torch.rand(1, 24 + boxes.shape[1], dtype=torch.float64))


def test_ignored_objects_are_not_added_to_the_proposals():
    rois, drawn, _ = sampled_inside_an_ignored_object({}, [[10, 10, 40, 40], [10, 30, 40, 60]])
    assert sorted(rois[drawn.valid].tolist()) == [[10, 10, 40, 40], [10, 30, 40, 60]]


@pytest.mark.parametrize(("ignore", "negatives"), [("keep", 0), ("drop", 12)])
def test_rois_inside_ignored_objects_are_negative_only_if_these_are_dropped(ignore, negatives):
    _, drawn, _ = sampled_inside_an_ignored_object({"ignore": ignore}, [[5, 5, 30, 30]])
    assert min(int((drawn.valid & ~drawn.positive).sum()), 12) == negatives


def test_non_finite_weights_are_reported():
    net = tiny.model().eval()
    data, _ = tiny.batch(2)
    data.images[1, 0, 0, 0] = float("nan")
    with torch.no_grad():
        assert net(data).finite.tolist() == [True, False]
        net.fast_rcnn.predictor.cls.bias[0] = float("nan")
        assert net(data).finite.tolist() == [False, False]


def test_unknown_roi_level_is_named():
    with pytest.raises(ValueError, match=r"roi.levels names \[2\], but the backbone's levels are \[3, 4\]"):
        tiny.model({"roi": {"levels": [2, 3]}})


def test_compiles_into_one_graph():
    """There is no graph break in `forward` or in `loss` and its backward pass; results equal those of eager mode.

    Of settings that no preset has: tests/test_graphs.py compiles those.
    """
    net = tiny.model({"roi": {"class_agnostic": True, "pool": "max"}, "rpn": {"logits": 2, "box_loss": "giou"}})
    operators: set[str] = set()

    def backend(graph, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes if str(node.target).startswith("rcnn."))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    tiny.assert_one_graph(net, (2, 64, 96), (0, 96, 64), backend=backend)
    assert operators == {f"rcnn.{name}.default" for name in ("match", "nms", "roi_pool")}


def test_full_gradient_equals_finite_differences():
    """Selection and sampling are constants; the step is too small to change them."""
    net = tiny.model().double()
    data, targets, keys = tiny.scene(net, 2, dtype=torch.float64)
    tiny.total(net.loss(data, targets, keys)).backward()
    moved = copy.deepcopy(net)
    for name in ("fast_rcnn.predictor.cls.weight", "fast_rcnn.head.fc6.weight", "fast_rcnn.predictor.reg.bias"):
        first, step, values = moved.get_parameter(name).data.flatten()[:1], 1e-6, []
        for sign in (1, -1):
            first += sign * step
            values.append(tiny.total(moved.loss(data, targets, keys)).detach())
            first -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(net.get_parameter(name).grad.flatten()[0], slope, atol=1e-6, rtol=1e-4)


def test_the_detector_has_few_public_methods():
    assert {name for name in vars(FasterRCNN) if not name.startswith("_")} == {
        *("forward", "execute", "propose", "loss", "keys")
    }
