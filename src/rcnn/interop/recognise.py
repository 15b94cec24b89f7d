"""Recognise the contents of a file of tensors by their names, and advise how to use it."""

from collections.abc import Collection
from typing import NamedTuple

from rcnn.weights import caffe_detector

_CLASSIFIERS = {
    "features.0.0.weight": "a MobileNet classifier",
    "features.0.weight": "a VGG classifier",
    "layer1.0.conv1.weight": "a ResNet classifier",
    "conv_stem.weight": "a classifier in timm's names",
    "patch_embed.proj.weight": "a vision transformer",
}
"""Name of a characteristic tensor -> the network, in torchvision's names unless stated otherwise."""
_IMPORT = "make a detector of it: rcnn import FILE --arch"


class Kind(NamedTuple):
    """The kind of a file.

    Attributes:
        name: detector, torchvision, detectron2, caffe, mmdetection, backbone or unknown.
        text: the same as a phrase.
        advice: how to use it; `FILE` stands for the file.
    """

    name: str
    text: str
    advice: str


def kind_of(names: Collection[str]) -> Kind:
    """Return the kind of a file whose tensors have these names."""
    names = set(names)
    if "rpn.head.cls_logits.weight" in names:
        return _torchvision(names)
    if any(name.startswith("proposal_generator.") for name in names):
        pyramid = "FPN" if any(name.startswith("backbone.fpn_") for name in names) else "C4"
        two_stages = any(name.startswith("roi_heads.") for name in names)
        arch = f"faster_rcnn_R_50_{pyramid}_3x" if two_stages else f"rpn_R_50_{pyramid}_1x"
        advice = f"{_IMPORT} {arch} (or the configuration that it was trained with)"
        return Kind("detectron2", "a detector of detectron2", advice)
    if "rpn_head.rpn_conv.weight" in names:
        advice = "its layout is not supported; export it to torchvision's or train a new detector"
        return Kind("mmdetection", "a detector of mmdetection", advice)
    if any(name.startswith("backbone.trunk.") for name in names):
        advice = "settings and classes are missing, so it can't be loaded; save it by Detector.save"
        return Kind("unknown", "the bare tensors of an rcnn detector", advice)
    if recognised := caffe_detector.network_of(names):
        network, is_detector = recognised
        preset = f"paper-{network}"
        if is_detector:
            return Kind("caffe", f"a detector of Caffe, the paper's {network}", f"{_IMPORT} {preset}")
        advice = f"start a training of such a backbone from it: rcnn train DATA --model {preset} --init FILE"
        return Kind("backbone", f"a {network} classifier in Caffe's names", advice)
    for name, text in _CLASSIFIERS.items():
        if name in names:
            return Kind("backbone", text, "start a training of such a backbone from it: rcnn train DATA --init FILE")
    return Kind("unknown", "weights of an unknown kind", "rcnn can't use it")


def _torchvision(names: set[str]) -> Kind:
    if any(name.startswith(("roi_heads.mask", "roi_heads.keypoint")) for name in names):
        return Kind("torchvision", "a Mask or Keypoint R-CNN of torchvision", "only its Faster R-CNN can be imported")
    if "roi_heads.box_head.5.weight" in names:
        arch = "fasterrcnn_resnet50_fpn_v2"
    elif any(name.startswith("backbone.body.layer1.") for name in names):
        arch = "fasterrcnn_resnet50_fpn"
    else:
        arch = "fasterrcnn_mobilenet_v3_large_fpn"  # or ..._320_fpn, whose tensors are the same
    return Kind("torchvision", "a Faster R-CNN of torchvision", f"{_IMPORT} {arch}")
