"""Section 3.2: joint training, with and without the gradient through the proposals' boxes, and alternating training."""

from collections.abc import Mapping
from functools import partial

from rcnn.config import Settings
from rcnn.paper.experiment import MAP, Claim, Column, Experiment, Measurement, Numbers, close, more
from rcnn.paper.lab import Lab, Training
from rcnn.paper.measure import scores

TARGETS = "joint-full, targets too"
"""With the gradient through the targets of the boxes as well."""


def experiment(settings: Settings) -> Experiment:
    """Four trainings with equal features of RoIs: `joint-full` needs such as have a gradient in the box."""
    smooth = settings.roi.pool != "max" and settings.roi.sampling_ratio > 0
    roi = {} if smooth else {"roi": {"pool": "align", "sampling_ratio": max(2, settings.roi.sampling_ratio)}}
    runs = []
    for row, name, changes in (
        ("joint", "joint", {"scheme": "joint"}),
        ("joint-full", "joint-full", {"scheme": "joint-full", "target_gradient": False}),
        (TARGETS, "joint-full-targets", {"scheme": "joint-full", "target_gradient": True}),
        ("alternating", "alternating", {"scheme": "alternating"}),
    ):
        training = Training(name, {**roi, "train": changes})
        runs.append(Measurement((row,), partial(_measure, row, training), (training,)))
    return Experiment(
        title="training schemes",
        source=(
            "section 3.2, which prints no AP: results of joint training are close to those of alternating, and it "
            "takes 25-50% less time; joint-full is not in it"
        ),
        columns=(
            MAP,
            Column("ap", "AP %"),
            Column("ar300", "AR300 %"),
            Column("minutes", "minutes"),
        ),
        runs=tuple(runs),
        paper={},
        claims=(
            close("joint within 1 of alternating, mAP50", "joint", "alternating", 1.0),
            Claim(
                "joint saves time, % of alternating's",
                lambda look: 100 * (1 - look("joint", "minutes") / look("alternating", "minutes")),
            ),
            more("joint-full >= joint, AP (not in paper)", "joint-full", "joint", "ap"),
            more("joint-full >= joint, AR300 (not in paper)", "joint-full", "joint", "ar300"),
            more(f"{TARGETS} >= joint, AP (not in paper)", TARGETS, "joint", "ap"),
            more(f"{TARGETS} >= joint-full, AP (not in paper)", TARGETS, "joint-full", "ap"),
        ),
        notes=() if smooth else ("all with RoI align, since joint-full can't do with RoI max pooling",),
    )


def _measure(row: str, training: Training, lab: Lab, seed: int) -> Mapping[str, Numbers]:
    done = lab.train(training, seed)
    return {row: {**scores(lab.load(done.best), lab.dataset), "minutes": done.minutes}}
