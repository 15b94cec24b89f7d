"""Initial weights: ImageNet, a packaged detector, one of torchvision's, a file, random, or those of earlier stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcnn.config import Settings, override
from rcnn.errors import UnavailableError, WeightsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build
from rcnn.runtime.by_suffix import refuse_exported
from rcnn.training.distributed import seed_generators
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import Stage
from rcnn.weights.adapt import Architecture, adapt, fill
from rcnn.weights.backbone import load_backbone
from rcnn.weights.file import is_detector, kept, weights_of_run
from rcnn.weights.metadata import read_detector
from rcnn.weights.packaged import PACKAGED, packaged_path


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        model: on the CPU.
        settings: of the model, adapted to the weights: without any, batch norm is trained and no stage is frozen.
        notes: sentences for the log.
        changes: settings that were adapted, as `override` takes them.
    """

    model: FasterRCNN
    settings: Settings
    notes: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


def stage_start(stage: Stage, number: int, settings: Settings, names: Sequence[str], folder: RunFolder) -> Start:
    """The start of a stage after the first.

    Args:
        stage: the stage.
        number: of the stage, from 1.
        settings: of the run.
        names: of the classes.
        folder: of the run, with the weights of earlier stages.

    Raises:
        WeightsError: weights are missing, damaged or do not fit.
    """
    settings = stage.model_settings(settings)
    seed_generators(settings.train.seed, number - 1)
    if not stage.start:
        return initialise(settings, names)
    model = build(settings, len(names))
    tensors = model.state_dict()
    for part, source in stage.start.items():
        trained, _ = read_detector(kept(folder.stage(source)))
        tensors |= {key: tensor for key, tensor in trained.items() if key.startswith(f"{part}.")}
    fill(model, tensors, folder.path / "stages")
    return Start(model, settings)


def initialise(settings: Settings, names: Sequence[str]) -> Start:
    """A model for the classes `names`, initialised as `settings.train.init` says.

    If the weights of `imagenet` are not available, those of a packaged detector with the same backbone are used, or
    else random ones as with `none`; the notes say which.

    Raises:
        WeightsError: the file is missing, damaged or does not fit.
    """
    init = settings.train.init
    if init == "none":
        return _from_random(settings, names, ())
    if init in PACKAGED:
        return _from_packaged(settings, names, init)
    if init.startswith("torchvision/"):
        return _from_torchvision(settings, names, init)
    model = build(settings, len(names))
    if init == "imagenet":
        try:
            head = getattr(model.fast_rcnn, "head", None)
            load_backbone(model.backbone, "imagenet", head, settings.preprocess)  # type: ignore[arg-type]
        except UnavailableError as error:
            return _without_imagenet(settings, names, str(error).rstrip("."))
        return Start(model, settings)
    path = weights_of_run(Path(init).expanduser().resolve())
    notes = _from_file(model, path, names, settings)
    changes = {"train": {"init": str(path)}}
    return Start(model, override(settings, changes), notes, changes)


def _without_imagenet(settings: Settings, names: Sequence[str], why: str) -> Start:
    """Start from the first packaged detector that fits, or from random weights."""
    for packaged in PACKAGED:
        try:
            start = _from_packaged(settings, names, packaged)
        except WeightsError:  # another backbone
            continue
        note = f"{why}. Starting from the packaged detector `{packaged}` instead"
        return replace(start, notes=(note, *start.notes))
    return _from_random(
        settings, names, (f"{why}. No packaged detector fits this model. Training from random weights",)
    )


def _from_packaged(settings: Settings, names: Sequence[str], packaged: str) -> Start:
    """The weights of a packaged detector, as far as they fit this model."""
    model = build(settings, len(names))
    notes = _from_detector(model, packaged_path(packaged), names, settings, packaged)
    changes = {"train": {"init": packaged}}
    return Start(model, override(settings, changes), notes, changes)


def _from_torchvision(settings: Settings, names: Sequence[str], init: str) -> Start:
    """The weights of a detector that torchvision publishes, as far as they fit this model."""
    from rcnn.open_model import load  # imports torchvision's models, which takes as long as everything else

    theirs, model = load(init, "cpu"), build(settings, len(names))
    architectures = Architecture(theirs.settings, theirs.names), Architecture(settings, names)
    return Start(model, settings, adapt(model, theirs.model.state_dict(), *architectures, init))


def _from_random(settings: Settings, names: Sequence[str], notes: tuple[str, ...]) -> Start:
    """Random weights. Batch norm is trained: there are no measured statistics to freeze."""
    changes = {"train": {"init": "none"}, "model": {"norm": "train", "frozen_stages": 0}}
    settings = override(settings, changes)
    note = "The backbone starts from random weights: its batch norm is trained, no stage is frozen"
    return Start(build(settings, len(names)), settings, (*notes, note), changes)


def _from_file(model: FasterRCNN, path: Path, names: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Load one of our detectors, or a backbone with torchvision's names; return notes."""
    refuse_exported(path)
    if path.suffix == ".safetensors" and is_detector(path):
        return _from_detector(model, path, names, settings, path)
    loaded = load_backbone(model.backbone, path, getattr(model.fast_rcnn, "head", None))  # type: ignore[arg-type]
    notes = [f"{loaded.loaded} tensors of the backbone from {loaded.source}"]
    if loaded.missing:
        notes.append(f"{len(loaded.missing)} tensors of the backbone are not in it, such as {loaded.missing[0]}")
    if loaded.unexpected:
        notes.append(f"{len(loaded.unexpected)} tensors of it were not used, such as {loaded.unexpected[0]}")
    return tuple(notes)


def _from_detector(
    model: FasterRCNN, path: Path, names: Sequence[str], settings: Settings, source: object
) -> tuple[str, ...]:
    """Load one of our detectors, named `source` in the notes that are returned."""
    tensors, metadata = read_detector(path)
    theirs = Architecture(metadata.settings, metadata.names)
    return adapt(model, tensors, theirs, Architecture(settings, names), source)
