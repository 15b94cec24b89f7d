"""Compute how many epochs fit into the available time."""

import math
import time
from collections.abc import Iterable, Sequence
from copy import copy
from typing import NamedTuple

from rcnn.config import Settings, override
from rcnn.data.formats.find import open_splits
from rcnn.data.proposals.external import External, ProposalSet, SlidingWindows
from rcnn.data.proposals.read import open_proposals
from rcnn.detector import Detector
from rcnn.evaluate import evaluate
from rcnn.model.sliding_windows import SLIDING_WINDOWS
from rcnn.paper.experiment import Experiment
from rcnn.paper.lab import Lab, Training
from rcnn.training.log import duration
from rcnn.training.proposals import together
from rcnn.training.schemes import stages_of


def fitting(asked: int, epoch: float, other: float, seconds: float) -> int:
    """Return the epochs per stage, from 1 to `asked`, with which everything is expected to fit.

    Args:
        asked: epochs wanted per stage.
        epoch: seconds of one epoch of every stage of all trainings, with its validation.
        other: seconds of everything else.
        seconds: seconds available.
    """
    return max(1, min(asked, math.floor((seconds - other) / epoch)))


class Timed(NamedTuple):
    """Seconds of a network.

    Attributes:
        epoch: of one epoch of one stage, with its validation.
        scores: of scoring it.
    """

    epoch: float
    scores: float


def cut_epochs(lab: Lab, experiment: Experiment, seeds: Sequence[int], minutes: float) -> int:
    """Return the epochs per stage that fit into the minutes, and report them.

    The searches for proposals are done first, and their results stay in the cache. Then one epoch is timed of each
    backbone, and another on sliding windows.
    """
    trainings = experiment.trainings
    asked = lab.settings.train.epochs
    if not trainings:
        lab.say("nothing is trained here, and --budget cuts nothing but epochs")
        return asked
    began = time.monotonic()
    settings = {training.name: lab.of(training, seeds[0]) for training in trainings}
    _search_all(lab, experiment, settings.values())
    lab.say("timing one epoch for --budget")
    probe = copy(lab)  # which shares the record of finished trainings
    probe.settings = override(lab.settings, {"train": {"epochs": 1}})
    timed: dict[str, Timed] = {}
    for training in sorted(trainings, key=lambda training: settings[training.name].train.proposals is not None):
        kind = _kind(settings[training.name])
        if kind not in timed:
            timed[kind] = _timed(probe, training, seeds[0])

    stages = {name: len(stages_of(whole)) for name, whole in settings.items()}
    of = {name: timed[_kind(whole)] for name, whole in settings.items()}
    total = sum(stages.values()) * len(seeds)
    epoch = len(seeds) * sum(stages[name] * of[name].epoch for name in settings)
    first = of[trainings[0].name].scores
    runs = [max((of[needed.name].scores for needed in run.needs), default=first) for run in experiment.done]
    other = len(seeds) * sum([*runs, *(of[name].scores for name in settings)])
    left = 60 * minutes - (time.monotonic() - began)
    epochs = fitting(asked, epoch, other, left)
    needed, whole = (count * epoch + other for count in (epochs, asked))
    result = "That fits" if epochs == asked else f"Cut to {epochs} each: {duration(needed)}"
    times = [f"an epoch takes {duration(next(iter(timed.values())).epoch)} with its validation"]
    times += [f"one of {kind} {duration(time.epoch)}" for kind, time in list(timed.items())[1:]]
    lab.say(
        f"{', '.join(times)}; {total} stages of {asked} epochs would take {duration(whole)}. {result}"
        + (", still over the budget" if needed > left else "")
    )
    return epochs


def _search_all(lab: Lab, experiment: Experiment, settings: Iterable[Settings]) -> None:
    """Find the proposals that rows and trainings are given."""
    scored = {run.given for run in experiment.done if run.given}
    sources = {whole.train.proposals: whole for whole in settings}
    trained = {name: whole for name, whole in sources.items() if name not in (None, SLIDING_WINDOWS)}
    if scored or trained:
        lab.say("proposals from elsewhere come first, so that --budget knows their time")
    for name in sorted(scored):
        open_proposals(name, lab.dataset, lab.settings)
    for name, whole in trained.items():
        open_proposals(str(name), together(open_splits(str(whole.data.path), whole.data)), whole)


def _timed(probe: Lab, training: Training, seed: int) -> Timed:
    """Train for an epoch, unless that is done, and score, on given proposals where the detector has none."""
    done = probe.train(training, seed)
    settings = probe.of(training, seed)
    detector = probe.load(done.best)
    proposals = _given(probe, settings, detector)
    began = time.monotonic()
    evaluate(detector, probe.dataset, batch=settings.val.batch, proposals=proposals)
    scores = time.monotonic() - began
    return Timed(60 * done.minutes / len(stages_of(settings)) + scores, scores)


def _kind(settings: Settings) -> str:
    """Trainings of one kind take equally long: those of a backbone, on sliding windows or not."""
    windows = " on sliding windows" if settings.train.proposals == SLIDING_WINDOWS else ""
    return settings.model.backbone + windows


def _given(lab: Lab, settings: Settings, detector: Detector) -> External | None:
    """The proposals that a training with these settings is validated on, of the images that are scored."""
    source = settings.train.proposals
    if source is None:
        return None
    if source == SLIDING_WINDOWS:
        return SlidingWindows.of(detector.model)
    return ProposalSet(open_proposals(source, lab.dataset, settings), settings.rpn.post_test)
