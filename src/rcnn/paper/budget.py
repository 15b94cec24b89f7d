"""Reduce the epochs of an experiment to those that fit into the available time."""

import math
import time
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

from rcnn.config import SLIDING_WINDOWS, override
from rcnn.data.formats.find import open_splits
from rcnn.data.proposals.read import open_proposals
from rcnn.evaluate import evaluate
from rcnn.paper.experiment import Experiment
from rcnn.paper.measure import external_proposals
from rcnn.paper.workspace import Training, Workspace, minutes_of
from rcnn.training.log import duration
from rcnn.training.proposals import together
from rcnn.training.schemes import stages_of


def fitting(requested: int, epoch: float, other: float, seconds: float) -> int:
    """Return the epochs per stage, from 1 to `requested`, with which everything is expected to fit.

    Args:
        requested: epochs per stage without a budget.
        epoch: seconds of one epoch of every stage of all trainings, with its validation.
        other: seconds of everything else.
        seconds: seconds available.
    """
    return max(1, min(requested, math.floor((seconds - other) / epoch)))


class Seconds(NamedTuple):
    """Measured times of a network, seconds.

    Attributes:
        epoch: one epoch of one stage, with its validation.
        scoring: scoring the network.
    """

    epoch: float
    scoring: float


def cut_epochs(workspace: Workspace, experiment: Experiment, seeds: Sequence[int], minutes: float) -> int:
    """Return the epochs per stage that fit into the minutes, and report them.

    The searches for proposals are done first, and their results stay in the cache. Then one epoch of each backbone is
    timed, and another one on sliding windows.
    """
    trainings = experiment.trainings
    requested = workspace.settings.train.epoch_count
    if not trainings:
        workspace.say("--budget has no effect, since this experiment trains no model")
        return requested
    began = time.monotonic()
    settings = {training.name: workspace.settings_of(training, seeds[0]) for training in trainings}
    for_scoring = {measurement.proposals for measurement in experiment.measured if measurement.proposals}
    for_training = {own.train.proposals: own for own in settings.values()}
    for source in (None, SLIDING_WINDOWS):
        for_training.pop(source, None)
    if for_scoring or for_training:
        workspace.say("finding external proposals first, so that --budget accounts for their time")
    for source in sorted(for_scoring):
        open_proposals(source, workspace.dataset, workspace.settings)
    for source, own in for_training.items():
        open_proposals(str(source), together(open_splits(str(own.data.path), own.data)), own)
    workspace.say("timing one epoch for --budget")
    one_epoch = copy(workspace)  # shares the record of finished trainings
    one_epoch.settings = override(workspace.settings, {"train": {"epochs": 1}})
    # Trainings of a backbone take equally long, except on sliding windows.
    kinds = {
        name: own.model.backbone + " on sliding windows" * (own.train.proposals == SLIDING_WINDOWS)
        for name, own in settings.items()
    }
    by_kind: dict[str, Seconds] = {}
    for training in sorted(trainings, key=lambda training: settings[training.name].train.proposals is not None):
        if kinds[training.name] not in by_kind:
            by_kind[kinds[training.name]] = _timed(one_epoch, training, seeds[0])

    stages = sum(len(stages_of(own)) for own in settings.values()) * len(seeds)
    seconds = {name: by_kind[kind] for name, kind in kinds.items()}
    epoch = len(seeds) * sum(len(stages_of(own)) * seconds[name].epoch for name, own in settings.items())
    first = seconds[trainings[0].name].scoring
    scoring = [
        max((seconds[training.name].scoring for training in measurement.needs), default=first)
        for measurement in experiment.measured
    ]
    other = len(seeds) * sum([*scoring, *(seconds[name].scoring for name in settings)])
    available = 60 * minutes - (time.monotonic() - began)
    epochs = fitting(requested, epoch, other, available)
    needed, uncut = (count * epoch + other for count in (epochs, requested))
    result = "That fits" if epochs == requested else f"Cut to {epochs} each: {duration(needed)}"
    (_, first_kind), *other_kinds = by_kind.items()
    times = [f"an epoch takes {duration(first_kind.epoch)} with its validation"]
    times += [f"one of {kind} {duration(times.epoch)}" for kind, times in other_kinds]
    workspace.say(
        f"{', '.join(times)}; {stages} stages of {requested} epochs would take {duration(uncut)}. {result}"
        + (", still over the budget" if needed > available else "")
    )
    return epochs


def _timed(workspace: Workspace, training: Training, seed: int) -> Seconds:
    """Return the times of a training of one epoch, which is run unless it is finished, and of scoring its detector."""
    settings, detector = workspace.settings_of(training, seed), workspace.load(training, seed)
    proposals = external_proposals(workspace, settings, detector)
    began = time.monotonic()
    evaluate(detector, workspace.dataset, batch=settings.val.batch, proposals=proposals)
    scoring = time.monotonic() - began
    training_time = 60 * minutes_of(workspace.train(training, seed))
    return Seconds(training_time / len(stages_of(settings)) + scoring, scoring)
