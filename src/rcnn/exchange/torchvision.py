"""torchvision's Faster R-CNN, an instance or a state dictionary, as our settings and tensors."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from rcnn.config import Settings, merge, validate
from rcnn.errors import WeightsError
from rcnn.exchange.imported import Imported, class_names, coco_names
from rcnn.exchange.torchvision_backbone import UserBackbone, in_channels, norm_settings, probe, recognise, same_features
from rcnn.exchange.torchvision_names import OTHER_HEADS, table, to_ours
from rcnn.exchange.torchvision_settings import Maps, read_head, read_settings


class Architecture(NamedTuple):
    """One of torchvision's own detectors.

    Attributes:
        build: its function; settings are read from what this returns.
        eps: what its COCO weights add to the variances of frozen batch norms; state dictionaries do not say it.
        frozen: parts of the body that it does not train when it is fine-tuned.
    """

    build: Callable[..., FasterRCNN]
    eps: float
    frozen: tuple[str, ...]


_RESNET, _MOBILENET = ("conv1", "layer1"), tuple(map(str, range(7)))

ARCHITECTURES: dict[str, Architecture] = {
    "fasterrcnn_resnet50_fpn": Architecture(detection.fasterrcnn_resnet50_fpn, 0.0, _RESNET),
    "fasterrcnn_resnet50_fpn_v2": Architecture(detection.fasterrcnn_resnet50_fpn_v2, 1e-5, _RESNET),
    "fasterrcnn_mobilenet_v3_large_fpn": Architecture(detection.fasterrcnn_mobilenet_v3_large_fpn, 1e-5, _MOBILENET),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Architecture(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn, 1e-5, _MOBILENET
    ),
}
"""By torchvision's names."""

_PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
_WRAPPERS = ("module.", "_orig_mod.")


class UserHead(nn.Module):
    """A head of the second stage that was not made here.

    Args:
        body: maps (N, C, S, S) RoI features to (N, features) or (N, features, 1, 1).
        features: length of the feature vector of a RoI.
    """

    foldable = False  # its modules need not run in the order in which they are kept

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.out_features = body, features

    def forward(self, rois: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, features)."""
        return self.body(rois).flatten(1)


def import_model(model: nn.Module, names: Sequence[str] | None = None) -> Imported:
    """An instance of torchvision's `FasterRCNN`; its settings are read from its attributes.

    ResNets, ResNeXts and MobileNets under torchvision's pyramid become ours where they compute the same; any other
    backbone, and a head that is none of torchvision's, stays the user's own module, copied.

    Args:
        model: from one of torchvision's functions, or put together from its parts. It stays as it is.
        names: of the classes, background not counted. None: COCO's for 91 classes, else `class_1`, ...

    Raises:
        WeightsError: the model does what can't be expressed here; the message names the attribute.
    """
    model = _unwrapped(model)
    state = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    body = copy.deepcopy(model.backbone).cpu().float().eval()
    maps = probe(body, in_channels(body))
    tree = read_settings(model, maps, in_channels(body))
    head = _user_head(model.roi_heads, maps)
    backbone = None
    found = _as_ours(model, body, maps, tree, state)
    if found is None:
        backbone = UserBackbone(body, maps)
        settings = _settings(tree, backbone.settings, [] if head else [model.roi_heads])
        found = settings, to_ours(state, table(settings, None, user_head=head is not None))
    count = len(state[_PREDICTOR]) - 1
    return Imported(
        *found,
        names=class_names(count, names, coco_names()),
        category_ids=tuple(range(1, count + 1)),
        notes=tuple(_notes(state, backbone, head)),
        backbone=backbone,
        head=head,
    )


def import_state(state: Mapping[str, Tensor], arch: str, names: Sequence[str] | None = None) -> Imported:
    """A state dictionary of one of torchvision's four detectors, of any version of torchvision.

    Args:
        state: name -> tensor; names may begin with `module.`, as those of parallel training do.
        arch: one of `ARCHITECTURES`.
        names: as in `import_model`.

    Raises:
        WeightsError: no such architecture, or the state is of another one.
    """
    if arch not in ARCHITECTURES:
        raise WeightsError(f"`{arch}` is none of torchvision's detectors: {', '.join(ARCHITECTURES)}")
    state = {_bare(name): tensor for name, tensor in state.items()}
    if _PREDICTOR not in state:
        raise WeightsError(f"there is no `{_PREDICTOR}`, so this is not {arch}; the names begin as {_some(state)}")
    kind = ARCHITECTURES[arch]
    model = kind.build(weights=None, weights_backbone=None, num_classes=len(state[_PREDICTOR]))
    notes = [*_notes(state, None, None)]
    if not any(name.endswith("num_batches_tracked") for name in state):
        _freeze(model, kind)
        notes.append(
            "the batch norms are constants; the file does not say what is added to their variances, so it is taken "
            f"to be {kind.eps:g}, as in torchvision's COCO weights"
        )
    _load(model, {name: tensor for name, tensor in state.items() if not name.startswith(OTHER_HEADS)}, arch)
    found = import_model(model, names)
    return found._replace(notes=(*notes, *found.notes))


def _as_ours(
    model: FasterRCNN, body: nn.Module, maps: Maps, tree: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[Settings, dict[str, Tensor]] | None:
    """Settings and tensors with a backbone of ours; None where there is none that computes the same."""
    known = recognise(body, maps, tree["preprocess"]["in_channels"])
    if known is None:
        return None
    user_head = _user_head(model.roi_heads, maps) is not None
    settings = _settings(tree, known.tree, [model.backbone] if user_head else [model.backbone, model.roi_heads])
    tensors = to_ours(state, table(settings, known.prefix, user_head=user_head))
    return (settings, tensors) if same_features(body, settings, tensors) else None


def _settings(tree: Mapping[str, Any], backbone: Mapping[str, Any], normed: Iterable[nn.Module]) -> Settings:
    return validate(merge(tree, {"model": {"preset": "torchvision", **backbone, **norm_settings(normed)}}))


def _user_head(heads: Any, maps: Maps) -> UserHead | None:
    """The head where it is none of torchvision's."""
    if read_head(heads.box_head, maps.channels) is not None:
        return None
    return UserHead(copy.deepcopy(heads.box_head).cpu().float(), heads.box_predictor.cls_score.in_features)


def _notes(state: Iterable[str], backbone: nn.Module | None, head: nn.Module | None) -> Iterable[str]:
    if any(name.startswith(OTHER_HEADS) for name in state):
        yield "the heads for masks or keypoints are left out: boxes, labels and scores are imported"
    if backbone is not None:
        yield "the backbone is kept as the module that it is: whoever loads a saved file must pass it in"
    if head is not None:
        yield "`roi_heads.box_head` is kept as the module that it is: whoever loads a saved file must pass it in"


def _unwrapped(model: nn.Module) -> FasterRCNN:
    """The detector inside what parallel training and compilation put around it."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, FasterRCNN):
        raise WeightsError(f"expected an instance of torchvision's FasterRCNN, found {type(model).__name__}")
    return model


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def _bare(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _freeze(model: FasterRCNN, kind: Architecture) -> None:
    """Make the model as it is where its batch norms are constants, with `kind`'s parts of the body untrained."""
    for parent in [*model.backbone.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps=kind.eps))
    for name in kind.frozen:
        model.backbone.get_submodule(f"body.{name}").requires_grad_(False)


def _load(model: FasterRCNN, state: dict[str, Tensor], arch: str) -> None:
    """Load as torchvision does: it knows the names of its older versions."""
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise WeightsError(f"this is not {arch}: {reason[0].strip()}") from None
    if result.missing_keys or result.unexpected_keys:
        raise WeightsError(
            f"this is not {arch}: missing are {_some(result.missing_keys)}, left over {_some(result.unexpected_keys)}; "
            "give the architecture that it was trained as"
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "") or "none"
