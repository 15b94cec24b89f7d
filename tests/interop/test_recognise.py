import pytest
from torchvision.models import detection, mobilenet_v2, resnet18

from rcnn.interop.recognise import kind_of
from rcnn.presets import build, settings_of


@pytest.mark.parametrize(
    "arch", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]
)
def test_torchvisions_detectors_are_recognised_by_architecture(arch: str) -> None:
    kind = kind_of(getattr(detection, arch)(weights=None, weights_backbone=None).state_dict())
    assert kind.name == "torchvision"
    assert kind.advice.endswith(f"--arch {arch}")


def test_other_detectors_of_torchvision_are_not_mistaken_for_it() -> None:
    names = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    assert "Mask or Keypoint R-CNN" in kind_of(names).text
    assert kind_of(detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()).name == "unknown"


@pytest.mark.parametrize("model", [mobilenet_v2, resnet18])
def test_classifiers_can_start_a_training(model: object) -> None:
    kind = kind_of(model(weights=None).state_dict())  # type: ignore[operator]
    assert kind.name == "backbone"
    assert "rcnn train DATA --init FILE" in kind.advice


@pytest.mark.parametrize(
    ("names", "arch"),
    [
        (("proposal_generator.rpn_head.conv.weight", "backbone.fpn_lateral2.weight"), "rpn_R_50_FPN_1x"),
        (("proposal_generator.rpn_head.conv.weight", "roi_heads.res5.0.conv1.weight"), "faster_rcnn_R_50_C4_3x"),
    ],
)
def test_detectron2_is_recognised_by_its_names(names: tuple[str, ...], arch: str) -> None:
    kind = kind_of(names)
    assert kind.name == "detectron2"
    assert f"--arch {arch} " in kind.advice


def test_bare_tensors_of_ours_and_of_anything_else_are_of_no_use() -> None:
    assert "Detector.save" in kind_of(build(settings_of("tiny-fpn"), 2).state_dict()).advice
    assert kind_of(["x", "y"]).name == "unknown"
    assert kind_of([]).name == "unknown"
    assert kind_of(["rpn_head.rpn_conv.weight"]).name == "mmdetection"
