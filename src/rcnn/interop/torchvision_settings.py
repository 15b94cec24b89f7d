"""Read settings from the attributes of an instance of torchvision's Faster R-CNN.

The core has no branch for a library. The fixed conventions of torchvision are listed here: sizes rounded down,
interpolation without antialiasing, rounded anchors on cell corners with a guessed stride, unaligned RoI align.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from rcnn.config import Anchors, merge
from rcnn.errors import WeightsError
from rcnn.model.anchors import RULES, cell_anchors
from rcnn.model.boxes import MAX_LOG_SCALE

ALWAYS: dict[str, dict[str, Any]] = {
    "preprocess": {"resize": "interpolate", "round": "floor", "order": "rgb"},
    "anchors": {**RULES["torchvision"], "ratio": "h/w"},
    "rpn": {"channels": None, "kernel": 3, "logits": 1, "min_size": 1e-3},
    "roi": {"pool": "align", "aligned": False, "stages": 1, "class_agnostic": False, "min_size": 1e-2},
}
"""Settings that torchvision has no arguments for."""

TRAINING: dict[str, dict[str, Any]] = {
    "anchors": {"border": None},
    "rpn": {"normaliser": "sampled", "box_loss": "smooth_l1", "beta": 1 / 9, "lambda": 1.0},
    "roi": {"dropout": 0.0, "box_loss": "smooth_l1", "beta": 1 / 9, "box_weight": 1.0},
    "train": {"optimizer": "sgd", "lr": 0.02, "weight_decay": 1e-4},
}
"""torchvision's losses, and the optimiser of its own recipes (the learning rate is for 16 images)."""


class FeatureMaps(NamedTuple):
    """The feature maps of a backbone.

    Attributes:
        names: torchvision's names, finest first.
        levels: levels of the maps; level n has stride 2^n.
        channels: channels of every map.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    channels: int


def read_settings(model: Any, maps: FeatureMaps, in_channels: int) -> dict[str, Any]:
    """Return the settings of all parts except the backbone, as a tree.

    Args:
        model: torchvision's `FasterRCNN`, whose attributes have no types.
        maps: its backbone's feature maps.
        in_channels: channels of the images.

    Raises:
        WeightsError: no setting expresses what the model does; the message names the attribute.
    """
    tree: dict[str, Any] = merge(ALWAYS, TRAINING)
    read = {
        "preprocess": {"in_channels": in_channels, **_preprocess(model.transform)},
        "anchors": _anchors(model.rpn.anchor_generator),
        "rpn": _rpn(model.rpn),
        "roi": {
            **_roi(model.roi_heads),
            **_pool(model.roi_heads.box_roi_pool, maps),
            **(read_head(model.roi_heads.box_head, maps.channels) or {}),
        },
    }
    tree = merge(tree, read)
    _check_cells(model.rpn.anchor_generator, Anchors.model_validate(tree["anchors"]))
    return tree


def read_head(head: Any, channels: int) -> dict[str, Any] | None:
    """Read the `roi` settings of torchvision's head on maps of `channels` channels; None: the user's own module."""
    if type(head) is TwoMLPHead:
        return {"head": "fc", "hidden": head.fc6.out_features}
    layers: list[Any] = list(head) if type(head) is FastRCNNConvFCHead else []
    kinds = [type(layer) for layer in layers]
    convs = kinds.index(nn.Flatten) if nn.Flatten in kinds else 0
    if not convs or kinds[convs:] != [nn.Flatten, nn.Linear, nn.ReLU]:
        return None
    blocks = [[type(layer) for layer in block] for block in layers[:convs]]
    geometry = {(block[0].in_channels, block[0].out_channels, block[0].kernel_size) for block in layers[:convs]}
    norms: dict[Any, str] = {(nn.Conv2d, nn.ReLU): "none"}
    norms |= {(nn.Conv2d, norm, nn.ReLU): "batch" for norm in (nn.BatchNorm2d, FrozenBatchNorm2d)}
    if geometry != {(channels, channels, (3, 3))} or len(set(map(tuple, blocks))) != 1 or tuple(blocks[0]) not in norms:
        return None
    linear = layers[convs + 1]
    return {"head": "conv-fc", "convs": convs, "head_norm": norms[tuple(blocks[0])], "hidden": linear.out_features}


def refuse(attribute: str, value: object, advice: str) -> NoReturn:
    """Report an attribute that can't be imported.

    Raises:
        WeightsError: always.
    """
    raise WeightsError(f"`model.{attribute}` is {value!r}; {advice}")


def expect(part: Any, kind: type, attribute: str) -> None:
    """Refuse a part that is not exactly torchvision's, since the changes of a subclass can't be read."""
    if type(part) is not kind:
        refuse(attribute, type(part).__name__, f"only torchvision's own {kind.__name__} can be read: use one of these")


def _preprocess(transform: Any) -> dict[str, Any]:
    expect(transform, GeneralizedRCNNTransform, "transform")
    if len(transform.min_size) != 1:
        last = transform.min_size[-1]
        refuse(
            "transform.min_size",
            tuple(transform.min_size),
            f"one size is needed: set model.transform.min_size = ({last},), which it uses for prediction",
        )
    if transform.fixed_size is not None:
        refuse("transform.fixed_size", transform.fixed_size, "rcnn keeps the shape of images: set it to None")
    if transform._skip_resize:
        refuse("transform._skip_resize", True, "rcnn always resizes images: set it to False")
    return {
        "short": transform.min_size[0],
        "long": transform.max_size,
        "multiple": transform.size_divisible,
        "mean": tuple(transform.image_mean),
        "std": tuple(transform.image_std),
    }


def _anchors(generator: Any) -> dict[str, Any]:
    expect(generator, AnchorGenerator, "rpn.anchor_generator")
    ratios = {tuple(ratios) for ratios in generator.aspect_ratios}
    if len(ratios) != 1:
        refuse(
            "rpn.anchor_generator.aspect_ratios",
            tuple(generator.aspect_ratios),
            "all levels must have the same ratios: train a model with one tuple of ratios, repeated",
        )
    return {"sizes": tuple(tuple(sizes) for sizes in generator.sizes), "ratios": ratios.pop()}


def _check_cells(generator: Any, settings: Anchors) -> None:
    """Check the anchors themselves, which may have been set by hand."""
    for level, cells in enumerate(generator.cell_anchors):
        if not torch.equal(cells.cpu().float(), cell_anchors(settings, level)):
            refuse(
                f"rpn.anchor_generator.cell_anchors[{level}]",
                cells.tolist(),
                "these are not the anchors of its sizes and ratios: only those can be imported",
            )


def _rpn(rpn: Any) -> dict[str, Any]:
    expect(rpn, RegionProposalNetwork, "rpn")
    expect(rpn.head, RPNHead, "rpn.head")
    _check_coder(rpn.box_coder, "rpn.box_coder", (1.0, 1.0, 1.0, 1.0))
    return {
        "convs": len(rpn.head.conv),
        "positive_iou": rpn.proposal_matcher.high_threshold,
        "negative_iou": rpn.proposal_matcher.low_threshold,
        "force_match": rpn.proposal_matcher.allow_low_quality_matches,
        **_sampling(rpn.fg_bg_sampler),
        "pre_train": rpn._pre_nms_top_n["training"],
        "post_train": rpn._post_nms_top_n["training"],
        "pre_test": rpn._pre_nms_top_n["testing"],
        "post_test": rpn._post_nms_top_n["testing"],
        "nms": rpn.nms_thresh,
        "score": rpn.score_thresh,
        "min_size": rpn.min_size,
    }


def _roi(heads: Any) -> dict[str, Any]:
    expect(heads, RoIHeads, "roi_heads")
    expect(heads.box_predictor, FastRCNNPredictor, "roi_heads.box_predictor")
    _check_coder(heads.box_coder, "roi_heads.box_coder")
    matcher = heads.proposal_matcher
    if matcher.allow_low_quality_matches:
        refuse("roi_heads.proposal_matcher.allow_low_quality_matches", True, "set it to False")
    return {
        "positive_iou": matcher.high_threshold,
        "negative_iou": (0.0, matcher.low_threshold),
        **_sampling(heads.fg_bg_sampler),
        "box_std": tuple(1 / weight for weight in heads.box_coder.weights),
        "score": heads.score_thresh,
        "nms": heads.nms_thresh,
        "detections": heads.detections_per_img,
    }


def _sampling(sampler: Any) -> dict[str, Any]:
    """Return the number of samples, and a fraction that accounts for torchvision's rounding down of positives."""
    count = sampler.batch_size_per_image
    return {"samples": count, "positive_fraction": int(count * sampler.positive_fraction) / count}


def _check_coder(coder: Any, attribute: str, weights: Sequence[float] | None = None) -> None:
    if weights is not None and tuple(coder.weights) != weights:
        refuse(f"{attribute}.weights", coder.weights, f"only {weights} can be imported")
    if not math.isclose(coder.bbox_xform_clip, MAX_LOG_SCALE):
        refuse(f"{attribute}.bbox_xform_clip", coder.bbox_xform_clip, f"only log(1000 / 16) = {MAX_LOG_SCALE} can be")


def _pool(pool: Any, maps: FeatureMaps) -> dict[str, Any]:
    expect(pool, MultiScaleRoIAlign, "roi_heads.box_roi_pool")
    height, width = pool.output_size
    if height != width:
        refuse("roi_heads.box_roi_pool.output_size", pool.output_size, "only square RoI features can be imported")
    return {
        "levels": _roi_levels(pool, maps),
        "size": height,
        "sampling_ratio": max(0, pool.sampling_ratio),
        "canonical_size": pool.canonical_scale,
        "canonical_level": pool.canonical_level,
    }


def _roi_levels(pool: Any, maps: FeatureMaps) -> tuple[int, ...]:
    """Return the levels that RoIs are read from.

    torchvision indexes the maps by an RoI's level minus that of the first map, up to the level of the last map, so that
    it reads only the first of two maps of stride 32 (MobileNetV3).
    """
    chosen = [index for index, name in enumerate(maps.names) if name in pool.featmap_names]
    levels = [maps.levels[index] for index in chosen]
    if levels:
        read = levels[: levels[-1] - levels[0] + 1]
        expected = list(range(levels[0], levels[-1] + 1))
        if read == expected and [maps.levels.index(level) for level in read] == chosen[: len(read)]:
            return tuple(read)
    refuse(
        "roi_heads.box_roi_pool.featmap_names",
        pool.featmap_names,
        f"these choose levels {levels} of the backbone's {maps.levels} ({', '.join(maps.names)}): "
        "they must be consecutive",
    )
