"""Tell what a file of tensors holds from their names, and what can be done with it."""

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
"""Name of a telling tensor -> the network, in torchvision's names unless it says otherwise."""
_IMPORT = "make a detector of it: rcnn import FILE --arch"


class Kind(NamedTuple):
    """The kind of a file.

    Attributes:
        name: detector, torchvision, detectron2, caffe, mmdetection, backbone or unknown.
        text: the same as a phrase.
        advice: what to do with it; `FILE` stands for the file.
    """

    name: str
    text: str
    advice: str


def kind_of(names: Collection[str]) -> Kind:
    """Tell what tensors with these names are weights of."""
    names = set(names)
    if "rpn.head.cls_logits.weight" in names:
        return _torchvision(names)
    if any(name.startswith("proposal_generator.") for name in names):
        pyramid = "FPN" if any(name.startswith("backbone.fpn_") for name in names) else "C4"
        whole = any(name.startswith("roi_heads.") for name in names)
        arch = f"faster_rcnn_R_50_{pyramid}_3x" if whole else f"rpn_R_50_{pyramid}_1x"
        advice = f"{_IMPORT} {arch} (or the configuration that it was trained with)"
        return Kind("detectron2", "a detector of detectron2", advice)
    if "rpn_head.rpn_conv.weight" in names:
        advice = "its layout is not read here; export it to torchvision's or train anew"
        return Kind("mmdetection", "a detector of mmdetection", advice)
    if any(name.startswith("backbone.trunk.") for name in names):
        advice = "settings and classes are missing, so it can't be loaded; save it by Detector.save"
        return Kind("unknown", "the bare tensors of an rcnn detector", advice)
    if recognised := caffe_detector.network_of(names):
        network, whole = recognised
        preset = f"paper-{network}"
        if whole:
            return Kind("caffe", f"a detector of Caffe, the paper's {network}", f"{_IMPORT} {preset}")
        advice = f"start a training of such a backbone from it: rcnn train DATA --model {preset} --init FILE"
        return Kind("backbone", f"a {network} classifier in Caffe's names", advice)
    for name, text in _CLASSIFIERS.items():
        if name in names:
            return Kind("backbone", text, "start a training of such a backbone from it: rcnn train DATA --init FILE")
    return Kind("unknown", "weights of something else", "it can't be used here")


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
