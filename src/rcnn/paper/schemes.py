"""Section 3.2: joint training, with and without the gradient through the proposals' boxes, and alternating training."""

from collections.abc import Mapping
from functools import partial

from rcnn.config import Settings
from rcnn.paper.experiment import MAP, Claim, Column, Experiment, Measurement, Numbers, close, greater
from rcnn.paper.measure import scores
from rcnn.paper.workspace import Training, Workspace, minutes_of

TARGETS = "joint-full, targets too"
"""`joint-full` with the gradient through the box targets as well."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of four trainings with equal RoI pooling, which has a gradient in the box."""
    smooth = settings.roi.pool != "max" and settings.roi.sampling_ratio > 0
    roi = {} if smooth else {"roi": {"pool": "align", "sampling_ratio": max(2, settings.roi.sampling_ratio)}}
    measurements = []
    for row, name, changes in (
        ("joint", "joint", {"scheme": "joint"}),
        ("joint-full", "joint-full", {"scheme": "joint-full", "target_gradient": False}),
        (TARGETS, "joint-full-targets", {"scheme": "joint-full", "target_gradient": True}),
        ("alternating", "alternating", {"scheme": "alternating"}),
    ):
        training = Training(name, {**roi, "train": changes})
        measurements.append(Measurement((row,), partial(_measure, row, training), (training,)))
    return Experiment(
        title="training schemes",
        source=(
            "section 3.2, which prints no AP: results of joint training are close to those of alternating, and it "
            "takes 25-50% less time; joint-full is not in the paper"
        ),
        columns=(MAP, Column("ap", "AP %"), Column("ar300", "AR300 %"), Column("minutes", "minutes")),
        measurements=tuple(measurements),
        paper={},
        claims=(
            close("joint within 1 of alternating, mAP50", "joint", "alternating", 1.0),
            Claim(
                "joint saves time, % of alternating's",
                lambda look_up: 100 * (1 - look_up("joint", "minutes") / look_up("alternating", "minutes")),
            ),
            greater("joint-full >= joint, AP (not in paper)", "joint-full", "joint", "ap"),
            greater("joint-full >= joint, AR300 (not in paper)", "joint-full", "joint", "ar300"),
            greater(f"{TARGETS} >= joint, AP (not in paper)", TARGETS, "joint", "ap"),
            greater(f"{TARGETS} >= joint-full, AP (not in paper)", TARGETS, "joint-full", "ap"),
        ),
        notes=() if smooth else ("all with RoI align, since joint-full can't train with RoI max pooling",),
    )


def _measure(row: str, training: Training, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    numbers = scores(workspace.load(training, seed), workspace.dataset)
    return {row: {**numbers, "minutes": minutes_of(workspace.train(training, seed))}}
