"""Figure 4: recall of the proposals at IoU 0.5 to 1, with 300, 1000 and 2000 per image."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from rcnn.config import Settings
from rcnn.data.loading.loader import Loader
from rcnn.data.proposals.read import open_proposals
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.types import Truth
from rcnn.paper.experiment import Claim, Column, Experiment, Lookup, Measurement, Numbers
from rcnn.paper.proposals import source
from rcnn.paper.workspace import Training, Workspace

TOPS = (300, 1000, 2000)
RPN = Training("rpn", {"roi": {"head": "none"}, "train": {"scheme": "joint"}})


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of one training, of an RPN alone."""
    return Experiment(
        title="recall of proposals, mean over IoU 0.50:0.95",
        source="figure 4; VOC 2007 test; curves without numbers",
        columns=tuple(Column(f"ar{top}", f"AR{top} %") for top in TOPS),
        measurements=(
            Measurement(("SS",), partial(_search, source(settings)), seeded=False, proposals=source(settings)),
            Measurement(("RPN",), _rpn, (RPN,)),
        ),
        paper={},
        claims=tuple(Claim(f"RPN loses less than SS, {top} -> 300", partial(_gap, top)) for top in TOPS[1:]),
        notes=("SS is Selective Search; orderings: recall lost by SS less recall lost by the RPN",),
    )


def _gap(top: int, look_up: Lookup) -> float:
    losses = [look_up(row, f"ar{top}") - look_up(row, "ar300") for row in ("SS", "RPN")]
    return losses[0] - losses[1]


def _search(source: str, workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    images = open_proposals(source, workspace.dataset, workspace.settings)
    return {"SS": numbers(workspace, [(proposals.boxes, proposals.scores) for proposals in images])}


def _rpn(workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    detector = workspace.load(RPN, seed).with_settings({"rpn": {"post_test": max(TOPS)}})
    loader = Loader(workspace.dataset, detector.settings, training=False, batch=detector.settings.val.batch, seed=seed)
    by_index = {}
    for item in loader.epoch(0):
        by_index |= dict(zip(item.index.tolist(), detector.region_proposals(item.batch), strict=True))
    results = [by_index[index] for index in range(len(workspace.dataset))]
    return {"RPN": numbers(workspace, [(result.boxes, result.scores) for result in results])}


def numbers(workspace: Workspace, proposals: Sequence[tuple[np.ndarray, np.ndarray]]) -> Numbers:
    """Return recalls in percent: `recall300@0.50` and so on, and their means over the IoUs, `ar300` and so on."""
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in workspace.dataset.records]
    metrics = proposal_recall(truths, proposals, TOPS)
    means = {f"ar{top}": 100 * float(mean) for top, mean in zip(TOPS, metrics.ar, strict=True)}
    return means | {
        f"recall{top}@{iou:.2f}": 100 * float(share)
        for top, curve in zip(TOPS, metrics.recall, strict=True)
        for iou, share in zip(metrics.ious, curve, strict=True)
    }
