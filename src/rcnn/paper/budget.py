"""Compute how many epochs fit into the available time."""

import math
import time
from collections.abc import Sequence

from rcnn.config import override
from rcnn.data.proposals import open_proposals
from rcnn.evaluate import evaluate
from rcnn.paper.experiment import Experiment
from rcnn.paper.lab import Lab
from rcnn.paper.proposals import source
from rcnn.training.log import duration
from rcnn.training.schemes import stages_of


def fitting(asked: int, stages: int, epoch: float, other: float, seconds: float) -> int:
    """Return the epochs per stage, from 1 to `asked`, with which everything is expected to fit.

    Args:
        asked: epochs wanted per stage.
        stages: stages of all trainings together.
        epoch: seconds of one epoch of one stage, with its validation.
        other: seconds of everything else.
        seconds: seconds available.
    """
    return max(1, min(asked, math.floor((seconds - other) / (stages * epoch))))


def cut_epochs(lab: Lab, experiment: Experiment, seeds: Sequence[int], minutes: float) -> int:
    """Return the epochs per stage that fit into the minutes, timing one epoch of the first training; report it."""
    trainings, runs = experiment.trainings, len(experiment.runs)
    asked = lab.settings.train.epochs
    if not trainings:
        lab.say("nothing is trained here, and --budget cuts nothing but epochs")
        return asked
    began = time.monotonic()
    if any(run.given for run in experiment.runs):  # what is found now is not looked for again
        lab.say("proposals from elsewhere come first, so that --budget knows their time")
        open_proposals(source(lab.settings), lab.dataset, lab.settings)
    lab.say("timing one epoch for --budget")
    probe = Lab(override(lab.settings, {"train": {"epochs": 1}}), lab.folder, lab.split, lab.say, quiet=lab.quiet)
    done = probe.train(trainings[0], seeds[0])
    stages = [len(stages_of(lab.of(training, 0))) for training in trainings]
    steps = 60 * done.minutes / stages[0]
    scored = time.monotonic()
    evaluate(lab.load(done.best), lab.dataset, batch=lab.settings.val.batch)
    validation = time.monotonic() - scored
    epoch, total = steps + validation, sum(stages) * len(seeds)
    other = (runs + len(trainings)) * len(seeds) * validation
    left = 60 * minutes - (time.monotonic() - began)
    epochs = fitting(asked, total, epoch, other, left)
    needed, whole = (count * total * epoch + other for count in (epochs, asked))
    result = "That fits" if epochs == asked else f"Cut to {epochs} each: {duration(needed)}"
    lab.say(
        f"an epoch takes {duration(epoch)} with its validation; {total} stages of {asked} epochs would take "
        f"{duration(whole)}. {result}" + (", still over the budget" if needed > left else "")
    )
    return epochs
