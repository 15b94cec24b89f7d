"""Initial weights: ImageNet's, a packaged detector's, torchvision's, a file's, random ones, or an earlier stage's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rcnn.config import Settings, override
from rcnn.errors import UnavailableError, WeightsError
from rcnn.images.storage import RemotePath, downloaded, is_remote, location
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build
from rcnn.runtime.by_suffix import refuse_exported
from rcnn.training.distributed import seed_generators
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import Stage
from rcnn.weights.adapt import Architecture, adapt, fill
from rcnn.weights.backbone import IMAGENET, load_backbone
from rcnn.weights.file import is_detector, kept, weights_of_run
from rcnn.weights.metadata import read_detector
from rcnn.weights.packaged import PACKAGED, packaged_path


@dataclass(frozen=True)
class Start:
    """The initial model of a run or stage.

    Attributes:
        model: model with its weights, on the CPU.
        settings: settings adapted to the weights: with random ones, batch norm is trained and no stage is frozen.
        notes: sentences for the log.
        changes: settings that were adapted, as `override` takes them.
    """

    model: FasterRCNN
    settings: Settings
    notes: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


def stage_start(stage: Stage, number: int, settings: Settings, names: Sequence[str], folder: RunFolder) -> Start:
    """Return the initial model of a stage after the first.

    Args:
        stage: stage to start.
        number: number of the stage, from 1.
        settings: settings of the run.
        names: class names.
        folder: folder of the run, with the weights of earlier stages.

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
    """Return a model for the classes `names`, initialised according to `settings.train.init`.

    If ImageNet weights are not available, those of a packaged detector with the same backbone are used, or else random
    ones as with `none`. The notes tell the user.

    Raises:
        WeightsError: the file is missing, damaged or does not fit.
    """
    init = settings.train.init
    if init == "none":
        return _from_random(settings, names, ())
    if init.startswith("torchvision/"):
        from rcnn.open_model import load  # imports torchvision's models, which takes as long as everything else

        theirs, model = load(init, "cpu"), build(settings, len(names))
        architectures = Architecture(theirs.settings, theirs.names), Architecture(settings, names)
        return Start(model, settings, adapt(model, theirs.model.state_dict(), *architectures, init))
    model = build(settings, len(names))
    if init in PACKAGED:
        return _from_detector(model, packaged_path(init), settings, names, init)
    if init in IMAGENET:
        try:
            head = getattr(model.fast_rcnn, "head", None)
            load_backbone(model.backbone, init, head, settings.preprocess)  # type: ignore[arg-type]
        except UnavailableError as error:
            return _without_imagenet(settings, names, str(error).rstrip("."))
        return Start(model, settings)
    path = local_weights(init)
    source = init if is_remote(init) else str(path)
    refuse_exported(path)
    if path.suffix == ".safetensors" and is_detector(path):
        return _from_detector(model, path, settings, names, source)
    loaded = load_backbone(model.backbone, path, getattr(model.fast_rcnn, "head", None))  # type: ignore[arg-type]
    notes = [f"{loaded.loaded} tensors of the backbone from {loaded.source}"]
    if loaded.missing:
        notes.append(f"{len(loaded.missing)} tensors of the backbone are not in it, such as {loaded.missing[0]}")
    if loaded.unexpected:
        notes.append(f"{len(loaded.unexpected)} tensors of it were not used, such as {loaded.unexpected[0]}")
    changes = {"train": {"init": source}}
    return Start(model, override(settings, changes), tuple(notes), changes)


def local_weights(init: str) -> Path:
    """Return the local file of weights that a text names: itself, that of a run, or the copy of a remote file.

    Raises:
        OSError, StorageError: a remote file can't be read.
    """
    file = location(init)
    return downloaded(file) if isinstance(file, RemotePath) else weights_of_run(file.expanduser().resolve())


def _without_imagenet(settings: Settings, names: Sequence[str], why: str) -> Start:
    """Start from the first packaged detector that fits, or from random weights."""
    for packaged in PACKAGED:
        try:
            start = _from_detector(build(settings, len(names)), packaged_path(packaged), settings, names, packaged)
        except WeightsError:  # another backbone
            continue
        note = f"{why}. Starting from the packaged detector `{packaged}` instead"
        return replace(start, notes=(note, *start.notes))
    return _from_random(
        settings, names, (f"{why}. No packaged detector fits this model. Training from random weights",)
    )


def _from_random(settings: Settings, names: Sequence[str], notes: tuple[str, ...]) -> Start:
    """Start from random weights. Batch norm is trained, since there are no measured statistics to freeze."""
    changes = {"train": {"init": "none"}, "model": {"norm": "train", "frozen_stages": 0}}
    settings = override(settings, changes)
    note = "The backbone starts from random weights: its batch norm is trained, no stage is frozen"
    return Start(build(settings, len(names)), settings, (*notes, note), changes)


def _from_detector(model: FasterRCNN, path: Path, settings: Settings, names: Sequence[str], init: str) -> Start:
    """Start from one of our detectors, as far as it fits `model`; `init` names it in settings and notes."""
    tensors, metadata = read_detector(path)
    theirs = Architecture(metadata.settings, metadata.names)
    notes = adapt(model, tensors, theirs, Architecture(settings, names), init)
    changes = {"train": {"init": init}}
    return Start(model, override(settings, changes), notes, changes)
