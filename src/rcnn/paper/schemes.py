"""Section 3.2: joint training, with and without the gradient through the proposals' boxes, and alternating training."""

from collections.abc import Mapping
from functools import partial

from rcnn.config import Settings
from rcnn.paper.experiment import MAP, Claim, Column, Experiment, Numbers, Run, close, more
from rcnn.paper.lab import Lab, Training
from rcnn.paper.measure import scores

PAPER = {"joint": 70.0, "alternating": 69.9}
"""Scheme -> mAP, after the journal's text."""


def experiment(settings: Settings) -> Experiment:
    """Three trainings with equal features of RoIs: `joint-full` needs such as have a gradient in the box."""
    smooth = settings.roi.pool != "max" and settings.roi.sampling_ratio > 0
    roi = {} if smooth else {"roi": {"pool": "align", "sampling_ratio": max(2, settings.roi.sampling_ratio)}}
    runs = []
    for scheme in ("joint", "joint-full", "alternating"):
        training = Training(scheme, {**roi, "train": {"scheme": scheme}})
        runs.append(Run((scheme,), partial(_measure, scheme, training), (training,)))
    return Experiment(
        title="training schemes",
        source="section 3.2; VGG-16, VOC 2007 test; joint 25-50% faster than alternating; joint-full is not in it",
        columns=(
            MAP,
            Column("ap", "AP %"),
            Column("ar300", "AR300 %"),
            Column("minutes", "minutes"),
        ),
        runs=tuple(runs),
        paper={scheme: {"map50": number} for scheme, number in PAPER.items()},
        claims=(
            close("joint within 1 of alternating, mAP50", "joint", "alternating", 1.0),
            Claim(
                "joint saves time, % of alternating's",
                lambda look: 100 * (1 - look("joint", "minutes") / look("alternating", "minutes")),
            ),
            more("joint-full >= joint, AP (not in paper)", "joint-full", "joint", "ap"),
            more("joint-full >= joint, AR300 (not in paper)", "joint-full", "joint", "ar300"),
        ),
        notes=() if smooth else ("all with RoI align, since joint-full can't do with RoI max pooling",),
    )


def _measure(scheme: str, training: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    done = lab.train(training, seed)
    return {scheme: {**scores(lab.load(done.best), lab.dataset), "minutes": done.minutes}}
