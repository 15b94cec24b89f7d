"""Table 9: lambda, the weight of the RPN's box loss."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, close
from rcnn.paper.measure import trained
from rcnn.paper.quoted import TABLE_9
from rcnn.paper.workspace import Training


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of four trainings with the paper's loss divisors, on which the meaning of lambda depends."""
    rpn = {text: {"normaliser": "paper", "lambda": float(text)} for text in TABLE_9.rows}
    return Experiment(
        title="weight of the RPN's box loss",
        source="table 9; VGG-16, VOC 2007 test",
        columns=SCORES,
        measurements=tuple(
            trained(text, Training(f"lambda-{text}", {"rpn": changes})) for text, changes in rpn.items()
        ),
        paper={text: {"map50": number} for text, number in TABLE_9.column().items()},
        claims=(
            close("lambda 1 within 1.5 of lambda 10", "10", "1", 1.5),
            close("lambda 100 within 1.5 of lambda 10", "10", "100", 1.5),
        ),
    )
