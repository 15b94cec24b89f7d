"""Table 10: two stages against Fast R-CNN on dense sliding windows."""

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.paper.experiment import SCORES, Experiment, greater
from rcnn.paper.measure import trained
from rcnn.paper.proposals import STAGE_1, STAGE_2, TOP_300
from rcnn.paper.quoted import TABLE_10
from rcnn.paper.workspace import Training

PAPER = TABLE_10.column()
"""Detector -> mAP."""

SCALES = (0.8, 0.96, 688 / 600, 1.44, 2.0)
"""Shorter sides of 480, 576, 688, 864 and 1200 pixels over the 600 of one scale."""

WINDOWS = Training("sliding-windows", {"train": {"scheme": "fast-rcnn", "proposals": SLIDING_WINDOWS}})
"""Fast R-CNN on the anchors at every cell, some 20,000 boxes for an image of 600 x 1000."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of two trainings; only prediction uses the image pyramid, with windows at every scale."""
    two, one, five = PAPER
    return Experiment(
        title="two stages against one",
        source="table 10; ZF, VOC 2007 test",
        columns=SCORES[:2],
        measurements=(
            trained(two, STAGE_2, TOP_300, STAGE_1),
            trained(one, WINDOWS),
            trained(five, WINDOWS, {"predict": {"scales": SCALES}}),
        ),
        paper={row: {"map50": number} for row, number in PAPER.items()},
        claims=(
            greater("two stages > one stage, 1 scale", two, one),
            greater("two stages > one stage, 5 scales", two, five),
        ),
        notes=("one stage: Fast R-CNN on dense sliding windows, which are the unrefined anchors at every cell",),
    )
