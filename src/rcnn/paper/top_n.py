"""Table 10 of the journal version: number of proposals per image in test."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, close, greater
from rcnn.paper.measure import trained
from rcnn.paper.quoted import JOURNAL_TABLE_10
from rcnn.paper.workspace import Training

JOINT = Training("joint", {"train": {"scheme": "joint"}})


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of one training, whose detector is tested in all rows."""
    rows = {f"{count} proposals": count for count in JOURNAL_TABLE_10.rows}
    return Experiment(
        title="number of proposals in test",
        source="table 10 of the journal version; VGG-16, VOC 2007 test; trained in alternation, here jointly",
        columns=SCORES[:2],
        measurements=tuple(trained(row, JOINT, {"rpn": {"post_test": int(count)}}) for row, count in rows.items()),
        paper={row: {"map50": JOURNAL_TABLE_10[count]} for row, count in rows.items()},
        claims=(
            greater("300 >= 50", "300 proposals", "50 proposals"),
            close("100 within 1.5 of 300", "100 proposals", "300 proposals", 1.5),
            close("1000 within 1.5 of 300", "1000 proposals", "300 proposals", 1.5),
        ),
    )
