"""A run in one process: epochs of steps, each with a checkpoint, a validation and a row of numbers."""

import math
import threading
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.upload import uploaded
from rcnn.data.loading.windows import scale_of
from rcnn.data.proposals.external import External
from rcnn.detector import Detector
from rcnn.errors import NonFiniteError, TrainingError
from rcnn.evaluate import Shard, evaluate
from rcnn.metrics.curves import best_threshold, precision_recall
from rcnn.metrics.table import Metrics
from rcnn.training import checkpoint
from rcnn.training.distributed import Distributed
from rcnn.training.ending import patient
from rcnn.training.log import Log, memory_gb
from rcnn.training.loop import Engine, Progress, Step, train_step
from rcnn.training.optim import learning_rate
from rcnn.training.recorders import Recorders
from rcnn.training.recorders.report_page import ReportPage
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import stages_of
from rcnn.training.stages import Stage

CHECKPOINT, INTERRUPT = 0, 1
"""Indices of the requests that a process can make, see `train_step`."""


@dataclass(frozen=True)
class Context:
    """Everything that the stages of a run share.

    Attributes:
        settings: as in config.yaml; the model of a stage may differ in having no second stage.
        folder: of the run.
        log: for messages.
        distributed: the processes.
        train: images to train on.
        val: images to validate on.
        recorders: receive the numbers.
        page: receives the scores of the weights that are kept.
        rows: of the epochs so far.
    """

    settings: Settings
    folder: RunFolder
    log: Log
    distributed: Distributed
    train: Dataset
    val: Dataset
    recorders: Recorders
    page: ReportPage
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the scheme."""
        return stages_of(self.settings)


@dataclass
class Session:
    """One stage of a run in this process.

    Attributes:
        run: shared with the other stages.
        stage: its description.
        settings: of its model.
        weights: folder of best.safetensors, unless `train.keep=last`, and last.safetensors.
        given: proposals for validation. None: the model's own.
        saved: when the last checkpoint was made, by the monotonic clock.
    """

    run: Context
    stage: Stage
    settings: Settings
    loader: Loader
    engine: Engine
    progress: Progress
    weights: Path
    given: External | None = None
    saved: float = field(default_factory=time.monotonic)

    def checkpoint(self) -> None:
        """Save the state of training."""
        self.saved = time.monotonic()
        if self.run.distributed.writer:
            folder = self.run.folder
            checkpoint.save(folder.checkpoints, self.engine, self.progress, folder.log_lengths())


def run_epochs(session: Session) -> None:
    """Run all epochs: steps, checkpoint, validation."""
    progress, settings = session.progress, session.settings.train
    with closing(session.loader):
        while not finished(progress, session.settings):
            began, before = time.monotonic(), progress.place
            with patient() as wanted:
                train_epoch(session, wanted)
            seconds = time.monotonic() - began
            images = (progress.place - before) * settings.batch
            progress.seconds += seconds
            # Before validation: stopping there loses nothing, and weights that are not finite are noticed here.
            session.checkpoint()
            if wanted.is_set():
                raise KeyboardInterrupt
            _end_epoch(session, images / seconds if images else math.nan)


def finished(progress: Progress, settings: Settings) -> bool:
    """Are all epochs done, or did the last validation come `train.patience` epochs after the best one?"""
    validated = progress.epoch - progress.epoch % settings.val.every
    waited = validated - progress.best_epoch if progress.best_epoch else 0
    patience = settings.train.patience
    return progress.epoch >= settings.train.epochs or (patience is not None and waited >= patience)


def is_late(session: Session) -> bool:
    """Is it time for a checkpoint? Only the writer's clock counts; the others learn of it at the same step."""
    minutes = (time.monotonic() - session.saved) / 60
    return session.run.distributed.writer and minutes > session.settings.train.checkpoint_minutes


def train_epoch(session: Session, wanted: threading.Event) -> None:
    """Run the rest of an epoch, with checkpoints at intervals and when `wanted` is set by Ctrl-C.

    Before a checkpoint, and at the end of the epoch, all steps that were queued ahead are read.
    """
    engine, progress, settings = session.engine, session.progress, session.settings.train
    began, before = time.monotonic(), progress.place
    if progress.place == session.loader.steps:
        return  # the checkpoint was made between the last step and validation
    engine.model.train()
    for part in engine.fixed:
        part.eval()
    queued: list[Step] = []

    def read() -> tuple[float, ...]:
        """Read the oldest step, write its numbers down, return its requests."""
        step = queued.pop(0)
        numbers = step.read(engine)
        progress.step += 1
        progress.place += len(step.losses)
        progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in numbers.sums.items()}
        pace = (progress.place - before) * settings.batch / (time.monotonic() - began)
        row = _numbers(session, step.lr)
        session.run.recorders.step({**row, "images_per_second": pace, "memory_gb": memory_gb()})
        return numbers.requests

    def settle() -> None:
        """Read the oldest step and do what was asked for with it."""
        requests = read()
        if any(requests):
            while queued:
                read()
            session.checkpoint()
        if requests[INTERRUPT]:
            raise KeyboardInterrupt

    items = uploaded(session.loader.epoch(progress.epoch, progress.place), session.run.distributed.device)
    try:
        while group := list(islice(items, settings.accumulate)):
            number = progress.step + len(queued)
            queued.append(train_step(engine, group, number, (is_late(session), wanted.is_set())))
            if len(queued) > engine.ahead:
                settle()
        while queued:
            settle()
    except TrainingError:
        raise
    except (RuntimeError, ChildProcessError):
        while queued:
            read()  # a loss that is not finite would be the reason of the error
        if wanted.is_set():
            # Ctrl-C also reaches the loader's workers and may end them first: the last step is complete all the same.
            session.checkpoint()
            raise KeyboardInterrupt from None
        raise
    finally:
        items.close()


def _end_epoch(session: Session, pace: float) -> None:
    """Validate, keep the weights, write the epoch's row. `pace` is NaN if all steps were made before a resumption."""
    progress, settings, number = session.progress, session.settings, session.progress.epoch + 1
    row = _numbers(session, learning_rate(progress.step - 1, session.engine.total, settings.train))
    averaged = session.engine.ema.applied() if session.engine.ema else nullcontext()
    with averaged:
        scale = scale_of(session.run.train, settings)
        detector = _detector(session, {"epoch": number, "scale": scale})
        if number % settings.val.every == 0 or number == settings.train.epochs:
            metrics = validate(session, detector)
            row |= metrics.to_row()
            score = row[session.stage.decided_by(settings)]
            last = settings.train.keep == "last"
            if session.run.distributed.writer and not last:
                curves = precision_recall(metrics.truths, metrics.predictions, len(metrics.names))
                detector.threshold = best_threshold(curves)
            detector.summary |= {"ap": known(metrics.ap), "ap50": known(metrics.ap50)}
            if last or progress.best_ap is None or not score <= progress.best_ap:
                progress.best_ap, progress.best_epoch = known(score), number
                if not last:
                    _save(session, detector, "best")
                session.run.page.scored(detector, metrics, number)
        _save(session, detector, "last")
    progress.epoch, progress.place, progress.sums = number, 0, {}
    row |= {"seconds": round(progress.seconds, 3), "images_per_second": pace, "memory_gb": memory_gb()}
    session.run.rows.append({name: known(value) for name, value in row.items()})
    session.run.recorders.epoch(session.run.rows[-1])


def _numbers(session: Session, lr: float) -> dict[str, float]:
    """The numbers known after every step: the position, counted over all stages, and the mean losses of the epoch."""
    progress, settings = session.progress, session.settings.train
    numbers = {"epoch": progress.stage * settings.epochs + progress.epoch + 1, "step": progress.step, "lr": lr}
    if len(session.run.stages) > 1:
        numbers["stage"] = progress.stage + 1
    losses = progress.means()
    numbers |= {f"train_{key}": value for key, value in losses.items()}
    return numbers | {"train_loss": math.fsum(losses.values())}


def _detector(session: Session, summary: Mapping[str, Any]) -> Detector:
    dataset = session.run.train
    return Detector(
        session.engine.model,
        session.settings,
        dataset.names,
        category_ids=dataset.category_ids,
        summary=summary,
        device=session.run.distributed.device,
    )


def _save(session: Session, detector: Detector, name: str) -> None:
    if session.run.distributed.writer:
        detector.save(session.weights / f"{name}.safetensors")


def known(value: float) -> float | None:
    """The value, or None if it could not be measured, such as the AP without any objects."""
    return value if math.isfinite(value) else None


def validate(session: Session, detector: Detector) -> Metrics:
    """Score a detector on the validation split; all processes take part."""
    distributed = session.run.distributed
    try:
        return evaluate(
            detector,
            session.run.val,
            batch=session.settings.val.batch,
            shard=Shard(distributed.rank, distributed.world, distributed.gather),
            progress=lambda done, steps: session.run.log.status(f"validation: batch {done} of {steps}"),
            proposals=session.given,
        )
    except NonFiniteError as error:
        raise TrainingError(f"validation after step {session.progress.step}: {error}") from None
