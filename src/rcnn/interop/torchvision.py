"""Convert torchvision's Faster R-CNN, an instance or a state dictionary, into our settings and tensors.

Its backbone is matched to one of ours, or kept as the user's own module.
"""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from rcnn.backbones.build import TRUNKS, build_backbone
from rcnn.config import Settings, merge, validate
from rcnn.errors import SettingsError, WeightsError
from rcnn.interop.torchvision_names import ARCHITECTURES, OTHER_HEADS, table, to_ours
from rcnn.interop.torchvision_settings import FeatureMaps, read_head, read_settings
from rcnn.weights.adapt import shapes_alone, some, weights_follow
from rcnn.weights.imported import Imported, class_names, coco_names

_PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
_RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
_MOBILENETS = ("mobilenet_v3_large", "mobilenet")

PREFIXES: dict[str, str] = {**dict.fromkeys(_RESNETS, ""), **dict.fromkeys(_MOBILENETS, "features.")}
"""Our trunks that torchvision's bodies can match -> prefix that our tensor names add to theirs."""

_PROBE = 256
"""Side in pixels of the image that strides are measured with, large enough for several cells in P6 and P7."""

_TOLERANCE = 1e-3
"""Largest difference between backbones that count as equal, relative to the largest feature."""


class UserHead(nn.Module):
    """The user's own module as the second stage's head.

    Args:
        body: module that maps (N, C, S, S) RoI features to (N, features) or (N, features, 1, 1).
        features: length of the feature vector of an RoI.
    """

    foldable = False  # its modules need not run in the order in which they are kept

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.out_features = body, features

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, features)."""
        return self.body(rois).flatten(1)


class UserBackbone(nn.Module):
    """The user's own module as a backbone.

    Args:
        body: module that maps (B, C, H, W) to one map or a dictionary of maps, finest first.
        maps: names, levels and channels of its maps.

    Attributes:
        strides: stride of each output in pixels.
        channels: channels of every output.
        settings: its `model` settings.
    """

    foldable = False  # its modules need not run in the order in which they are kept

    def __init__(self, body: nn.Module, maps: FeatureMaps) -> None:
        super().__init__()
        self.body, self.names = body, maps.names
        self.strides, self.channels = tuple(2**level for level in maps.levels), maps.channels
        neck = "fpn" if len(maps.levels) > 1 else "none"
        self.settings = {"backbone": "custom", "neck": neck, "channels": maps.channels, "levels": maps.levels}

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, C, H, W) -> name -> (B, channels, H / stride, W / stride)."""
        maps = self.body(images)
        return OrderedDict({self.names[0]: maps}) if isinstance(maps, Tensor) else OrderedDict(maps)


def as_backbone(body: nn.Module) -> UserBackbone:
    """Wrap a backbone for torchvision's detectors; one forward pass in eval mode measures its strides.

    Raises:
        WeightsError: its outputs are not feature maps of equal width.
    """
    return UserBackbone(body, probe(copy.deepcopy(body).cpu().float().eval()))


def import_model(model: nn.Module, names: Sequence[str] | None = None) -> Imported:
    """Convert an instance of torchvision's `FasterRCNN`, reading the settings from its attributes.

    ResNets, ResNeXts and MobileNets under torchvision's pyramid become ours if they compute the same features. Any
    other backbone, and any head that is not torchvision's, is copied as the user's own module.

    Args:
        model: made by one of torchvision's functions, or assembled from its parts. It is not changed.
        names: class names, without the background. None: COCO's for 91 classes, else `class_1`, ...

    Raises:
        WeightsError: no setting expresses what the model does; the message names the attribute.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # inside a compiled one
    if not isinstance(model, FasterRCNN):
        raise WeightsError(f"expected an instance of torchvision's FasterRCNN, found {type(model).__name__}")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    body = copy.deepcopy(model.backbone).cpu().float().eval()
    maps = probe(body)
    heads: Any = model.roi_heads
    tree = read_settings(model, maps, in_channels(body))
    head = None
    if read_head(heads.box_head, maps.channels) is None:
        head = UserHead(copy.deepcopy(heads.box_head).cpu().float(), heads.box_predictor.cls_score.in_features)

    def converted(backbone: Mapping[str, Any], *normed: nn.Module) -> tuple[Settings, dict[str, Tensor]]:
        norms = norm_settings(normed if head else (*normed, heads))
        settings = validate(merge(tree, {"model": {"preset": "torchvision", **backbone, **norms}}))
        return settings, to_ours(state, table(settings, PREFIXES.get(backbone["backbone"]), user_head=head is not None))

    backbone = None
    known = recognise(body, maps, in_channels(body))
    settings, tensors = converted(known, model.backbone) if known else (None, {})
    if settings is None or not same_features(body, settings, tensors):
        backbone = UserBackbone(body, maps)
        settings, tensors = converted(backbone.settings)
    count = len(state[_PREDICTOR]) - 1
    return Imported(
        settings,
        tensors,
        names=class_names(count, names, coco_names()),
        category_ids=tuple(range(1, count + 1)),
        notes=tuple(_notes(state, backbone, head)),
        backbone=backbone,
        head=head,
    )


def import_state(state: Mapping[str, Tensor], arch: str, names: Sequence[str] | None = None) -> Imported:
    """Convert a state dictionary of one of torchvision's four detectors, from any version of torchvision.

    Args:
        state: name -> tensor; names may begin with `module.`, as those of parallel training do.
        arch: one of `ARCHITECTURES`.
        names: as in `import_model`.

    Raises:
        WeightsError: the architecture is unknown, or the state is that of another one.
    """
    if arch not in ARCHITECTURES:
        raise WeightsError(f"`{arch}` is not one of torchvision's detectors: {', '.join(ARCHITECTURES)}")
    state = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if _PREDICTOR not in state:
        raise WeightsError(
            f"there is no `{_PREDICTOR}`, so this is not {arch}; the first names are {some(sorted(state), 3)}"
        )
    model: Any = get_model(arch, weights=None, weights_backbone=None, num_classes=len(state[_PREDICTOR]))
    notes = list(_notes(state, None, None))
    if not any(name.endswith("num_batches_tracked") for name in state):
        # State dictionaries do not contain eps; these are the values of torchvision's COCO weights.
        eps = 0.0 if arch == "fasterrcnn_resnet50_fpn" else 1e-5
        for parent in list(model.backbone.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps=eps))
        body = model.backbone.body  # fine-tuning does not train its first parts
        for layer in (body.conv1, body.layer1) if "conv1" in body else list(body.values())[:7]:
            layer.requires_grad_(False)
        notes.append(
            "the batch norms are constants; the file does not contain the number that is added to their variances, "
            f"which is taken to be {eps:g}, as in torchvision's COCO weights"
        )
    _load(model, {name: tensor for name, tensor in state.items() if not name.startswith(OTHER_HEADS)}, arch)
    imported = import_model(model, names)
    return imported._replace(notes=(*notes, *imported.notes))


def _notes(state: Iterable[str], backbone: nn.Module | None, head: nn.Module | None) -> Iterable[str]:
    if any(name.startswith(OTHER_HEADS) for name in state):
        yield "the heads for masks or keypoints are left out: boxes, labels and scores are imported"
    if backbone is not None:
        yield "the backbone is kept as the user's own module: it must be passed in when a saved file is loaded"
    if head is not None:
        yield "`roi_heads.box_head` is kept as the user's own module: it must be passed in when a saved file is loaded"


def _load(model: nn.Module, state: dict[str, Tensor], arch: str) -> None:
    """Load with torchvision's own loader, which accepts the names of older versions."""
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise WeightsError(f"this is not {arch}: {reason[0].strip()}") from None
    if any(result):
        missing, unexpected = (some(sorted(names), 3) or "none" for names in result)
        raise WeightsError(
            f"this is not {arch}: missing are {missing}, unexpected {unexpected}; "
            "give the architecture that it was trained as"
        )


def in_channels(body: nn.Module) -> int:
    """Return the number of image channels, read from the first convolution."""
    return next((layer.in_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)), 3)


def probe(body: nn.Module) -> FeatureMaps:
    """Measure names, levels and channels of the feature maps of a backbone in eval mode, in float32 on the CPU.

    Raises:
        WeightsError: the backbone can't run on a square image, or its maps differ in width.
    """
    channels = in_channels(body)
    try:
        with torch.no_grad():
            output = body(torch.zeros(1, channels, _PROBE, _PROBE))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise WeightsError(
            f"`model.backbone` can't be run on an image of {_PROBE} x {_PROBE} x {channels}: {error}"
        ) from None
    maps = {"0": output} if isinstance(output, Tensor) else output
    widths = {int(value.shape[1]) for value in maps.values()} if isinstance(maps, Mapping) else set()
    if len(widths) != 1:
        raise WeightsError(
            f"`model.backbone` returns a {type(output).__name__} of widths {sorted(widths)}; it must return a feature "
            "map, or a dictionary of maps of equal width, finest first"
        )
    levels = (round(torch.tensor(_PROBE / value.shape[2]).log2().item()) for value in maps.values())
    return FeatureMaps(tuple(maps), tuple(levels), widths.pop())


def recognise(backbone: nn.Module, maps: FeatureMaps, channels: int) -> dict[str, Any] | None:
    """Return the settings of our backbone with the same tensors; None if there is none.

    Only names and shapes are compared; `same_features` compares the outputs.

    Args:
        backbone: torchvision's backbone, on the CPU.
        maps: its feature maps.
        channels: channels of the images.
    """
    if type(backbone) is not BackboneWithFPN:
        return None
    fpn: Any = backbone.fpn
    shapes = _shapes(backbone.body)
    for name, prefix in PREFIXES.items():
        if ("conv1.weight" in shapes) != (name in _RESNETS):  # building a trunk is slow
            continue
        with shapes_alone():
            trunk = TRUNKS[name](channels, None)
        if _shapes(trunk) == {prefix + key: shape for key, shape in shapes.items()}:
            return {
                "backbone": name,
                "neck": "fpn",
                "neck_norm": "batch" if len(fpn.inner_blocks[0]) > 1 else "none",
                "channels": maps.channels,
                "levels": maps.levels,
                "frozen_stages": _frozen_stages(backbone.body, trunk.stages, prefix),
            }
    return None


def same_features(backbone: nn.Module, settings: Settings, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether torchvision's backbone and ours with these tensors compute the same maps for a random image."""
    state = {name.removeprefix("backbone."): tensors[name] for name in tensors if name.startswith("backbone.")}
    try:
        with weights_follow():
            ours = build_backbone(settings).eval()
        ours.load_state_dict(state)
    except (SettingsError, RuntimeError):
        return False
    image = torch.rand(1, settings.preprocess.in_channels, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, maps = list(backbone(image).values()), list(ours(image).values())
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * a.abs().max())
        for a, b in zip(expected, maps, strict=True)
    )


def norm_settings(parts: Iterable[nn.Module]) -> dict[str, Any]:
    """Read whether the batch norms in `parts` are constants or trained, and their eps.

    Raises:
        WeightsError: the batch norms differ in eps or in kind.
    """
    kinds_of_norm = FrozenBatchNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm
    norms = [layer for part in parts for layer in part.modules() if isinstance(layer, kinds_of_norm)]
    eps, kinds = {float(layer.eps) for layer in norms}, {type(layer) for layer in norms}  # type: ignore[arg-type]
    if len(eps) > 1 or len(kinds) > 1:
        raise WeightsError(
            f"the model's batch norms are {sorted(kind.__name__ for kind in kinds)} with eps {sorted(eps)}; "
            "they must all be of one kind and have the same eps"
        )
    return {"norm": "frozen" if FrozenBatchNorm2d in kinds else "train", "norm_eps": eps.pop() if eps else None}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {name: tuple(state[name].shape) for name in state if not name.endswith("num_batches_tracked")}


def _frozen_stages(body: nn.Module, stages: tuple[tuple[str, ...], ...], prefix: str) -> int:
    """Return the number of leading stages without a trained parameter."""
    trained = [prefix + name for name, parameter in body.named_parameters() if parameter.requires_grad]
    for number, stage in enumerate(stages):
        if any(name.startswith(tuple(f"{part}." for part in stage)) for name in trained):
            return number
    return len(stages)
