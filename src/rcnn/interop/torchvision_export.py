"""Export to torchvision's Faster R-CNN: the state dictionary, and a program that builds a model to load it."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rcnn.backbones.build import build_backbone
from rcnn.config import RoI, Settings, dump
from rcnn.errors import WeightsError
from rcnn.interop.torchvision import PREFIXES
from rcnn.interop.torchvision_names import table, to_torchvision
from rcnn.interop.torchvision_settings import ALWAYS
from rcnn.weights.adapt import shapes_alone
from rcnn.weights.box_targets import renormalise
from rcnn.weights.file import atomic_write

_PROGRAM = """\
from functools import partial

from torch.nn import BatchNorm2d
from torchvision.models import {function}
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

body = {function}(weights=None, norm_layer={body_norm}){features}
model = FasterRCNN(
    BackboneWithFPN(body, {layers}, {widths}, {channels}, norm_layer={neck_norm}),
    min_size={p.short},
    max_size={p.long},
    size_divisible={p.multiple},
    image_mean={p.mean},
    image_std={p.std},
    rpn_anchor_generator=AnchorGenerator({a.sizes}, ({a.ratios},) * {levels}),
    rpn_head=RPNHead({channels}, {per_cell}, conv_depth={rpn.convs}),
    rpn_pre_nms_top_n_train={rpn.pre_train},
    rpn_pre_nms_top_n_test={rpn.pre_test},
    rpn_post_nms_top_n_train={rpn.post_train},
    rpn_post_nms_top_n_test={rpn.post_test},
    rpn_nms_thresh={rpn.nms},
    rpn_fg_iou_thresh={rpn.positive_iou},
    rpn_bg_iou_thresh={rpn.negative_iou},
    rpn_batch_size_per_image={rpn.samples},
    rpn_positive_fraction={rpn.positive_fraction},
    rpn_score_thresh={rpn.score},
    box_roi_pool=MultiScaleRoIAlign(
        {maps},
        {roi.size},
        {roi.sampling_ratio},
        canonical_scale={roi.canonical_size},
        canonical_level={roi.canonical_level},
    ),
    box_head={head},
    box_predictor=FastRCNNPredictor({roi.hidden}, {rows}),
    box_score_thresh={roi.score},
    box_nms_thresh={roi.nms},
    box_detections_per_img={roi.detections},
    box_fg_iou_thresh={roi.positive_iou},
    box_bg_iou_thresh={roi.negative_iou[1]},
    box_batch_size_per_image={roi.samples},
    box_positive_fraction={roi.positive_fraction},
    bbox_reg_weights={weights},
)
"""


def export_state(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """Convert our model's tensors to the state dictionary of torchvision's `FasterRCNN`, on the CPU.

    Raises:
        WeightsError: torchvision can't represent a model of these settings; the message names them.
    """
    _check(settings)
    names = table(settings, PREFIXES[settings.model.backbone])
    tensors = renormalise(tensors, settings.roi, RoI(box_std=settings.roi.box_std))  # its coder has no mean
    return to_torchvision(tensors, names, frozen=settings.model.norm != "train")


def program(settings: Settings, classes: int) -> str:
    """Return Python code that builds `model`, a `FasterRCNN` of torchvision that loads `export_state` strictly.

    Raises:
        WeightsError: as for `export_state`.
    """
    _check(settings)
    name, roi, levels = settings.model.backbone, settings.roi, settings.model.levels
    with shapes_alone():
        backbone = build_backbone(settings)
    trunk, neck = backbone.trunk, backbone.neck
    assert neck is not None
    neck_norm = _norm(settings, settings.model.norm_eps)
    head = f"TwoMLPHead({settings.model.channels * roi.size**2}, {roi.hidden})"
    if roi.head == "conv-fc":
        shape = (settings.model.channels, roi.size, roi.size)
        convs = [settings.model.channels] * roi.convs
        norm = neck_norm if roi.head_norm == "batch" else None
        head = f"FastRCNNConvFCHead({shape}, {convs}, [{roi.hidden}], norm_layer={norm})"
    return _PROGRAM.format(
        function="mobilenet_v2" if name == "mobilenet" else name,
        features=".features" if PREFIXES[name] else "",
        body_norm=_norm(settings, next(layer.eps for layer in trunk.modules() if hasattr(layer, "eps"))),
        neck_norm=neck_norm if settings.model.neck_norm == "batch" else None,
        layers={trunk.layers[i]: str(place) for place, i in enumerate(neck.read)},
        widths=[trunk.widths[i] for i in neck.read],
        channels=settings.model.channels,
        levels=len(levels),
        per_cell=len(settings.anchors.sizes[0]) * len(settings.anchors.ratios),
        maps=[str(levels.index(level)) for level in roi.levels],
        head=head,
        rows=classes + 1,
        weights=tuple(1 / std for std in roi.box_std),
        p=settings.preprocess,
        a=settings.anchors,
        rpn=settings.rpn,
        roi=roi,
    )


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dictionary atomically as .pth (for torch.load) or .safetensors.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    if path.suffix == ".safetensors":
        atomic_write(path, safetensors.torch.save(dict(state)))
        return
    content = BytesIO()
    torch.save(dict(state), content)
    atomic_write(path, content.getvalue())


def _norm(settings: Settings, eps: Any) -> str:
    kind = "FrozenBatchNorm2d" if settings.model.norm != "train" else "BatchNorm2d"
    return f"partial({kind}, eps={1e-5 if eps is None else eps})"


def _check(settings: Settings) -> None:
    faults = list(_faults(settings))
    if faults:
        raise WeightsError(
            f"torchvision's Faster R-CNN can't hold this detector: {'; '.join(faults)}. Train one with torchvision's "
            "values of these settings, or start from an imported detector"
        )


def _faults(settings: Settings) -> Iterator[str]:
    """Yield sentences about settings for which torchvision has no argument."""
    tree, model, roi = dump(settings), settings.model, settings.roi
    fixed = {
        **ALWAYS,
        "preprocess": {**ALWAYS["preprocess"], "in_channels": 3},
        "model": {"neck": "fpn", "stride_in": "3x3", "widths": None},
    }
    for section, values in fixed.items():
        for key, value in values.items():
            own = tree[section][key]
            if own != value and not (key == "channels" and own == model.channels):
                yield f"`{section}.{key}` is {own}, in torchvision it is {value}"
    if settings.train.proposals is not None:
        scheme = settings.train.scheme
        yield f"`train.scheme` is {scheme}: its RPN is untrained, and torchvision takes no external proposals"
    if model.backbone not in PREFIXES:
        yield f"`model.backbone` is {model.backbone}, in torchvision it can be {', '.join(PREFIXES)}"
    elif model.neck == "fpn":
        with shapes_alone():
            top = build_backbone(settings).trunk.levels[-1]
        if model.levels[-2:] != (top, top + 1):
            yield f"`model.levels` is {model.levels}, in torchvision the last are {top} and, pooled from it, {top + 1}"
    if roi.head not in ("fc", "conv-fc"):
        yield f"`roi.head` is {roi.head}, in torchvision it can be fc or conv-fc"
    if roi.levels != tuple(range(roi.levels[0], roi.levels[-1] + 1)):
        yield f"`roi.levels` is {roi.levels}, in torchvision levels are consecutive"
    if roi.negative_iou[0] != 0:
        yield f"`roi.negative_iou` is {roi.negative_iou}, in torchvision it begins at 0"
