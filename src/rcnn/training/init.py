"""Where a new run's weights come from: ImageNet, a file, or chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rcnn.config import Settings, override
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build
from rcnn.weights.backbone import UnavailableError, load_backbone
from rcnn.weights.file import WeightsError, is_detector, load_weights

LAST_LAYERS = "fast_rcnn.predictor."
"""The layers whose shapes and meaning depend on the classes."""


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        model: on the CPU.
        settings: as they turned out: without weights, batch norm is trained and no stage is frozen.
        notes: sentences worth saying aloud.
    """

    model: FasterRCNN
    settings: Settings
    notes: tuple[str, ...] = ()


def initialise(settings: Settings, names: Sequence[str]) -> Start:
    """A model for the classes `names`, started as `settings.train.init` says.

    `imagenet` without a network goes on as `none` does, and says so.

    Raises:
        WeightsError: the file is missing, damaged or does not fit.
    """
    init = settings.train.init
    if init == "none":
        return _from_nothing(settings, names, ())
    model = build(settings, len(names))
    if init == "imagenet":
        try:
            load_backbone(model.backbone, "imagenet", model.fast_rcnn.head)  # type: ignore[arg-type]
        except UnavailableError as error:
            return _from_nothing(settings, names, (f"{error}. Going on without",))
        return Start(model, settings)
    path = Path(init).expanduser().resolve()
    notes = _from_file(model, path, names, settings)
    return Start(model, override(settings, {"train": {"init": str(path)}}), notes)


def _from_nothing(settings: Settings, names: Sequence[str], notes: tuple[str, ...]) -> Start:
    """Random weights: batch norm can't be constants that nobody has measured."""
    changes = {"train": {"init": "none"}, "model": {"norm": "train", "frozen_stages": 0}}
    settings = override(settings, changes)
    note = "The backbone starts from random weights: its batch norm is trained, no stage is frozen"
    return Start(build(settings, len(names)), settings, (*notes, note))


def _from_file(model: FasterRCNN, path: Path, names: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Load one of our detectors, or a backbone in torchvision's names; notes."""
    if path.suffix == ".safetensors" and is_detector(path):
        return _from_detector(model, path, names, settings)
    loaded = load_backbone(model.backbone, path, model.fast_rcnn.head)  # type: ignore[arg-type]
    notes = [f"{loaded.loaded} tensors of the backbone from {loaded.source}"]
    if loaded.missing:
        notes.append(f"{len(loaded.missing)} tensors of the backbone are not in it, such as {loaded.missing[0]}")
    if loaded.unexpected:
        notes.append(f"{len(loaded.unexpected)} tensors of it were not used, such as {loaded.unexpected[0]}")
    return tuple(notes)


def _from_detector(model: FasterRCNN, path: Path, names: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Load a detector; its last layers only where its classes are the same, in the same order."""
    tensors, metadata = load_weights(path)
    if metadata.get("kind") == "checkpoint":
        raise WeightsError(f"{path} is a checkpoint; go on with its run by: rcnn train --resume {path.parents[1]}")
    theirs, own = metadata["names"], model.state_dict()
    if same := list(names) == theirs:
        notes = (f"all weights from {path}",)
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(LAST_LAYERS)}
        notes = (
            f"weights from {path}; it knows other classes ({_some(theirs)}; here {_some(names)}), "
            "so the last layers start anew",
        )
    wanted = {name for name in own if same or not name.startswith(LAST_LAYERS)}
    wrong = wanted ^ tensors.keys() | {
        name for name in wanted & tensors.keys() if own[name].shape != tensors[name].shape
    }
    if wrong:
        preset = metadata["settings"]["model"]["preset"]
        raise WeightsError(
            f"{path} is a detector made as `{preset}`, with other layers than `{settings.model.preset}` as it is set "
            f"here ({sorted(wrong)[0]} and {len(wrong) - 1} more differ); give its --model and its model settings"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return notes


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
