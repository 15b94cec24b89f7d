"""The training loop: stages, epochs and steps. Each epoch ends with a checkpoint, a validation and a row of numbers."""

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from itertools import islice
from typing import Any

import torch

from rcnn.config import Settings, dump
from rcnn.data.loading.loader import Item, lost_worker
from rcnn.detector import Detector
from rcnn.errors import NonFiniteError, TrainingError
from rcnn.evaluate import Shard, evaluate
from rcnn.metrics.curves import best_threshold, precision_recall
from rcnn.metrics.table import Metrics
from rcnn.signals import StopRequest, interruption, patient, workers_unheard
from rcnn.training.checkpoint import save_checkpoint
from rcnn.training.distributed import Distributed, lost_process, seed_generators, without_sync
from rcnn.training.log import Log, memory_gb
from rcnn.training.recorders import About, Recorders
from rcnn.training.run_folder import RunFolder
from rcnn.training.stages import Progress, Splits, TrainState, begin_stage
from rcnn.training.step import BatchLosses, StepLosses, backward, tf32_allowed

SIGNAL_SECONDS = 1.0
"""Time after the loss of a loader process within which this process would get the same signal."""
INTERRUPT = 1
"""Index of the request to stop among the requests that a process makes with a step. Index 0: to save a checkpoint."""


class Trainer:
    """Trains the stages of a scheme, one after another.

    Args:
        settings: settings as in config.yaml; the models of some stages have no second stage.
        splits: training images and validation images.
        folder: folder of the run.
        log: log for messages.
        distributed: processes that train together.
        recorders: recorders that receive the numbers.
        on_kept: function called with each detector whose weights are kept, its scores and its epoch.

    Attributes:
        state: the current stage; set before `fit`.
        rows: rows of the completed epochs.
        ahead: number of steps that are queued before the losses of the oldest are read. With 1, a GPU always has work.
            On a CPU, a step is complete when `step` returns.
    """

    state: TrainState

    def __init__(
        self,
        settings: Settings,
        splits: Splits,
        folder: RunFolder,
        log: Log,
        distributed: Distributed,
        recorders: Recorders,
        on_kept: Callable[[Detector, Metrics, int], None],
    ) -> None:
        self.settings, self.splits, self.folder, self.log = settings, splits, folder, log
        self.distributed, self.recorders, self.on_kept = distributed, recorders, on_kept
        self.rows: list[dict[str, Any]] = []
        self.ahead = 1 if distributed.device.type == "cuda" else 0
        self._saved = time.monotonic()

    def fit(self) -> tuple[Detector, Metrics]:
        """Train the remaining stages; return the kept detector, loaded from its file, and its scores."""
        self.distributed.resumable(self.folder.path)
        with (
            tf32_allowed(self.settings.train, self.distributed.device),
            self.recorders.running(self._about()) as scores,
        ):
            self.run_stage()
            while self.state.progress.stage + 1 < len(self.state.stages):
                self.next_stage()
                self.run_stage()
            detector, metrics = self.score_kept()
            scores.update({name: known(value) for name, value in metrics.to_row().items()})
        return detector, metrics

    def run_stage(self) -> None:
        """Run the remaining epochs of the stage."""
        with closing(self.state.loader):
            while not self.state.progress.finished(self.state.train, self.settings.val.every):
                self.run_epoch()

    def run_epoch(self) -> None:
        """Run the rest of an epoch: the remaining steps, a checkpoint, validation, and a row of numbers."""
        progress = self.state.progress
        began, first = time.monotonic(), progress.place
        with patient() as interrupted:
            self.run_steps(interrupted)
            seconds = time.monotonic() - began
            images = (progress.place - first) * self.state.train.batch
            progress.seconds += seconds
            # Saved before validation, so that stopping there loses nothing; weights that are not finite raise here.
            with workers_unheard():
                self.save_checkpoint()
                self.end_together(interrupted)
        row = self.numbers(self.state.learning_rate(progress.step - 1))
        with self.state.ema.applied() if self.state.ema else nullcontext():
            row |= self.validate_and_save()
        progress.epoch, progress.place, progress.sums = progress.epoch + 1, 0, {}
        pace = images / seconds if images else math.nan  # NaN if all steps were done before the run was resumed
        row |= {"seconds": round(progress.seconds, 3), "images_per_second": pace, "memory_gb": memory_gb()}
        self.rows.append({name: known(value) for name, value in row.items()})
        self.recorders.epoch(self.rows[-1])

    def run_steps(self, interrupted: StopRequest) -> None:
        """Run the remaining steps of an epoch, with checkpoints at intervals and when `interrupted` is set.

        The losses of all queued steps are read before a checkpoint and at the end of the epoch.
        """
        state, progress, train = self.state, self.state.progress, self.state.train
        began, first = time.monotonic(), progress.place
        if progress.place == state.loader.steps or progress.step == state.total:
            return  # resumed from the checkpoint between the last step and validation
        self.distributed.meet()  # process 0 may have been drawing
        state.model.train()
        for part in state.fixed:
            part.eval()
        state.loader.report = self.log.say
        queued: list[StepLosses] = []

        def read() -> tuple[float, ...]:
            """Read the losses of the oldest step, record them, and return its requests."""
            step = queued.pop(0)
            losses, requests = step.read(state, self.distributed)
            progress.step += 1
            progress.place += len(step.batches)
            progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in losses.items()}
            pace = (progress.place - first) * train.batch / (time.monotonic() - began)
            self.recorders.step({**self.numbers(step.lr), "images_per_second": pace, "memory_gb": memory_gb()})
            return requests

        def settle() -> None:
            """Read the oldest step and fulfil its requests."""
            requests = read()
            if any(requests):
                while queued:
                    read()
                self.save_checkpoint()
                self.distributed.meet()
            if requests[INTERRUPT]:
                self.end_together(interrupted)

        batches = state.batches(self.distributed.device)
        try:
            while (number := progress.step + len(queued)) < state.total and (
                group := list(islice(batches, train.accumulate))
            ):
                with workers_unheard():
                    queued.append(self.step(group, number, (self.is_late(), interrupted.is_set())))
                    self.log.say_threads()
                    if len(queued) > self.ahead:
                        settle()
            with workers_unheard():
                while queued:
                    settle()
        except TrainingError:
            raise
        except (RuntimeError, ChildProcessError) as error:
            with workers_unheard():
                while queued:
                    read()  # a loss that is not finite would be the reason of the error
                # A signal that is sent to all processes may end the loader's workers first: the last step is complete.
                if lost_worker(error) and interrupted.wait(SIGNAL_SECONDS):
                    self.save_checkpoint()
                    raise interrupted.error() from None
                if lost_process(error) and interrupted.is_set():  # the signal has ended that process as well
                    raise interrupted.error() from None
            raise
        finally:
            batches.close()

    def step(self, items: list[Item], number: int, requests: tuple[bool, ...] = ()) -> StepLosses:
        """Average the gradients of the batches, then update the weights and their moving average.

        This does not synchronise with a GPU. Read the losses before using or saving the weights.

        Args:
            items: batches of the step.
            number: number of steps before this one.
            requests: requests of this process, which reach the other processes with the losses of the step.
        """
        state, train = self.state, self.state.train
        lr = state.learning_rate(number)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        losses: list[BatchLosses] = []
        for index, item in enumerate(items):
            seed_generators(train.seed, number, index, self.distributed.rank)
            with nullcontext() if index == len(items) - 1 else without_sync(state.loss):
                losses.append(backward(state, self.distributed, item, len(items), requests))
        if train.clip is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), train.clip, foreach=True)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self.distributed.average_norms(state.model)
        if state.ema:
            state.ema.update(number + 1)
        return StepLosses(number, lr, losses)

    def validate_and_save(self) -> dict[str, float]:
        """Validate if it is due, save the weights, and return the scores."""
        state, progress, settings = self.state, self.state.progress, self.state.settings
        number, scores = progress.epoch + 1, dict[str, float]()
        detector = state.detector(self.splits[0], self.distributed.device, number)
        if number % settings.val.every == 0 or number == state.train.epoch_count:
            metrics = self.validate(detector)
            scores = metrics.to_row()
            score = scores[state.stage.decided_by(settings)]
            last = settings.train.keep == "last"
            if self.distributed.writer and not last:
                curves = precision_recall(metrics.truths, metrics.predictions, len(metrics.names))
                detector.threshold = best_threshold(curves)
            detector.summary |= {"ap": known(metrics.ap), "ap50": known(metrics.ap50)}
            if last or progress.best_ap is None or not score <= progress.best_ap:
                progress.best_ap, progress.best_epoch = known(score), number
                if not last:
                    self._save(detector, "best")
                self.on_kept(detector, metrics, number)
        self._save(detector, "last")
        return scores

    def validate(self, detector: Detector) -> Metrics:
        """Score a detector on the validation images, shared among the processes."""
        try:
            return evaluate(
                detector,
                self.splits[1],
                batch=self.state.settings.val.batch,
                shard=Shard(
                    self.distributed.rank, self.distributed.world, self.distributed.collect, self.distributed.share
                ),
                progress=lambda done, steps: self.log.status(f"validation: batch {done} of {steps}"),
                proposals=self.state.val_proposals,
            )
        except NonFiniteError as error:
            raise TrainingError(f"validation after step {self.state.progress.step}: {error}") from None

    def next_stage(self) -> None:
        """Prepare the next stage; its first checkpoint replaces the last one of the previous stage."""
        self.distributed.meet()  # wait until the writer has written the weights of the stage
        before = self.state.progress
        progress = Progress(stage=before.stage + 1, seconds=before.seconds)
        self.state = begin_stage(self.settings, progress, self.splits, self.folder, self.distributed, self.log.status)
        self.announce_stage()
        self.save_checkpoint()

    def announce_stage(self) -> None:
        """Print which stage begins, if it has a title."""
        if self.state.stage.title:
            number, stages = self.state.progress.stage + 1, len(self.state.stages)
            self.log.say(f"stage {number} of {stages}: {self.state.stage.title}")

    def score_kept(self) -> tuple[Detector, Metrics]:
        """Load the best weights, or the last ones with `train.keep=last`, and score them."""
        self.distributed.meet()  # wait until the writer has written them
        detector = Detector.load(self.folder.kept, self.distributed.device)
        # The file does not name the cache, and the run may have been resumed with other workers.
        data = self.state.settings.data
        if (data.workers, data.cache) != (detector.settings.data.workers, detector.settings.data.cache):
            own = {"workers": data.workers, "cache": data.cache, "cache_gb": data.cache_gb}
            detector = detector.with_settings({"data": own})
        metrics = self.validate(detector)
        self.on_kept(detector, metrics, self.state.progress.best_epoch)
        return detector, metrics

    def save_checkpoint(self) -> None:
        """Save the state of training."""
        self._saved = time.monotonic()
        if self.distributed.writer:
            save_checkpoint(self.folder.checkpoints, self.state, self.folder.log_lengths())

    def end_together(self, interrupted: StopRequest) -> None:
        """Raise the interruption in all processes if a signal has asked one of them to stop."""
        received = self.distributed.gather(interrupted.number if interrupted.is_set() else None)
        if numbers := [number for number in received if number is not None]:
            self.distributed.part()
            raise interruption(numbers[0])

    def is_late(self) -> bool:
        """Return True if a checkpoint is due. Rank 0's clock decides; the others get its request with the losses."""
        minutes = (time.monotonic() - self._saved) / 60
        return self.distributed.writer and minutes > self.settings.train.checkpoint_minutes

    def numbers(self, lr: float) -> dict[str, float]:
        """Return the numbers of a step: its position, with epochs counted over all stages, and mean losses."""
        state, progress = self.state, self.state.progress
        epochs_before = sum(epochs for epochs, _ in state.lengths[: progress.stage])
        numbers = {"epoch": epochs_before + progress.epoch + 1, "step": progress.step, "lr": lr}
        if len(state.stages) > 1:
            numbers["stage"] = progress.stage + 1
        losses = progress.means()
        numbers |= {f"train_{key}": value for key, value in losses.items()}
        return numbers | {"train_loss": math.fsum(losses.values())}

    def _save(self, detector: Detector, name: str) -> None:
        if self.distributed.writer:
            folder = self.folder.weights_of_stage(self.state.progress.stage + 1, len(self.state.stages))
            detector.save(folder / f"{name}.safetensors")

    def _about(self) -> About:
        """Return the description of the run for the recorders."""
        state, settings = self.state, self.settings
        return About(
            folder=self.folder.path,
            settings=dump(settings),
            names=self.splits[0].names,
            images=(len(self.splits[0]), len(self.splits[1])),
            best=tuple(stage.decided_by(settings) for stage in state.stages),
            epochs=state.train.epoch_count,
            steps=state.total,
            stage=state.progress.stage + 1,
            step=state.progress.step,
            rows=tuple(self.rows),
            lengths=state.lengths,
        )


def known(value: float) -> float | None:
    """Return the value, or None if it could not be measured, such as the AP without any objects."""
    return value if math.isfinite(value) else None
