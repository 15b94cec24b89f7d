"""Models that users assemble from torchvision's parts, and attributes that can't be expressed."""

import copy
from operator import attrgetter

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.interop.detectors import from_torchvision
from rcnn.interop.torchvision import UserHead, as_backbone, import_model

from .parity import assert_same_boxes, spread

SMALL = {"min_size": 96, "max_size": 160, "rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 60}


def body() -> nn.Sequential:
    """Strides 4, 8 and 16."""
    layers = []
    for a, b, stride in ((3, 8, 4), (8, 12, 2), (12, 16, 2)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.ReLU()]
    network = nn.Sequential(*layers)
    network.out_channels = 16
    return network


def one_map(**changes) -> FasterRCNN:
    options = {
        "rpn_anchor_generator": AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 4, 2),
        "box_head": TwoMLPHead(16 * 16, 32),
        "box_predictor": FastRCNNPredictor(32, 4),
    }
    return FasterRCNN(body(), **{**SMALL, **options, **changes})


def tutorial() -> FasterRCNN:
    backbone = mobilenet_v2(weights=None, width_mult=0.1).features
    backbone.out_channels = 1280
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    pool = MultiScaleRoIAlign(["0"], 2, 2)
    return FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, box_roi_pool=pool, **SMALL)


def own_pyramid() -> FasterRCNN:
    backbone = BackboneWithFPN(body(), {"3": "fine", "5": "coarse"}, [12, 16], 8)
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 24), (32, 48), (64, 96)), ((1.0, 2.0),) * 3),
        rpn_head=RPNHead(8, 4, conv_depth=2),
        rpn_score_thresh=0.1,
        box_roi_pool=MultiScaleRoIAlign(["fine", "coarse"], 4, 0, canonical_scale=60),
        box_head=FastRCNNConvFCHead((8, 4, 4), [8, 8], [24], norm_layer=nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(24, 4),
        bbox_reg_weights=(8.0, 8.0, 4.0, 4.0),
        **SMALL,
    )


def own_head() -> FasterRCNN:
    return one_map(box_head=nn.Sequential(nn.Conv2d(16, 6, 4), nn.ReLU()), box_predictor=FastRCNNPredictor(6, 4))


def resnet18() -> FasterRCNN:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=3, returned_layers=[2, 3, 4]
    )
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,)), ((0.5, 1.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 3, 2),
        box_head=TwoMLPHead(256 * 9, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        **SMALL,
    )


@pytest.mark.parametrize("build", [one_map, tutorial, own_pyramid, own_head, resnet18])
def test_models_of_parts_give_the_same_boxes(build):
    torch.manual_seed(0)
    theirs = spread(build())
    theirs.rpn.min_size = 33.0  # RoIs under a cell have equal features and scores, in any order
    detector = from_torchvision(theirs, names=("a", "b", "c"))
    theirs, ours = theirs.double(), copy.deepcopy(detector.model).double().eval()
    images = torch.randn(2, 3, 128, 160, dtype=torch.float64)
    assert_same_boxes(theirs, ours, images, [(120, 160), (128, 150)], least=5)


def test_a_known_backbone_becomes_ours_with_its_frozen_stages():
    settings = import_model(resnet18()).settings
    model = settings.model
    assert (model.backbone, model.norm, model.frozen_stages, model.levels) == ("resnet18", "frozen", 2, (3, 4, 5, 6))


def test_a_resnet_with_another_inside_is_not_taken_for_one():
    model = resnet18()
    model.backbone.body.relu = nn.Tanh()
    imported = import_model(model)
    assert imported.settings.model.backbone == "custom"
    assert "kept as the user's own module" in imported.notes[0]


def test_a_saved_detector_with_the_users_modules_is_loaded_with_them(tmp_path):
    detector = from_torchvision(own_head())
    detector.save(tmp_path / "own.safetensors")
    modules = {"backbone": as_backbone(body()), "head": UserHead(own_head().roi_heads.box_head, 6)}
    again = Detector.load(tmp_path / "own.safetensors", device="cpu", **modules)
    image = torch.rand(3, 100, 120)
    expected, found = detector.predict(image, score=0.0)[0], again.predict(image, score=0.0)[0]
    assert (expected.boxes == found.boxes).all()
    assert len(expected) > 0


def test_frozen_norms_keep_their_eps():
    model = one_map(box_head=FastRCNNConvFCHead((16, 4, 4), [16], [32], norm_layer=lambda n: FrozenBatchNorm2d(n, 0.5)))
    settings = import_model(model).settings
    assert (settings.model.norm_eps, settings.model.norm, settings.roi.head) == (0.5, "frozen", "conv-fc")


def test_the_users_model_is_not_changed():
    model = one_map().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    from_torchvision(nn.DataParallel(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.backbone.training


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("transform.min_size", (80, 96), r"min_size` is \(80, 96\); .* = \(96,\)"),
        ("transform.fixed_size", (96, 96), "fixed_size` is .*None"),
        ("transform._skip_resize", True, "_skip_resize"),
        ("rpn.anchor_generator.aspect_ratios", ((1.0,), (2.0,)), "aspect_ratios` is .*same ratios"),
        ("rpn.anchor_generator.cell_anchors", [torch.zeros(9, 4)], r"cell_anchors\[0\]"),
        ("rpn.box_coder.weights", (2.0, 2.0, 1.0, 1.0), "rpn.box_coder.weights` is"),
        ("roi_heads.box_coder.bbox_xform_clip", 1.0, "bbox_xform_clip` is 1.0"),
        ("roi_heads.proposal_matcher.allow_low_quality_matches", True, "allow_low_quality_matches"),
        ("roi_heads.box_roi_pool.output_size", (4, 8), r"output_size` is \(4, 8\).*square"),
        ("roi_heads.box_roi_pool.featmap_names", ["no"], "featmap_names` is"),
        ("roi_heads.box_predictor", nn.Identity(), "box_predictor` is 'Identity'"),
        ("rpn.head", nn.Identity(), "rpn.head` is 'Identity'"),
    ],
)
def test_attributes_that_can_not_be_expressed_are_named(path, value, message):
    model = one_map()
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(model), name, value)
    with pytest.raises(WeightsError, match=message):
        import_model(model)


def test_other_detectors_are_refused_by_name():
    with pytest.raises(WeightsError, match="found RetinaNet"):
        import_model(retinanet_resnet50_fpn(weights=None, weights_backbone=None))


def test_masks_are_left_out_with_a_note():
    imported = import_model(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2))
    assert "masks" in imported.notes[0]
    assert imported.settings.model.backbone == "resnet50"


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "b")])
def test_names_must_be_as_many_as_classes_and_differ(names):
    with pytest.raises(WeightsError, match="3 classes beside the background"):
        import_model(one_map(), names)
