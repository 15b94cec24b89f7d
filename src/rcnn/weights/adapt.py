"""Load a detector into a model of other classes, channels, anchors or levels: keep what fits and name the rest.

K classes, A anchors per cell, C channels.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rcnn.config import Settings, dump
from rcnn.errors import WeightsError
from rcnn.weights.backbone import fit_channels
from rcnn.weights.box_targets import LAYERS, renormalise

_ONE_STAGE = re.compile(r"rpn\.head\.(windows\.\d+\.)?cls\.")
"""These also classify if `rpn.classify` says so: one row per anchor of a cell, class after class."""
_COUNTER = "num_batches_tracked"

_REPORTED = (
    "preprocess.order",
    "preprocess.mean",
    "preprocess.std",
    "model.levels",
    "model.stride_in",
    "anchors.sizes",
    "roi.pool",
    "roi.aligned",
    "roi.stages",
)
"""Settings that change the meaning of weights slightly: the weights are kept, and a note reports the difference."""


class Architecture(NamedTuple):
    """What determines the shapes and the meaning of a detector's tensors.

    Attributes:
        settings: settings of the model.
        names: class names.
    """

    settings: Settings
    names: Sequence[str]


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Copy tensors into a model, which must match them exactly; half precision is widened.

    A model that was built by `shapes_alone` takes the tensors themselves for its weights.

    Raises:
        WeightsError: as `check_shapes`.
    """
    check_shapes(model, tensors, source)
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}, assign=True)
    else:
        model.load_state_dict(tensors)


class _Unwritten(TorchFunctionMode):
    """Give modules uninitialised weights, on a device if one is given; computed tensors have values."""

    def __init__(self, **device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {} if kwargs is None else kwargs
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **(given | self._device if func is torch.empty else given))


def shapes_alone() -> AbstractContextManager[Any]:
    """Build modules without memory for their weights.

    Only the weights, which modules make by `torch.empty`, are on the `meta` device: computing there would import
    `torch._dynamo`, which takes as long as importing torch.
    """
    return _Unwritten(device="meta")


def weights_follow() -> AbstractContextManager[Any]:
    """Build modules whose weights are all filled afterwards: no random numbers are drawn, which takes half the time."""
    return _Unwritten()


def check_shapes(model: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Check that tensors match a model, which may be on the `meta` device, exactly.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape.
    """
    own = model.state_dict()
    faults = [f"`{name}` is missing" for name in own.keys() - tensors.keys()]
    faults += [f"`{name}` has no place" for name in tensors.keys() - own.keys()]
    faults += [
        f"`{name}` has the shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if faults:
        raise WeightsError(
            f"{source}: holds weights, but not a detector of this version of rcnn: {some(sorted(faults), 3)}"
        )


def adapt(
    model: nn.Module, tensors: Mapping[str, Tensor], theirs: Architecture, ours: Architecture, source: object
) -> tuple[str, ...]:
    """Copy those tensors of another detector into `model` that fit, in place; other layers keep their fresh weights.

    Rows of the background and of classes that both have are kept, matched by name; box rows are converted to our
    `roi.box_mean` and `roi.box_std`. A first convolution for other channels is adapted as in `fit_channels`.

    Args:
        model: model to fill.
        tensors: name -> tensor of the other detector.
        theirs: architecture of the other detector.
        ours: architecture of `model`.
        source: name of the other detector in the notes.

    Returns:
        Sentences on what was kept, which classes, which layers start anew and why, and what was not used.

    Raises:
        WeightsError: only a part of the trunk fits.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    given = renormalise(given, theirs.settings.roi, ours.settings.roi)
    fitted, fresh = _split(own, given, theirs, ours)
    kept = {name: tensor for name, tensor in fitted.items() if _layer(name) not in fresh}
    trunk = [name for name in own if name.startswith("backbone.") and not name.startswith("backbone.neck.")]
    if lost := sorted(set(trunk) - kept.keys()):
        raise WeightsError(
            f"{source} is a detector made as `{theirs.settings.model.preset}`, with another backbone than "
            f"`{ours.settings.model.preset}` as it is set here ({len(lost)} of {len(trunk)} tensors do not fit, such "
            f"as {lost[0]}); give its --model and its model settings"
        )
    model.load_state_dict(kept, strict=False)
    whole = len(kept) == len(own) and list(theirs.names) == list(ours.names)
    unused = sorted({_layer(name) for name in given.keys() - own.keys()})
    first = f"all weights from {source}" if whole else f"{len(kept)} of {len(own)} tensors from {source}"
    return (first, *_classes(theirs.names, ours.names), *_changes(fresh, unused, theirs.settings, ours.settings))


def some(names: Sequence[str], most: int = 5) -> str:
    """Join the first names and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _split(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], theirs: Architecture, ours: Architecture
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that fit, and layer -> why it starts anew: one of its tensors does not fit."""
    unlike = _unlike(theirs.settings, ours.settings)
    fitted, fresh = {}, {}
    for name, target in own.items():
        tensor, layer = given.get(name), _layer(name)
        fits = None if tensor is None or layer in unlike else _fit(name, tensor, target, theirs, ours)
        if fits is None:
            fresh.setdefault(layer, unlike.get(layer) or _why(tensor, target))
        else:
            fitted[name] = fits
    return fitted, fresh


def _fit(name: str, tensor: Tensor, target: Tensor, theirs: Architecture, ours: Architecture) -> Tensor | None:
    """Bring `tensor` into the shape and order of `target`; None if it does not fit."""
    one_stage = ours.settings.rpn.classify == "classes" and _ONE_STAGE.match(name)
    if (one_stage or LAYERS.match(name)) and tensor.shape[1:] == target.shape[1:]:
        rows = _rows(name, theirs, ours)
        if rows:
            there, here = map(list, zip(*rows, strict=True))
            mixed = target.detach().clone()
            mixed[here] = tensor[there].to(mixed.dtype)
            return mixed
        if rows is not None:  # no class in common
            return None
    channels = theirs.settings.preprocess.in_channels, ours.settings.preprocess.in_channels
    differs = name.startswith("backbone.") and tensor.shape != target.shape
    if differs and tensor.dim() == target.dim() == 4 and (tensor.shape[1], target.shape[1]) == channels:
        tensor = fit_channels(tensor, channels[1])
    return tensor if tensor.shape == target.shape else None


def _rows(name: str, theirs: Architecture, ours: Architecture) -> list[tuple[int, int]] | None:
    """(row of theirs, row of ours) of the last layers; None: the rows have nothing to do with classes."""
    pairs = [(theirs.names.index(label), row) for row, label in enumerate(ours.names) if label in theirs.names]
    background = (len(theirs.names), len(ours.names))
    if (layer := LAYERS.match(name)) and layer["kind"] == "cls":
        return [*pairs, background]
    if _ONE_STAGE.match(name):
        pairs += [] if ours.settings.rpn.loss == "focal" else [background]
        anchors = len(_anchor_ratios(ours.settings))
        return [(anchors * a + anchor, anchors * b + anchor) for a, b in pairs for anchor in range(anchors)]
    if any(side.settings.roi.cascade[0].class_agnostic for side in (theirs, ours)):
        return None
    return [(4 * a + side, 4 * b + side) for a, b in pairs for side in range(4)]


def _unlike(theirs: Settings, ours: Settings) -> dict[str, str]:
    """Layers whose outputs differ in meaning, whatever their shapes -> why."""
    reasons = {}
    if _logits(theirs) != _logits(ours):
        reasons |= dict.fromkeys(_siblings("cls", ours), "other logits")
    there, here = _anchor_ratios(theirs), _anchor_ratios(ours)
    if there != here:
        reason = f"height / width of a cell's anchors: {_numbers(there)}, here {_numbers(here)}"
        reasons |= dict.fromkeys((*_siblings("cls", ours), *_siblings("reg", ours)), reason)
    return reasons


def _siblings(name: str, settings: Settings) -> list[str]:
    """The layer `name`, or one for each window of a pyramid of filters."""
    windows = len(settings.rpn.kernels)
    return [f"rpn.head.windows.{i}.{name}" for i in range(windows)] if windows > 1 else [f"rpn.head.{name}"]


def _logits(settings: Settings) -> tuple[object, ...]:
    """Settings that determine the meaning of the logits of the RPN's head."""
    rpn = settings.rpn
    return (rpn.classify, rpn.loss) if rpn.classify == "classes" else (rpn.logits, rpn.score_order)


def _anchor_ratios(settings: Settings) -> tuple[float, ...]:
    """Height / width of the A anchors of a cell, or of each window's, in the order in which the RPN predicts them."""
    anchors = settings.anchors
    ratios = tuple(value if anchors.ratio == "h/w" else 1 / value for value in anchors.ratios)
    count = len(anchors.sizes[0]) // len(settings.rpn.kernels)
    return ratios * count if anchors.order == "size" else tuple(ratio for ratio in ratios for _ in range(count))


def _classes(theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Sentences on classes; none if they are the same."""
    if list(theirs) == list(ours):
        return []
    groups = {
        "classes that keep their weights": [name for name in ours if name in theirs],
        "new classes": [name for name in ours if name not in theirs],
        "classes that are dropped": [name for name in theirs if name not in ours],
    }
    return [f"{title}: {some(names, 20)}" for title, names in groups.items() if names]


def _changes(fresh: Mapping[str, str], unused: Sequence[str], theirs: Settings, ours: Settings) -> list[str]:
    """Sentences on adapted, fresh and unused layers, and on settings that differ."""
    notes = []
    there, here = theirs.preprocess.in_channels, ours.preprocess.in_channels
    if there != here:
        notes.append(f"the first convolution, made for {there} channels, is adapted to {here}")
    if fresh:
        notes.append("layers that start anew: " + some([f"{name} ({why})" for name, why in fresh.items()], 20))
    if unused:
        notes.append(f"layers that have no place here: {some(unused, 20)}")
    trees, other = (dump(theirs), dump(ours)), []
    for section, name in (key.split(".") for key in _REPORTED):
        a, b = (tree[section][name] for tree in trees)
        if a != b and not (there != here and section == "preprocess"):
            other.append(f"{section}.{name}={_numbers(a)} (here {_numbers(b)})")
    if other:
        notes.append(
            f"these settings differ from the source model's, and fine-tuning has to adapt to them: {', '.join(other)}"
        )
    return notes


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _why(tensor: Tensor | None, target: Tensor) -> str:
    """Why a layer starts anew."""
    if tensor is None:
        return "not in it"
    if tensor.shape == target.shape:
        return "no class in common"
    there, here = ("x".join(map(str, weight.shape)) for weight in (tensor, target))
    return f"{there} there, {here} here"


def _numbers(value: Any) -> str:
    """Format a setting, with numbers without trailing zeros."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_numbers, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
