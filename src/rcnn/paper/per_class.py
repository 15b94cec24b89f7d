"""Tables 6 and 7: AP of each class, in the paper's order where the classes are VOC's."""

from collections.abc import Mapping

import numpy as np

from rcnn.config import Settings
from rcnn.evaluate import evaluate
from rcnn.metrics.voc import voc_ap
from rcnn.paper.experiment import Column, Experiment, Measurement, Numbers
from rcnn.paper.proposals import ALTERNATING
from rcnn.paper.quoted import TABLE_6, TABLE_7, VOC_CLASSES
from rcnn.paper.workspace import Workspace, training_set

MEAN = "all classes"
"""Row of the mean AP."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of one alternating training. The classes are the data's, or VOC's if no data is named."""
    classes = VOC_CLASSES if settings.data.path is None else training_set(settings).names
    voc = set(classes) == set(VOC_CLASSES)
    names = VOC_CLASSES if voc else classes
    rows = (*names, MEAN)
    older, newer = ({MEAN: row.pop("mAP"), **row} for row in (TABLE_6.row("RPN, 07"), TABLE_7.row("RPN, 12")))
    return Experiment(
        title="AP of each class",
        source=(
            "table 6, VOC 2007 test, AP over 11 points; table 7, VOC 2012 test, area under the curve; VGG-16, trained "
            "on VOC of the same year"
            if voc
            else "none, since tables 6 and 7 are about the classes of VOC, and this data has others"
        ),
        columns=(Column("voc07", "AP %, 11 points"), Column("voc", "AP %, area")),
        measurements=(Measurement(rows, _measure, (ALTERNATING,)),),
        paper={row: {"voc07": older[row], "voc": newer[row]} for row in rows} if voc else {},
        claims=(),
    )


def _measure(workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    """Return APs in percent; NaN for a class without objects."""
    detector = workspace.load(ALTERNATING, seed)
    metrics = evaluate(detector, workspace.dataset, batch=detector.settings.val.batch, losses=False)
    truths, predictions, names = metrics.truths, metrics.predictions, metrics.names
    aps = {
        "voc07": 100 * voc_ap(truths, predictions, len(names), eleven_point=True),
        "voc": 100 * voc_ap(truths, predictions, len(names)),
    }
    rows = {name: {key: float(ap[label]) for key, ap in aps.items()} for label, name in enumerate(names)}
    return rows | {MEAN: {key: float(ap[~np.isnan(ap)].mean()) for key, ap in aps.items()}}
