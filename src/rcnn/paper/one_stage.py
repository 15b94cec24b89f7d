"""Table 10: two stages against Fast R-CNN on dense sliding windows."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.proposals.external import SlidingWindows
from rcnn.paper.experiment import SCORES, Experiment, Measurement, Numbers, greater
from rcnn.paper.measure import scores
from rcnn.paper.proposals import ALTERNATING, unshared
from rcnn.paper.quoted import TABLE_10
from rcnn.paper.workspace import Training, Workspace

PAPER = TABLE_10.column()
"""Detector -> mAP."""

SCALES = (0.8, 0.96, 688 / 600, 1.44, 2.0)
"""Shorter sides of 480, 576, 688, 864 and 1200 pixels over the 600 of one scale."""

WINDOWS = Training("sliding-windows", {"train": {"scheme": "fast-rcnn", "proposals": SLIDING_WINDOWS}})
"""Fast R-CNN on the anchors at every cell, some 20,000 boxes for an image of 600 x 1000."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of two trainings; the image pyramid is used in prediction, with windows at every scale."""
    two, one, five = PAPER
    return Experiment(
        title="two stages against one",
        source="table 10; ZF, VOC 2007 test",
        columns=SCORES[:2],
        measurements=(
            Measurement((two,), partial(unshared, two), (ALTERNATING,)),
            Measurement((one,), partial(_on_windows, one, {}), (WINDOWS,)),
            Measurement((five,), partial(_on_windows, five, {"predict": {"scales": SCALES}}), (WINDOWS,)),
        ),
        paper={row: {"map50": number} for row, number in PAPER.items()},
        claims=(
            greater("two stages > one stage, 1 scale", two, one),
            greater("two stages > one stage, 5 scales", two, five),
        ),
        notes=("one stage: Fast R-CNN on dense sliding windows, which are the unrefined anchors at every cell",),
    )


def _on_windows(row: str, changes: Mapping[str, Any], workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    detector = workspace.load(workspace.train(WINDOWS, seed).best).with_settings(changes)
    return {row: scores(detector, workspace.dataset, SlidingWindows.of(detector.model))}
