"""`rcnn.train`: from a data set to a run folder with a trained detector, in chronological order."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rcnn.config import Settings, dump, override, read
from rcnn.config.aliases import ALIASES, IMAGE_SIZE
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_splits
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.windows import training_windows
from rcnn.data.proposals.external import ImageProposals, SlidingWindows
from rcnn.data.proposals.read import WORDS
from rcnn.data.proposals.search import EDGE_BOXES, model_file
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.metrics.table import Metrics, live_metrics
from rcnn.model.sliding_windows import SLIDING_WINDOWS
from rcnn.presets import build, settings_of
from rcnn.text import plural
from rcnn.training import checkpoint
from rcnn.training.distributed import Distributed, join_processes
from rcnn.training.ema import EMA
from rcnn.training.ending import explained
from rcnn.training.fine_tune import fine_tuning_settings
from rcnn.training.fit_anchors import settle_anchors
from rcnn.training.init import Start, initialise
from rcnn.training.log import Log, duration, memory_gb
from rcnn.training.loop import Engine, Progress, tf32_allowed
from rcnn.training.optim import build_optimizer
from rcnn.training.proposals import external_proposals, save_proposals
from rcnn.training.recorders import About, Recorder, Recorders
from rcnn.training.recorders.console import ConsoleTable
from rcnn.training.recorders.csv_table import CsvTable
from rcnn.training.recorders.history import History
from rcnn.training.recorders.json_lines import JsonLines
from rcnn.training.recorders.report_page import ReportPage
from rcnn.training.resume import change_epochs, run_settings
from rcnn.training.run_folder import RunFolder, check_name
from rcnn.training.run_pictures import draw_end, draw_start
from rcnn.training.schemes import check, stages_of
from rcnn.training.session import Context, Session, known, run_epochs, validate
from rcnn.training.stages import AP, RECALL, hold, proposal_files, stage_proposals, stage_start
from rcnn.weights.file import kept

LOADING = {"on_fault", "workers", "holdout"}
"""Options of `train` that are settings of the section `data`."""


@dataclass(frozen=True)
class Run:
    """The result of a training. A notebook shows the curves of its epochs.

    Attributes:
        folder: the run folder.
        metrics: scores of the best weights on the validation split; of the last with `train.keep=last`.
        rows: one per epoch, as in metrics.jsonl.
    """

    folder: Path
    metrics: Metrics
    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        epochs = plural(len(self.rows), "epoch")
        return f"Run in {self.folder}, {epochs}\nweights: {self.best}\n{self.metrics}"

    def _repr_png_(self) -> bytes | None:
        """The curves in a notebook, as in history.png; None if the folder is gone."""
        picture = RunFolder(self.folder).history
        return picture.read_bytes() if picture.exists() else None

    @property
    def best(self) -> Path:
        """Weights of the epoch with the highest validation AP; `last` with `train.keep=last`, which chooses none."""
        return kept(self.folder / "weights")

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.folder / "weights" / "last.safetensors"

    @property
    def detector(self) -> Detector:
        """The detector of `best`, loaded."""
        return Detector.load(self.best)


def train(
    data: str | Path | None = None,
    config: str | Path | None = None,
    *,
    model: str = "mobilenet-fpn",
    start_from: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    name: str | None = None,
    runs: str | Path = "runs/train",
    quiet: bool = False,
    recorders: Sequence[Recorder] = (),
    **options: object,
) -> Run:
    """Train a detector.

    Args:
        data: folder, COCO json, data.yaml or csv. None: `data.path` of `config`.
        config: a `config.yaml`, which repeats its run. None: the preset `model`.
        model: name of a preset, or timm/NAME.
        start_from: detector to fine-tune instead, as `rcnn.load` takes it: its network, preprocessing and weights.
        overrides: `section.key=value` texts laid over the settings.
        resume: run folder to resume, with its own settings; only `epochs`, `workers`, `quiet` and `recorders` count.
        name: the run folder is `runs/name-N`. None: the name of the data.
        runs: folder of run folders.
        quiet: print nothing.
        recorders: receive the numbers of the run, after those that write the run folder. One that fails is dropped.
        **options: settings of the section `train` by name (`epochs=30`), `imgsz`, `on_fault`, `workers`, `holdout`.

    Raises:
        SettingsError: a setting is wrong.
        DataError: the data can't be read, or is faulty.
        WeightsError: the weights to start from, or a checkpoint, can't be used.
        TrainingError: a loss is not finite, or the disk is full; the last checkpoint is named.
        Interrupted: Ctrl-C; the state is saved.
    """
    check_name(name)
    resumed = RunFolder(resume) if resume is not None else None
    chosen = (data, config, model, overrides, options, start_from)
    settings = run_settings(resumed, options) if resumed else choose_settings(*chosen)
    with (
        join_processes(settings.train.device, settings.train.batch) as distributed,
        tf32_allowed(settings.train, distributed.device),
    ):
        console = Console() if distributed.writer and not quiet else None
        train_set, val_set = _read_splits(settings, console)
        torch.manual_seed(settings.train.seed)
        folder, start = resumed, None
        if folder is None:
            settings, start, folder = _set_up(settings, (train_set, val_set), distributed, console, Path(runs), name)
        with explained(folder), closing(Log(folder.log if distributed.writer else None, console)) as log:
            page = ReportPage(folder.path, val_set)
            told = Recorders((*_files(folder, log), page, *recorders) if distributed.writer else (), log.say)
            run = Context(settings, folder, log, distributed, train_set, val_set, told, page)
            session = _begin(run, start) if start else _go_on(run)
            with told.running(_about(session)) as scores:
                run_epochs(session)
                while session.progress.stage + 1 < len(run.stages):
                    session = _next(session)
                    run_epochs(session)
                best, metrics = _score_kept(session)
                scores.update({name: known(value) for name, value in metrics.to_row().items()})
            return _finish(session, best, metrics)


def _set_up(
    settings: Settings,
    splits: tuple[Dataset, Dataset],
    distributed: Distributed,
    console: Console | None,
    runs: Path,
    name: str | None,
) -> tuple[Settings, Start, RunFolder]:
    """The settings of a new run, adapted to the data and the weights, its first model, and its folder."""
    train_set, _ = splits
    given = external_proposals(settings, splits, distributed, console)
    settings, notes = distributed.gather(settle_anchors(settings, training_windows(train_set, settings)))[0]
    start = initialise(stages_of(settings)[0].model_settings(settings), train_set.names)
    settings, start = override(settings, start.changes), replace(start, notes=(*notes, *start.notes))
    return settings, start, _new_folder(distributed, runs, name or _name_of(settings, train_set), given)


def _files(folder: RunFolder, log: Log) -> tuple[Recorder, ...]:
    """The recorders of the console and of the files of rows."""
    return ConsoleTable(log), JsonLines(folder.metrics), CsvTable(folder.table), History(folder.history)


def choose_settings(
    data: str | Path | None,
    config: str | Path | None,
    model: str,
    overrides: Sequence[str],
    options: Mapping[str, object],
    start_from: str | Path | None = None,
) -> Settings:
    """The settings of a new run: a file's, a preset's or a detector's, then `overrides`, then `options`.

    Raises:
        SettingsError: a setting is wrong, a file that it names is missing, or nothing says what to train on.
    """
    size = [f"{IMAGE_SIZE}={options[IMAGE_SIZE]}"] if IMAGE_SIZE in options else []
    overrides = [*overrides, *size]
    first = read(Path(config)) if config else fine_tuning_settings(start_from) if start_from else settings_of(model)
    settings = override(first, overrides)
    tree: dict[str, dict[str, object]] = {"data": {"path": str(Path(data).resolve())} if data is not None else {}}
    for name in options.keys() - {IMAGE_SIZE}:
        section, key = ("data", name) if name in LOADING else ALIASES.get(name, f"train.{name}").split(".")
        tree.setdefault(section, {})[key] = options[name]
    settings = override(settings, tree)
    if (side := settings.train.tile) is not None:  # at the scale of the file, also in validation and with the weights
        tile = "auto" if settings.predict.tile == "off" else settings.predict.tile
        settings = override(settings, {"predict": {"tile": tile}, "preprocess": {"short": side, "long": side}})
    check(settings)
    proposals = settings.train.proposals
    if proposals is not None and proposals not in WORDS:  # --resume and --config may be called from elsewhere
        settings = override(settings, {"train": {"proposals": str(Path(proposals).expanduser().resolve())}})
    if proposals == EDGE_BOXES or settings.data.edge_model is not None:
        settings = override(settings, {"data": {"edge_model": str(model_file(settings.data).resolve())}})
    if settings.data.path is None:
        raise SettingsError("nothing to train on: give a folder, a COCO json or a data.yaml")
    return settings


def _read_splits(settings: Settings, console: Console | None) -> tuple[Dataset, Dataset]:
    """The images to train on and those to validate on. A terminal shows the progress of decoding."""
    path = str(settings.data.path)
    if console is None:
        return open_splits(path, settings.data)
    with console.status("reading images") as status:
        return open_splits(
            path, settings.data, lambda done, images: status.update(f"read {done:,} of {images:,} images")
        )


def _name_of(settings: Settings, dataset: Dataset) -> str:
    """The name of a run: that of the folder of its data, also where a file or folder inside it was given."""
    path, root = Path(str(settings.data.path)), Path(os.path.normpath(dataset.root))
    return (path if root.is_relative_to(path) else root).name or "data"


def _new_folder(
    distributed: Distributed, runs: Path, name: str, given: Sequence[Sequence[ImageProposals]] | None
) -> RunFolder:
    """The run folder, made by the writer, with the given proposals, if any."""
    folder = RunFolder(
        str(distributed.gather(str(RunFolder.create(runs, name).path) if distributed.writer else None)[0])
    )
    if given is not None and distributed.writer:
        folder.proposals.mkdir()
        for file, proposals in zip(proposal_files(folder.proposals), given, strict=True):
            save_proposals(file, proposals)
    distributed.gather(None)  # the files are there before anyone reads them
    return folder


def _begin(run: Context, start: Start) -> Session:
    """Prepare the first stage of a new run: print and write down what is run, and save the initial state."""
    session = _prepare(run, Progress(), start)
    train_set, val_set = run.train, run.val
    if not run.distributed.writer:
        return session
    run.folder.describe(run.settings, train_set, val_set)
    classes = plural(len(train_set.names), "class")
    preprocess = run.settings.preprocess
    run.log.say(
        f"{run.folder.path}: {run.settings.model.preset}, {classes}, "
        f"{len(train_set)} images to train on, {len(val_set)} to validate, "
        f"resized to {preprocess.short} pixels (the longer side at most {preprocess.long}), "
        f"on {run.distributed.device}, loaded by {session.loader.workers}"
    )
    notes = (*session.loader.dataset.notes, *val_set.notes, *start.notes, *_chosen_on_test(run.settings))
    for note in dict.fromkeys(notes):
        run.log.say(note)
    faults = len(set(map(str, (*train_set.faults, *val_set.faults))))
    if faults:
        run.log.say(f"faults of the data, mended or left out: {faults}, listed in {run.folder.path / 'faults.txt'}")
    _announce(session)
    session.checkpoint()
    draw_start(run.folder.plots, session.loader)
    return session


def _chosen_on_test(settings: Settings) -> tuple[str, ...]:
    """A note if the best epoch is chosen on the test list."""
    if settings.data.val != "test" or settings.train.keep == "last":
        return ()
    return (
        "the best epoch and the score threshold are chosen on the list test (data.val=test), so its scores are too "
        "good for images held out; train.keep=last chooses nothing",
    )


def _go_on(run: Context) -> Session:
    """Prepare the stage of the last checkpoint; what was logged after it is dropped."""
    progress = Progress(stage=checkpoint.stage(run.folder.checkpoints, len(run.stages)))
    settings = run.stages[progress.stage].model_settings(run.settings)
    session = _prepare(run, progress, Start(build(settings, len(run.train.names)), settings))
    path = checkpoint.latest(run.folder.checkpoints)
    assert path is not None
    run.folder.see_same_data(run.train, run.val)
    session.progress, lengths = checkpoint.restore(path, session.engine)
    if run.distributed.writer:
        run.folder.cut_logs(lengths)
        run.log.say(f"going on with {run.folder.path} after step {session.progress.step}")
        if changed := change_epochs(run.folder, run.settings, session.progress, session.engine.total):
            run.log.say(changed)
        _announce(session)
    run.distributed.gather(None)  # the writer has cut the rows before anyone reads them
    run.rows.extend(run.folder.rows())
    return session


def _prepare(run: Context, progress: Progress, start: Start) -> Session:
    """Build loader, loss, optimiser and average around the model of a stage."""
    settings, distributed, train_set = start.settings, run.distributed, run.train
    stage, last = run.stages[progress.stage], progress.stage + 1 == len(run.stages)
    weights = run.folder.weights if last else run.folder.stage(progress.stage + 1)
    if distributed.writer:
        weights.mkdir(parents=True, exist_ok=True)
    splits = (train_set, run.val)
    given, val_given = stage_proposals(stage, start, splits, run.folder, distributed, run.log.status)
    fixed = hold(start.model, stage)
    model = start.model.to(distributed.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = training_windows(train_set, settings)
    loader = Loader(
        seen,
        settings,
        training=True,
        batch=settings.train.batch // distributed.world,
        device=distributed.device,
        rank=distributed.rank,
        world=distributed.world,
        proposals=given,
    )
    engine = Engine(
        model=model,
        loss=distributed.wrap(stage.loss(model), settings.train.accumulate),
        optimizer=build_optimizer(model, settings.train),
        ema=EMA(model, settings.train.ema) if settings.train.ema is not None else None,
        settings=settings.train,
        distributed=distributed,
        total=settings.train.epochs * math.ceil(loader.steps / settings.train.accumulate),
        image_names=lambda index: [seen.records[i].name for i in index.tolist() if i >= 0],
        fixed=fixed,
        ahead=1 if distributed.device.type == "cuda" else 0,
    )
    return Session(
        run=run,
        stage=stage,
        settings=settings,
        loader=loader,
        engine=engine,
        progress=progress,
        weights=weights,
        given=val_given,
    )


def _about(session: Session) -> About:
    """What the recorders are told at the start."""
    run, settings = session.run, session.run.settings
    return About(
        folder=run.folder.path,
        settings=dump(settings),
        names=run.train.names,
        images=(len(run.train), len(run.val)),
        best=tuple(stage.decided_by(settings) for stage in run.stages),
        epochs=settings.train.epochs,
        steps=session.engine.total,
        stage=session.progress.stage + 1,
        step=session.progress.step,
        rows=tuple(run.rows),
    )


def _next(session: Session) -> Session:
    """Prepare the next stage of the scheme; its first checkpoint replaces the last one of the stage before."""
    run = session.run
    run.distributed.gather(None)  # the writer has written the stage's weights before anyone reads them
    progress = Progress(stage=session.progress.stage + 1, seconds=session.progress.seconds)
    stage, number = run.stages[progress.stage], progress.stage + 1
    following = _prepare(run, progress, stage_start(stage, number, run.settings, run.train.names, run.folder))
    _announce(following)
    following.checkpoint()
    return following


def _announce(session: Session) -> None:
    """Print which stage begins, if it has a title."""
    if session.stage.title:
        run, number = session.run, session.progress.stage + 1
        run.log.say(f"stage {number} of {len(run.stages)}: {session.stage.title}")


def _score_kept(session: Session) -> tuple[Detector, Metrics]:
    """The best weights, or the last with `train.keep=last`, loaded from the disk, and their scores."""
    session.run.distributed.gather(None)  # the writer has written them before anyone reads them
    best = Detector.load(kept(session.run.folder.weights), session.run.distributed.device)
    workers = session.settings.data.workers
    if workers != best.settings.data.workers:  # the run was resumed with fewer
        best = best.with_settings({"data": {"workers": workers}})
    metrics = validate(session, best)
    session.run.page.scored(best, metrics, session.progress.best_epoch)
    return best, metrics


def _finish(session: Session, best: Detector, metrics: Metrics) -> Run:
    """Draw the results, print the scores and what to do next."""
    folder, log = session.run.folder, session.run.log
    run = Run(folder.path, metrics, session.run.rows)
    if session.run.distributed.writer:
        rows, note = metrics.table(digits=1)
        log.table("AP by class on the validation split" + note, metrics.class_headings, rows)
        draw_end(folder.plots, session.run.val, metrics, session.settings, best.threshold)
        shown = live_metrics(AP if best.settings.predicts_classes else RECALL)
        scores = ", ".join(f"{m.live} {metrics.values[m.key].overall:.{m.digits}f}" for m in shown)
        spent = f"{duration(session.progress.seconds)} of training, {memory_gb():.1f} GB"
        log.say(f"{session.settings.train.keep} epoch {session.progress.best_epoch}: {scores}; {spent}")
        command, ending = "predict" if best.settings.predicts_classes else "propose", ""
        if session.given:
            windows = isinstance(session.given, SlidingWindows)
            ending = f" --proposals {SLIDING_WINDOWS if windows else 'FILE|selective-search'}"
        here, data = Path.cwd(), Path(str(session.run.settings.data.path))
        data = data.relative_to(here) if data.is_relative_to(here) else data
        split = "test" if session.run.settings.data.val == "test" else "val"
        pictures = shlex.join([str(folder.path), str(data), "--split", split])
        log.say(f"next: rcnn {command} {pictures}{ending}")
    return run
