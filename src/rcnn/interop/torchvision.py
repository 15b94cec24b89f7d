"""Convert torchvision's Faster R-CNN, an instance or a state dictionary, into our settings and tensors."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from rcnn.config import Settings, merge, validate
from rcnn.errors import WeightsError
from rcnn.interop.torchvision_backbone import (
    PREFIXES,
    UserBackbone,
    in_channels,
    norm_settings,
    probe,
    recognise,
    same_features,
)
from rcnn.interop.torchvision_names import ARCHITECTURES, OTHER_HEADS, table, to_ours
from rcnn.interop.torchvision_settings import read_head, read_settings
from rcnn.weights.adapt import some
from rcnn.weights.imported import Imported, class_names, coco_names

_PREDICTOR = "roi_heads.box_predictor.cls_score.weight"
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


class UserHead(nn.Module):
    """A second stage's head that is the user's own module.

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


def import_model(model: nn.Module, names: Sequence[str] | None = None) -> Imported:
    """Convert an instance of torchvision's `FasterRCNN`, reading the settings from its attributes.

    ResNets, ResNeXts and MobileNets under torchvision's pyramid become ours if they compute the same. Any other
    backbone, and a head that is not torchvision's, is copied as the user's own module.

    Args:
        model: made by one of torchvision's functions, or put together from its parts. It is not changed.
        names: class names, without the background. None: COCO's for 91 classes, else `class_1`, ...

    Raises:
        WeightsError: the model does what can't be expressed here; the message names the attribute.
    """
    model = _unwrapped(model)
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
        WeightsError: the architecture is unknown, or the state is of another one.
    """
    if arch not in ARCHITECTURES:
        raise WeightsError(f"`{arch}` is none of torchvision's detectors: {', '.join(ARCHITECTURES)}")
    state = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if _PREDICTOR not in state:
        raise WeightsError(
            f"there is no `{_PREDICTOR}`, so this is not {arch}; the names begin as {some(sorted(state), 3)}"
        )
    model = get_model(arch, weights=None, weights_backbone=None, num_classes=len(state[_PREDICTOR]))
    notes = [*_notes(state, None, None)]
    if not any(name.endswith("num_batches_tracked") for name in state):
        # State dictionaries do not hold it; this is the value for torchvision's COCO weights.
        eps = 0.0 if arch == "fasterrcnn_resnet50_fpn" else 1e-5
        _freeze(model, eps)
        notes.append(
            "the batch norms are constants; the file does not say what is added to their variances, so it is taken "
            f"to be {eps:g}, as in torchvision's COCO weights"
        )
    _load(model, {name: tensor for name, tensor in state.items() if not name.startswith(OTHER_HEADS)}, arch)
    imported = import_model(model, names)
    return imported._replace(notes=(*notes, *imported.notes))


def _notes(state: Iterable[str], backbone: nn.Module | None, head: nn.Module | None) -> Iterable[str]:
    if any(name.startswith(OTHER_HEADS) for name in state):
        yield "the heads for masks or keypoints are left out: boxes, labels and scores are imported"
    if backbone is not None:
        yield "the backbone is kept as the module that it is: whoever loads a saved file must pass it in"
    if head is not None:
        yield "`roi_heads.box_head` is kept as the module that it is: whoever loads a saved file must pass it in"


def _unwrapped(model: nn.Module) -> FasterRCNN:
    """Return the detector inside the wrappers of parallel training and compilation."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, FasterRCNN):
        raise WeightsError(f"expected an instance of torchvision's FasterRCNN, found {type(model).__name__}")
    return model


def _freeze(model: Any, eps: float) -> None:
    """Make the batch norms constants, and do not train the parts of the body that fine-tuning freezes."""
    for parent in [*model.backbone.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, eps=eps))
    body = model.backbone.body
    for layer in (body.conv1, body.layer1) if "conv1" in body else list(body.values())[:7]:
        layer.requires_grad_(False)


def _load(model: nn.Module, state: dict[str, Tensor], arch: str) -> None:
    """Load with torchvision's own loader, which knows the names of its older versions."""
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise WeightsError(f"this is not {arch}: {reason[0].strip()}") from None
    if any(result):
        missing, unexpected = (some(sorted(names), 3) or "none" for names in result)
        raise WeightsError(
            f"this is not {arch}: missing are {missing}, left over {unexpected}; "
            "give the architecture that it was trained as"
        )
