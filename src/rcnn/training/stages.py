"""The state of training during a stage, and how a stage is set up.

A run of several stages writes these files, besides those of every run:

stages/N/best.safetensors, last.safetensors      detectors of stage N, except the last; no best with train.keep=last
stages/N/train.safetensors, val.safetensors      proposals of stage N for the images of each list, if a later stage is
                                                 trained or validated on them

External proposals are stored in proposals/train.safetensors and val.safetensors. A resumed run reads these files, so
that it does not need the original one. Sliding windows are not stored, but computed when a batch is loaded.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from rcnn.config import Settings, Train
from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.data.loading.upload import uploaded
from rcnn.data.loading.windows import scale_of, training_windows
from rcnn.data.proposals.external import External
from rcnn.detector import Detector
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.training.distributed import Distributed
from rcnn.training.ema import EMA
from rcnn.training.init import Start, stage_start
from rcnn.training.optim import build_optimizer, learning_rate
from rcnn.training.proposals import stage_proposals
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import Stage, schedule_of, stages_of

Splits = tuple[Dataset, Dataset]
"""Training images and validation images."""


@dataclass
class Progress:
    """The progress of a run, stored in its checkpoints.

    Attributes:
        step: number of completed optimiser steps.
        epoch: number of completed epochs.
        place: number of completed batches of the current epoch.
        sums: name -> sum of the loss over the completed batches of the current epoch.
        best_ap: highest validation AP so far (recall for an RPN alone), or the latest one with `train.keep=last`; None
            before the first validation.
        best_epoch: epoch (1, 2, ...) of `best_ap`.
        seconds: training time so far.
        stage: current stage of the scheme, 0, 1, ...; all other numbers but `seconds` count within the stage.
    """

    step: int = 0
    epoch: int = 0
    place: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_ap: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    stage: int = 0

    def means(self) -> dict[str, float]:
        """Return the mean losses of the current epoch so far, sorted (RPN first): checkpoints do not keep the order."""
        return {name: self.sums[name] / self.place for name in sorted(self.sums, reverse=True)}

    def finished(self, train: Train, every: int) -> bool:
        """Return True if all epochs are done, or if the last `train.patience` epochs have not improved the score.

        Args:
            train: provides `epochs` and `patience`.
            every: number of epochs between validations.
        """
        validated = self.epoch - self.epoch % every
        waited = validated - self.best_epoch if self.best_epoch else 0
        return self.epoch >= train.epoch_count or (train.patience is not None and waited >= train.patience)


@dataclass
class TrainState:
    """A stage in training. A checkpoint holds the model, its average, the optimiser and the progress.

    Attributes:
        stages: all stages of the scheme.
        settings: settings of this stage's model, which may have no second stage.
        train: section `train` with the epochs, steps, milestones and batch of this stage.
        model: network to train.
        loss: the stage's loss module around the model, wrapped for several processes.
        optimizer: optimiser of the trained parameters.
        ema: average of the weights; None without `train.ema`.
        loader: loader of the training images.
        lengths: (epochs, steps) of each stage.
        progress: progress of the run.
        fixed: parts of the model that are not trained. They stay in eval mode, without dropout and with constant norms.
        val_proposals: proposals for validation. None: the model's own.
    """

    stages: tuple[Stage, ...]
    settings: Settings
    train: Train
    model: FasterRCNN
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    loader: Loader
    lengths: tuple[tuple[int, int], ...]
    progress: Progress
    fixed: Sequence[nn.Module] = ()
    val_proposals: External | None = None

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[self.progress.stage]

    @property
    def total(self) -> int:
        """Number of steps of the stage."""
        return self.lengths[self.progress.stage][1]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, 0..total - 1."""
        return learning_rate(step, self.total, self.train)

    def batches(self, device: torch.device) -> Generator[Item, None, None]:
        """Yield the remaining batches of the current epoch, on the device."""
        return uploaded(self.loader.epoch(self.progress.epoch, self.progress.place), device)

    def detector(self, dataset: Dataset, device: torch.device, epoch: int) -> Detector:
        """Return a detector with the current weights, for the classes of the training images."""
        return Detector(
            self.model,
            self.settings,
            dataset.names,
            category_ids=dataset.category_ids,
            summary={"epoch": epoch, "scale": scale_of(dataset, self.settings)},
            device=device,
        )


def begin_stage(
    settings: Settings,
    progress: Progress,
    splits: Splits,
    folder: RunFolder,
    distributed: Distributed,
    say: Callable[[str], None],
    start: Start | None = None,
) -> TrainState:
    """Build the model, loader, loss, optimiser and average of the stage `progress.stage`.

    Args:
        settings: settings of the run.
        progress: progress of the run, at the start of the stage or within it.
        splits: training images and validation images.
        folder: folder of the run.
        distributed: processes that train together.
        say: function that shows a sentence about the progress.
        start: model of the stage and its settings. None: the weights of earlier stages, or the initial ones.
    """
    stages = stages_of(settings)
    stage, number = stages[progress.stage], progress.stage + 1
    start = start or stage_start(stage, number, settings, splits[0].names, folder)
    settings, dataset = start.settings, training_windows(splits[0], start.settings)
    lengths = stage_lengths(settings, dataset, distributed.world)
    train = schedule_of(settings.train, progress.stage).model_copy(update={"epochs": lengths[progress.stage][0]})
    if distributed.writer:
        folder.weights_of_stage(number, len(stages)).mkdir(parents=True, exist_ok=True)
    proposals, val_proposals = stage_proposals(stage, start, splits, folder, distributed, say)
    fixed = freeze_untrained(start.model, stage)
    model = start.model.to(distributed.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = Loader(
        dataset,
        settings,
        training=True,
        batch=train.batch // distributed.world,
        device=distributed.device,
        rank=distributed.rank,
        world=distributed.world,
        proposals=proposals,
    )
    return TrainState(
        stages=stages,
        settings=settings,
        train=train,
        model=model,
        loss=distributed.wrap(stage.loss(model), train.accumulate),
        optimizer=build_optimizer(model, train),
        ema=EMA(model, train.ema) if train.ema is not None else None,
        loader=loader,
        lengths=lengths,
        progress=progress,
        fixed=fixed,
        val_proposals=val_proposals,
    )


def stage_lengths(settings: Settings, dataset: Dataset, world: int = 1) -> tuple[tuple[int, int], ...]:
    """Return (epochs, steps) of each stage of a run; with `train.steps` the last epoch of a stage may end early.

    Args:
        settings: settings of the run.
        dataset: training images, or their windows.
        world: number of processes.
    """
    lengths = list[tuple[int, int]]()
    for stage in range(len(stages_of(settings)) // settings.train.rounds):
        train, per_epoch = schedule_of(settings.train, stage), steps_per_epoch(settings, dataset, stage, world)
        steps = train.steps[0] if train.steps else train.epoch_count * per_epoch
        lengths.append((math.ceil(steps / per_epoch), steps))
    return tuple(lengths) * settings.train.rounds


def steps_per_epoch(settings: Settings, dataset: Dataset, stage: int, world: int = 1) -> int:
    """Return the number of steps of a full epoch of a stage, 0, 1, ...; arguments as for `stage_lengths`."""
    train = schedule_of(settings.train, stage)
    loader = Loader(dataset, settings, training=True, batch=train.batch // world, world=world)
    return math.ceil(loader.steps / train.accumulate)


def freeze_untrained(model: FasterRCNN, stage: Stage) -> list[nn.Module]:
    """Freeze the parts of a model that a stage does not train, and return them.

    If the RPN has no loss, backbone parameters that only its levels depend on are frozen as well. They are those
    without a gradient for a black image.
    """
    fixed = [part for name, part in model.named_children() if name not in stage.trained]
    for part in fixed:
        part.requires_grad_(False)
    trained = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    if stage.proposals is None or not trained:
        return fixed
    side = 2 * max(model.rpn.strides)
    image = torch.zeros(1, model.settings.preprocess.in_channels, side, side, device=trained[0].device)
    levels = list(model.backbone.eval()(image).values())  # the next epoch puts it into training mode
    total = torch.stack([levels[i].sum() for i in model.roi_levels]).sum()
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    return fixed
