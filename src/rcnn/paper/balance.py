"""Table 9: lambda, the weight of the RPN's box loss."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, close
from rcnn.paper.lab import Training
from rcnn.paper.measure import trained

PAPER = {"0.1": 67.2, "1": 68.9, "10": 69.9, "100": 69.1}
"""lambda -> mAP."""


def experiment(settings: Settings) -> Experiment:
    """Four trainings, whose losses are divided as the paper's are: only so does lambda mean what it means there."""
    rpn = {text: {"normaliser": "paper", "lambda": float(text)} for text in PAPER}
    return Experiment(
        title="weight of the RPN's box loss",
        source="table 9; VGG-16, VOC 2007 test",
        columns=SCORES,
        runs=tuple(trained(text, Training(f"lambda-{text}", {"rpn": changes})) for text, changes in rpn.items()),
        paper={text: {"map50": number} for text, number in PAPER.items()},
        claims=(
            close("lambda 1 within 1.5 of lambda 10", "10", "1", 1.5),
            close("lambda 100 within 1.5 of lambda 10", "10", "100", 1.5),
        ),
    )
