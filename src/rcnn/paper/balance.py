"""Table 9: lambda, the weight of the RPN's box loss."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, close
from rcnn.paper.lab import Training
from rcnn.paper.measure import trained
from rcnn.paper.quoted import TABLE_9


def experiment(settings: Settings) -> Experiment:
    """Four trainings, whose losses are divided as the paper's are: only so does lambda mean what it means there."""
    rpn = {text: {"normaliser": "paper", "lambda": float(text)} for text in TABLE_9.rows}
    return Experiment(
        title="weight of the RPN's box loss",
        source="table 9; VGG-16, VOC 2007 test",
        columns=SCORES,
        runs=tuple(trained(text, Training(f"lambda-{text}", {"rpn": changes})) for text, changes in rpn.items()),
        paper={text: {"map50": number} for text, number in TABLE_9.column().items()},
        claims=(
            close("lambda 1 within 1.5 of lambda 10", "10", "1", 1.5),
            close("lambda 100 within 1.5 of lambda 10", "10", "100", 1.5),
        ),
    )
