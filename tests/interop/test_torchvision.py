import copy

import numpy as np
import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from rcnn.interop.detectors import from_torchvision, to_torchvision
from rcnn.interop.torchvision import PREFIXES
from rcnn.interop.torchvision_export import program
from rcnn.interop.torchvision_names import ARCHITECTURES, table, to_ours
from rcnn.model.structures import Keys, Targets

from .parity import Drawn, assert_same_boxes, batch_of, spread

SMALL = {
    "min_size": 96,
    "max_size": 160,
    "rpn_post_nms_top_n_test": 40,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 100,
    "box_batch_size_per_image": 16,  # few enough to need no padding, which would count in a trained batch norm
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    torch.manual_seed(0)
    build = getattr(detection, request.param)
    theirs = spread(build(weights=None, weights_backbone=None, num_classes=6, **SMALL))
    return theirs, from_torchvision(theirs)


def test_the_same_proposals_boxes_labels_and_scores(pair):
    theirs, ours = copy.deepcopy(pair[0]).double(), copy.deepcopy(pair[1].model).double().eval()
    # RoIs smaller than a cell of stride 32 have equal features, and so equal scores in any order.
    theirs.rpn.min_size = 33.0
    ours.rpn.settings = ours.rpn.settings.model_copy(update={"min_size": 33.0})
    images, sizes = torch.randn(2, 3, 128, 96, dtype=torch.float64), [(123, 90), (128, 96)]
    assert_same_boxes(theirs, ours, images, sizes, least=20)


def test_from_a_picture_to_its_boxes_in_float32(pair):
    theirs, ours = pair
    rng = np.random.default_rng(0)
    paired, total = 0, 0
    for size in ((101, 143), (77, 190)):
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        with torch.no_grad():
            (expected,) = theirs([torch.from_numpy(picture).permute(2, 0, 1) / 255])
        (found,) = ours.predict(picture, score=0.0)
        near = (expected["boxes"][:, None] - torch.from_numpy(found.boxes)).abs().amax(dim=-1) <= 0.01
        near &= (expected["scores"][:, None] - torch.from_numpy(found.scores)).abs() <= 1e-4
        near &= expected["labels"][:, None] == torch.from_numpy(found.labels) + 1
        paired, total = paired + int(near.any(dim=1).sum()), total + len(near)
        assert len(found) == len(near)
    assert paired >= 0.995 * total > 40


def test_the_same_losses_and_gradients_of_the_same_samples(pair):
    theirs, detector = copy.deepcopy(pair[0]).double().train(), pair[1]
    ours = copy.deepcopy(detector.model).double().train()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    batch = batch_of(images, [(96, 96), (96, 96)])
    boxes = torch.tensor([[10.0, 20, 60, 70], [50, 10, 90, 90]], dtype=torch.float64).expand(2, -1, -1)
    labels = torch.tensor([[0, 4], [2, 1]])
    yes = torch.ones(2, 2, dtype=torch.bool)
    targets = Targets(boxes, labels, yes, ~yes)
    keys: Keys = ours.keys(batch, targets, torch.tensor([0, 1]))
    losses = {name: total / count for name, (total, count) in ours.loss(batch, targets, keys).items()}

    rpn, roi = detector.settings.rpn, detector.settings.roi
    theirs.rpn.fg_bg_sampler = Drawn(keys.rpn, rpn.samples, rpn.positive_fraction)
    theirs.roi_heads.fg_bg_sampler = Drawn(keys.roi, roi.samples, roi.positive_fraction, objects=2)
    assign = theirs.rpn.assign_targets_to_anchors

    def in_float64(anchors, targets):  # its labels are float32, which would round the loss
        labels, matched = assign(anchors, targets)
        return [label.double() for label in labels], matched

    theirs.rpn.assign_targets_to_anchors = in_float64
    truth = [{"boxes": boxes[i], "labels": labels[i] + 1} for i in range(2)]
    features = theirs.backbone(images)
    proposals, first = theirs.rpn(ImageList(images, [(96, 96)] * 2), features, truth)
    _, second = theirs.roi_heads(features, proposals, [(96, 96)] * 2, truth)
    expected = {
        "rpn_objectness": first["loss_objectness"],
        "rpn_box": first["loss_rpn_box_reg"],
        "roi_class": second["loss_classifier"],
        "roi_box": second["loss_box_reg"],
    }
    assert all(value > 0 for value in expected.values())
    torch.testing.assert_close(losses, expected, atol=1e-9, rtol=1e-9)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    names = table(detector.settings, PREFIXES[detector.settings.model.backbone])
    gradients = to_ours({name: parameter.grad for name, parameter in theirs.named_parameters()}, names)
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    torch.testing.assert_close(own, {name: gradients[name] for name in own}, atol=1e-9, rtol=1e-6)


def test_an_export_is_loaded_strictly_and_imported_unchanged(pair):
    theirs, detector = pair
    state = to_torchvision(detector)
    space: dict = {}
    exec(program(detector.settings, 5), space)
    rebuilt = space["model"].eval()
    rebuilt.load_state_dict(state, strict=True)
    copy.deepcopy(theirs).load_state_dict(state, strict=True)
    again = from_torchvision(rebuilt)
    assert again.settings == detector.settings
    torch.testing.assert_close(again.model.state_dict(), detector.model.state_dict(), rtol=0, atol=0)
