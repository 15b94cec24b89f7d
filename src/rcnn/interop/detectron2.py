"""Import detectron2's Faster R-CNN and RPN: map tensor names and express its conventions as settings.

The core has no branch for a library. The conventions of detectron2 are listed here: blue before red and pixels in
0..255, sizes that are scaled twice, strides in the first convolution of a bottleneck (Caffe's ResNets), anchors on cell
corners, adaptive RoI align, losses of absolute differences. The numbers are those of its configuration files of the
same names.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rcnn.config import Settings, merge, validate
from rcnn.errors import WeightsError
from rcnn.model.anchors import RULES, cell_anchors
from rcnn.weights.imported import Imported, class_names, coco_names


def _normalised(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return settings for mean and deviation of pixels in 0..255; ours are in 0..1."""
    return {"preprocess": {"mean": [value / 255 for value in mean], "std": [value / 255 for value in std]}}


_MEAN = (103.53, 116.28, 123.675)
_BASE: dict[str, Any] = {
    "preprocess": {"short": 800, "long": 1333, "round": "short-first", "order": "bgr"},
    "model": {"frozen_stages": 2, "stride_in": "1x1"},
    "anchors": RULES["detectron2"],
    "rpn": {
        "beta": 0.0,
        "ignore": "drop",
        "min_size": 0.0,
        "normaliser": "requested",
        "post_train": 1000,
        "post_test": 1000,
    },
    "roi": {"beta": 0.0, "ignore": "drop", "sampling_ratio": 0, "samples": 512},
}
_FPN: dict[str, Any] = {
    "preprocess": {"multiple": 32},
    "model": {"levels": (2, 3, 4, 5, 6)},
    "anchors": {"sizes": ((32,), (64,), (128,), (256,), (512,))},
    "rpn": {"pre_train": 2000, "pre_test": 1000},
    "roi": {"levels": (2, 3, 4, 5)},
}
_C4: dict[str, Any] = {
    "preprocess": {"multiple": 1},
    "model": {"neck": "none", "levels": (4,)},
    "anchors": {"sizes": ((32, 64, 128, 256, 512),)},
    "rpn": {"pre_train": 12000, "post_train": 2000, "pre_test": 6000},
    "roi": {"levels": (4,), "size": 14, "head": "conv5"},
}
_CASCADE: dict[str, Any] = {"roi": {"stages": 3}}
_PROPOSALS: dict[str, Any] = {"roi": {"head": "none"}, "rpn": {"post_test": 2000}}


def _tree(base: Mapping[str, Any], depth: int, *changes: Mapping[str, Any]) -> dict[str, Any]:
    preset = f"resnet{depth}-fpn" if base is _FPN else "resnet50-c4"
    pixels = _normalised(_MEAN, (1, 1, 1))
    tree: dict[str, Any] = {"model": {"preset": preset, "backbone": f"resnet{depth}"}}
    for settings in (_BASE, pixels, base, *changes):
        tree = merge(tree, settings)
    return tree


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "faster_rcnn_R_50_C4_1x": _tree(_C4, 50),
    "faster_rcnn_R_50_C4_3x": _tree(_C4, 50),
    "faster_rcnn_R_101_C4_3x": _tree(_C4, 101),
    "faster_rcnn_R_50_FPN_1x": _tree(_FPN, 50),
    "faster_rcnn_R_50_FPN_3x": _tree(_FPN, 50),
    "faster_rcnn_R_101_FPN_3x": _tree(_FPN, 101),
    "faster_rcnn_X_101_32x8d_FPN_3x": _tree(
        _FPN,
        101,
        {"model": {"backbone": "resnext101_32x8d", "stride_in": "3x3"}},
        _normalised(_MEAN, (57.375, 57.12, 58.395)),
    ),
    "cascade_mask_rcnn_R_50_FPN_1x": _tree(_FPN, 50, _CASCADE),
    "cascade_mask_rcnn_R_50_FPN_3x": _tree(_FPN, 50, _CASCADE),
    "rpn_R_50_C4_1x": _tree(_C4, 50, _PROPOSALS, {"rpn": {"pre_test": 12000}}),
    "rpn_R_50_FPN_1x": _tree(_FPN, 50, _PROPOSALS),
}
"""Name of a configuration of detectron2's COCO-Detection or Misc -> differences from the defaults of `Settings`."""

_HEADS = {"": "fast_rcnn.", r"0\.": "fast_rcnn.", r"1\.": "fast_rcnn.later.0.", r"2\.": "fast_rcnn.later.1."}
_HEAD_LAYERS = {
    "box_head": {"fc1": "head.fc6", "fc2": "head.fc7"},
    "box_predictor": {"cls_score": "predictor.cls", "bbox_pred": "predictor.reg"},
}
_PREFIXES = (
    (r"backbone\.(?:bottom_up\.)?stem\.", "backbone.trunk."),
    *((rf"backbone\.(?:bottom_up\.)?res{n}\.", f"backbone.trunk.layer{n - 1}.") for n in (2, 3, 4, 5)),
    (r"backbone\.fpn_lateral(\d)\.", r"backbone.neck.lateral.p\1."),
    (r"backbone\.fpn_output(\d)\.", r"backbone.neck.output.p\1."),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.head.conv."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.reg."),
    (r"roi_heads\.res5\.", "fast_rcnn.head.layer4."),
    *(
        (rf"roi_heads\.{part}\.{number}{theirs}\.", f"{head}{ours}.")
        for number, head in _HEADS.items()
        for part, layers in _HEAD_LAYERS.items()
        for theirs, ours in layers.items()
    ),
)
_INSIDE = (
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.weight", "downsample.0.weight"),
)
_LICENCE = (
    "converted on this machine; if the file is from detectron2's model zoo, its weights are under CC BY-SA 3.0, "
    "and so are all weights made from them"
)
_MASKS = "roi_heads.mask_head."
_CELLS = re.compile(r"(?:proposal_generator\.)?anchor_generator\.cell_anchors\.(\d)")


def import_state(state: Mapping[str, Tensor], arch: str, names: Sequence[str] | None = None) -> Imported:
    """Convert a checkpoint of detectron2 into our settings and tensors.

    Widths, the number of classes and, if present, the constants of the normalisation are read from the file.

    Args:
        state: the checkpoint's `model`: name -> tensor.
        arch: one of `ARCHITECTURES`.
        names: class names. None: COCO's if there are 80 classes, else `class_1`, `class_2`, ...

    Raises:
        WeightsError: the architecture is unknown, a tensor is missing or unexpected, the anchors differ, or the
            number of names is not that of the classes.
    """
    if arch not in ARCHITECTURES:
        reason = "networks with a dilated fifth stage (DC5) are not supported; " if "DC5" in arch else ""
        raise WeightsError(f"`{arch}` can't be imported: {reason}supported are {', '.join(ARCHITECTURES)}")
    without = _MASKS if "mask" in arch else ()
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(without)}
    notes = (_LICENCE,) if len(rest) == len(state) else ("its masks were left out", _LICENCE)
    tree = merge(ARCHITECTURES[arch], _widths(rest, arch))
    if "pixel_mean" in rest and "pixel_std" in rest:
        tree = merge(tree, _normalised(*(rest.pop(f"pixel_{name}").flatten().tolist() for name in ("mean", "std"))))
    settings = validate(tree)
    for name in [name for name in rest if _CELLS.fullmatch(name)]:
        level, cells, sizes = int(name.rpartition(".")[2]), rest.pop(name), settings.anchors.sizes
        expected = cell_anchors(settings.anchors, level) if level < len(sizes) else cells.new_zeros(0, 4)
        if cells.shape != expected.shape or not torch.allclose(cells.float(), expected, atol=0.1):
            raise WeightsError(
                f"the checkpoint was trained with other anchors than {arch}: `{name}` is {cells.tolist()}, "
                f"but {expected.tolist()} in the configuration"
            )
    tensors = {_renamed(name, arch): tensor for name, tensor in rest.items()}
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    if settings.roi.head == "none":
        return Imported(settings, tensors, ("object",), None, notes)
    # The background is the last row, so class k is row k.
    count = _shape(rest, f"roi_heads.box_predictor.{_first(settings)}cls_score.weight", arch)[0] - 1
    known = {name: i for i, name in enumerate(coco_names(), start=1) if not name.startswith("unused_")}
    labels = class_names(count, names, tuple(known))
    category_ids = tuple(known.values()) if labels == tuple(known) else None
    return Imported(settings, tensors, labels, category_ids, notes)


def _first(settings: Settings) -> str:
    """Return what the names of the first of several heads contain in addition."""
    return "0." if settings.roi.stages > 1 else ""


def _shape(state: Mapping[str, Tensor], name: str, arch: str) -> tuple[int, ...]:
    if name not in state:
        raise WeightsError(
            f"the checkpoint has no `{name}`, which {arch} has; its first names are {sorted(state)[:3]}. "
            "Give the name of the configuration that it was trained with"
        )
    return tuple(state[name].shape)


def _widths(state: Mapping[str, Tensor], arch: str) -> dict[str, Any]:
    """Return the widths of layers as settings, None for the standard ones."""
    settings = validate(ARCHITECTURES[arch])
    pyramid = settings.model.neck == "fpn"
    trunk = "backbone.bottom_up." if pyramid else "backbone."
    layers = ("stem.conv1", "res2.0.conv1", "res2.0.conv3")
    widths = tuple(_shape(state, f"{trunk}{layer}.weight", arch)[0] for layer in layers)
    usual = (64, 256 if settings.model.backbone.startswith("resnext") else 64, 256)
    hidden, features, *_ = _shape(state, "proposal_generator.rpn_head.conv.weight", arch)
    tree: dict[str, Any] = {
        "model": {"widths": None if widths == usual else widths},
        "rpn": {"channels": None if hidden == features else hidden},
    }
    if pyramid:
        tree["model"]["channels"] = _shape(state, "backbone.fpn_output2.weight", arch)[0]
    if settings.roi.head == "fc":
        tree["roi"] = {"hidden": _shape(state, f"roi_heads.box_head.{_first(settings)}fc1.weight", arch)[0]}
    return tree


def _renamed(name: str, arch: str) -> str:
    for prefix, ours in _PREFIXES:
        if match := re.match(prefix, name):
            rest = name[match.end() :]
            for pattern, replacement in _INSIDE:
                rest = re.sub(pattern, replacement, rest)
            return match.expand(ours) + rest
    raise WeightsError(f"the checkpoint has `{name}`, which {arch} does not have; give the name of its configuration")
