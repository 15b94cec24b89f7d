"""Choose and check the settings of a new, fine-tuned or resumed run.

The command line and `rcnn.train` both use this module, so that they refuse the same combinations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rcnn.config import Settings, dump, merge, override, read, validate
from rcnn.config.aliases import ALIASES, IMAGE_SIZE
from rcnn.config.files import check_given
from rcnn.data.proposals.read import WORDS
from rcnn.data.proposals.search import EDGE_BOXES, model_file
from rcnn.errors import SettingsError
from rcnn.images.storage import Location, absolute, check_local, is_address, is_remote
from rcnn.presets import settings_of
from rcnn.runtime.by_suffix import refuse_exported
from rcnn.training.checkpoint import latest, read_progress
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import SCHEMES, JointFull, stages_of, takes_proposals
from rcnn.training.stages import Progress
from rcnn.weights.file import weights_of_run

DEFAULT_MODEL = "mobilenet-fpn"
DATA_OPTIONS = {"on_fault", "workers", "holdout"}
"""Options in the section `data`; the others are in the section `train`."""
RESUME_OPTIONS = {"epochs", "workers"}
"""Options that a resumed run accepts."""
MAY_CHANGE = ("data.workers", "train.timeout")
"""Settings that may differ when the same torchrun continues a run."""

DETECTOR_SECTIONS = ("preprocess", "model", "anchors", "rpn", "roi")
"""Sections that fine-tuning takes from the detector; the others have their defaults, except for `FINE_TUNING`."""
FINE_TUNING: dict[str, dict[str, Any]] = {"train": {"epochs": 15, "lr": 1e-3}}
"""Half of the defaults, which are meant for new layers on a backbone."""
FROZEN_STAGES = 2
"""Number of backbone stages that fine-tuning freezes if the detector was trained with none frozen."""


def choose_settings(
    data: str | Location | None = None,
    config: str | Path | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    start_from: str | Path | None = None,
    resume: str | Path | None = None,
    *,
    new_folder: bool = False,
) -> Settings:
    """Return the settings of a run: those of a file, preset or detector, changed by `overrides`, then by `options`.

    Args:
        data: data to train on, or its address. None: `data.path` of the settings.
        config: path of a `config.yaml`.
        model: name of a preset. None: `DEFAULT_MODEL`.
        overrides: `section.key=value` texts.
        options: settings by name, as `rcnn.train` takes them.
        start_from: detector to fine-tune.
        resume: folder of a run to resume, whose settings are used.
        new_folder: True if the name or the parent of the run folder is given.

    Raises:
        SettingsError: a setting is wrong, arguments contradict each other, a file that a setting names is missing, or
            there is nothing to train on.
        WeightsError: the detector to fine-tune or the checkpoint can't be used.
    """
    options = options or {}
    for path, what in ((data, "the data"), (config, "the settings"), (start_from, "the detector"), (resume, "the run")):
        if path is not None:
            check_given(path, what)
    check_arguments(data, config, model, overrides, options, start_from, resume, new_folder=new_folder)
    if resume is not None:
        return resumed_settings(RunFolder(resume), options)
    if config is not None:
        settings = read(Path(config))
    elif start_from is not None:
        settings = fine_tuning_settings(start_from)
    else:
        settings = settings_of(model or DEFAULT_MODEL)
    size = [f"{IMAGE_SIZE}={options[IMAGE_SIZE]}"] if IMAGE_SIZE in options else []
    settings = override(settings, [*overrides, *size])
    tree: dict[str, dict[str, object]] = {"data": {"path": absolute(data, "data.path")} if data is not None else {}}
    for name in options.keys() - {IMAGE_SIZE}:
        section, key = ("data", name) if name in DATA_OPTIONS else ALIASES.get(name, f"train.{name}").split(".")
        tree.setdefault(section, {})[key] = options[name]
    settings = override(settings, tree)
    _check_schedule(settings, overrides, tree)
    if (side := settings.train.tile) is not None:  # windows are never resized, in validation and prediction too
        tile = "auto" if settings.predict.tile == "off" else settings.predict.tile
        settings = override(settings, {"predict": {"tile": tile}, "preprocess": {"short": side, "long": side}})
    check_scheme(settings)
    proposals = settings.train.proposals
    if proposals is not None and proposals not in WORDS:  # --resume and --config may be called from elsewhere
        settings = override(settings, {"train": {"proposals": absolute(proposals, "train.proposals")}})
    if proposals == EDGE_BOXES or settings.data.edge_model is not None:
        settings = override(settings, {"data": {"edge_model": str(model_file(settings.data).resolve())}})
    settings = _checked_locations(settings)
    if settings.data.path is None:
        raise SettingsError("nothing to train on: give a folder, a COCO json or a data.yaml")
    return settings


def _checked_locations(settings: Settings) -> Settings:
    """Return settings with an absolute `data.cache`, and check the addresses that are written to config.yaml.

    Raises:
        SettingsError: `data.cache` is an address, or another address can't be opened or has parameters.
    """
    for key, text in (("data.path", settings.data.path), ("train.init", settings.train.init)):
        if text is not None and is_address(text):
            absolute(text, key)
    if settings.data.cache is None:
        return settings
    check_local(settings.data.cache, "data.cache")
    return override(settings, {"data": {"cache": absolute(settings.data.cache, "data.cache")}})


def check_arguments(
    data: object,
    config: object,
    model: object,
    overrides: Sequence[str],
    options: Mapping[str, object],
    start_from: object,
    resume: str | Path | None,
    *,
    new_folder: bool = False,
) -> None:
    """Check that the arguments of `choose_settings` do not contradict each other. None means not given.

    `new_folder` is True if the name or the parent of the run folder is given.

    Raises:
        SettingsError: they do, or the folder to resume holds no run.
    """
    if resume is not None:
        if (
            (data, config, model, start_from) != (None,) * 4
            or overrides
            or options.keys() - RESUME_OPTIONS
            or new_folder
        ):
            raise SettingsError(
                "--resume continues in the folder and with the settings of its run; leave out DATA and other settings "
                "(but --epochs and --workers), --name and --out"
            )
        if not RunFolder(resume).config.is_file() and not RunFolder(resume).checkpoints.is_dir():
            raise SettingsError(f"{resume}: no run folder (there is no config.yaml in it)")
    elif start_from is not None and (config, model, options.get("init")) != (None, None, None):
        raise SettingsError("--from names the model and its weights already; leave --config, --model and --init out")
    elif config is not None and model is not None:
        raise SettingsError("--config names the model already; leave --model out")


def check_scheme(settings: Settings) -> None:
    """Check that the scheme of a run can train the model that the settings describe.

    Raises:
        SettingsError: it can't; the message says what to change.
    """
    scheme, proposals, roi = settings.train.scheme, settings.train.proposals, settings.roi
    stages, count = stages_of(settings), len(SCHEMES[scheme])
    if settings.train.rounds > 1 and count == 1:
        raise SettingsError(
            f"train.rounds={settings.train.rounds} repeats the stages of a scheme, and train.scheme={scheme} has one: "
            "set train.scheme=alternating, or leave train.rounds out"
        )
    for name in ("steps", "step_milestones", "batches"):
        if (values := len(getattr(settings.train, name))) not in (0, 1, count):
            raise SettingsError(
                f"train.{name} has {values} values, and train.scheme={scheme} has {count} "
                f"{'stage' if count == 1 else 'stages'}: give one for all, or one for each"
            )
    if proposals is None and takes_proposals(scheme):
        raise SettingsError(f"train.scheme={scheme} needs train.proposals: a file, selective-search or sliding-windows")
    if proposals is not None and not takes_proposals(scheme):
        readers = " or ".join(name for name in SCHEMES if takes_proposals(name))
        raise SettingsError(f"only train.scheme={readers} reads train.proposals={proposals} (got {scheme})")
    if roi.head == "none" and any(stage.needs_second for stage in stages):
        raise SettingsError(f"train.scheme={scheme} needs a second stage, and roi.head=none has none")
    if settings.predict.tile != "off" and any(stage.proposals is not None for stage in stages):
        raise SettingsError(
            f"train.scheme={scheme} works on proposals of whole images, not of windows: leave out train.tile, and "
            "set predict.tile=off"
        )
    if any(issubclass(stage.loss, JointFull) for stage in stages) and (roi.pool == "max" or roi.sampling_ratio == 0):
        raise SettingsError(
            f"train.scheme={scheme} needs features with a gradient in the boxes: roi.pool=align or warp, "
            f"with roi.sampling_ratio of 1 or more (got {roi.pool} with {roi.sampling_ratio})"
        )


def _check_schedule(settings: Settings, overrides: Sequence[str], options: Mapping[str, Mapping[str, object]]) -> None:
    """Check that chosen epochs, milestones and batches are not replaced by settings per stage.

    Raises:
        SettingsError: a setting in `overrides` or `options` has no effect because of another one.
    """
    chosen = {text.partition("=")[0].strip() for text in overrides}
    chosen |= {f"{section}.{key}" for section, values in options.items() for key in values}
    for plain, per_stage in (("epochs", "steps"), ("milestones", "step_milestones"), ("batch", "batches")):
        if f"train.{plain}" in chosen and (values := getattr(settings.train, per_stage)):
            raise SettingsError(
                f"train.{plain} has no effect with train.{per_stage}={list(values)}: give one of them "
                f"(train.{per_stage}=[] turns the second off)"
            )


def fine_tuning_settings(source: str | Path) -> Settings:
    """Return the settings of a run that starts from a detector, given as for `rcnn.load`.

    Batch norms become constants (or stay `affine`), because batches are small and the statistics are known.

    Raises:
        WeightsError: as for `rcnn.load`, or it is an exported file.
    """
    from rcnn.open_model import NAMES, load  # imports torchvision's models, which takes as long as everything else

    refuse_exported(source)
    detector = load(source, "cpu").settings
    if str(source) in NAMES:
        init = str(source)
    elif is_remote(str(source)):
        init = absolute(str(source), "train.init")
    else:
        init = str(weights_of_run(Path(source).expanduser().resolve()))
    norm = "affine" if detector.model.norm == "affine" else "frozen"
    adapted = {
        "model": {"norm": norm, "frozen_stages": detector.model.frozen_stages or FROZEN_STAGES},
        "train": {"init": init},
    }
    tree = dump(detector)
    return validate(merge(merge({section: tree[section] for section in DETECTOR_SECTIONS}, FINE_TUNING), adapted))


def resumed_settings(folder: RunFolder, options: Mapping[str, object]) -> Settings:
    """Return the settings of a resumed run, with the `workers` and `epochs` of the options.

    Raises:
        SettingsError: it has no checkpoint, or can't be trained for this number of epochs; the message says what to do.
        WeightsError: the checkpoint is damaged.
    """
    if folder.path.is_dir() and latest(folder.checkpoints) is None:
        again = f"--config {folder.config}" if folder.config.exists() else "DATA"
        raise SettingsError(
            f"{folder.path} holds no checkpoint to resume from: its run ended before the first step. "
            f"Start it again: rcnn train {again}"
        )
    settings = read(folder.config)
    settings = _checked_locations(settings)
    if settings.data.path is None:
        raise SettingsError(f"{folder.config}: `data.path` is missing, so there is nothing to train on; restore it")
    if options.get("epochs") == "auto":
        raise SettingsError(f"--epochs auto sets the length of a new run: give a number to train {folder.path} longer")
    changes = {
        section: {key: options[key]} for section, key in (("data", "workers"), ("train", "epochs")) if key in options
    }
    changed = override(settings, changes)
    if changed.train.epochs != settings.train.epochs:
        _check_epochs(folder, settings, changed)
    return changed


def continued_settings(folder: RunFolder, chosen: Settings) -> Settings:
    """Return the settings of a run that the same command continues, with those of `MAY_CHANGE` as they are chosen now.

    Raises:
        SettingsError: config.yaml is damaged.
    """
    tree = dump(chosen)
    changes = {section: {key: tree[section][key]} for section, _, key in (key.partition(".") for key in MAY_CHANGE)}
    return override(read(folder.config), changes)


def _check_epochs(folder: RunFolder, settings: Settings, changed: Settings) -> None:
    """Check that a run can continue with a changed number of epochs.

    Raises:
        SettingsError: it counts steps, has several stages, has already begun this many epochs, or was stopped by its
            patience.
        WeightsError: the checkpoint is damaged.
        DataError: metrics.jsonl is damaged.
    """
    epochs = changed.train.epoch_count
    again = f"start a new run from its weights: rcnn train DATA --init {folder.path} --epochs N"
    stages = stages_of(settings)
    if settings.train.steps:
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} is a run of {list(settings.train.steps)} steps (train.steps), which "
            f"can no longer be changed. Leave --epochs out, or {again}"
        )
    if len(stages) > 1:
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} is a run of {len(stages)} stages "
            f"(train.scheme={settings.train.scheme}), each of {settings.train.epochs} epochs, which can no longer be "
            f"changed. Leave --epochs out, or {again}"
        )
    path = latest(folder.checkpoints)
    assert path is not None
    progress = read_progress(path)
    begun = progress.epoch + (progress.place > 0)
    if epochs <= begun:
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} has already begun epoch {begun} of {settings.train.epochs}; "
            f"give more than {begun}"
        )
    # Read from the rows, because a checkpoint is saved before the validation of its epoch.
    column, validated = stages[0].decided_by(settings), Progress()
    for row in folder.rows():
        validated.epoch = row["epoch"]
        if column in row and (validated.best_ap is None or row[column] is None or row[column] > validated.best_ap):
            validated.best_ap, validated.best_epoch = row[column], validated.epoch
    if validated.finished(changed.train, changed.val.every):
        raise SettingsError(
            f"--epochs {epochs}: {folder.path} was stopped after {begun} epochs, because the last "
            f"{settings.train.patience} brought no better score (train.patience). "
            f"To train further, {again}"
        )
