"""Table 10: two stages against Fast R-CNN on dense sliding windows."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rcnn.config import Settings
from rcnn.data.proposals.external import SlidingWindows
from rcnn.model.sliding_windows import SLIDING_WINDOWS
from rcnn.paper.experiment import SCORES, Experiment, Measurement, Numbers, more
from rcnn.paper.lab import Lab, Training
from rcnn.paper.measure import scores
from rcnn.paper.proposals import ALTERNATING, unshared
from rcnn.paper.quoted import TABLE_10

PAPER = TABLE_10.column()
"""Detector -> mAP."""

SCALES = (0.8, 0.96, 688 / 600, 1.44, 2.0)
"""Shorter sides of 480, 576, 688, 864 and 1200 pixels over the 600 of one scale."""

WINDOWS = Training("sliding-windows", {"train": {"scheme": "fast-rcnn", "proposals": SLIDING_WINDOWS}})
"""Fast R-CNN on the anchors at every cell: pooling and head see some 20,000 boxes of an image of 600 x 1000."""


def experiment(settings: Settings) -> Experiment:
    """Two trainings; the image pyramid is one of prediction, with windows at every scale."""
    two, one, five = PAPER
    return Experiment(
        title="two stages against one",
        source="table 10; ZF, VOC 2007 test",
        columns=SCORES[:2],
        runs=(
            Measurement((two,), partial(unshared, two), (ALTERNATING,)),
            Measurement((one,), partial(_on_windows, one, {}), (WINDOWS,)),
            Measurement((five,), partial(_on_windows, five, {"predict": {"scales": SCALES}}), (WINDOWS,)),
        ),
        paper={row: {"map50": number} for row, number in PAPER.items()},
        claims=(
            more("two stages > one stage, 1 scale", two, one),
            more("two stages > one stage, 5 scales", two, five),
        ),
        notes=("one stage: Fast R-CNN on dense sliding windows, which are the anchors at every cell, as they are",),
    )


def _on_windows(row: str, changes: Mapping[str, Any], lab: Lab, seed: int) -> Mapping[str, Numbers]:
    detector = lab.load(lab.train(WINDOWS, seed).best).with_settings(changes)
    return {row: scores(detector, lab.dataset, SlidingWindows.of(detector.model))}
