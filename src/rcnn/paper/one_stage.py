"""Table 10: two stages against one, the RPN's head as a dense detector of classes."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, more
from rcnn.paper.lab import Training
from rcnn.paper.measure import trained
from rcnn.presets import PRESETS

PAPER = {"two stages": 58.7, "one stage, 1 scale": 53.8, "one stage, 5 scales": 53.9}
"""Detector -> mAP; the paper's two stages don't share features."""

SCALES = (0.8, 0.96, 688 / 600, 1.44, 2.0)
"""Shorter sides of 480, 576, 688, 864 and 1200 pixels over the 600 of one scale."""


def experiment(settings: Settings) -> Experiment:
    """Two trainings of as many epochs; the image pyramid is one of prediction."""
    # Pyramids as the field trains them, by focal loss; one map as the paper does.
    rpn = PRESETS["mobilenet-one-stage"]["rpn"] if settings.model.neck == "fpn" else {"classify": "classes"}
    two = Training("joint", {"train": {"scheme": "joint"}})
    one = Training("one-stage", {"rpn": rpn, "roi": {"head": "none"}, "train": {"scheme": "joint"}})
    names = list(PAPER)
    return Experiment(
        title="two stages against one",
        source="table 10; ZF, VOC 2007 test; its two stages are unshared, those here are trained jointly",
        columns=SCORES[:2],
        runs=(
            trained(names[0], two),
            trained(names[1], one),
            trained(names[2], one, {"predict": {"scales": SCALES}}),
        ),
        paper={row: {"map50": number} for row, number in PAPER.items()},
        claims=(
            more("two stages > one stage, 1 scale", names[0], names[1]),
            more("two stages > one stage, 5 scales", names[0], names[2]),
        ),
    )
