"""Scores of detectors on their own or external proposals."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.data.proposals.external import External, ProposalSet, SlidingWindows
from rcnn.data.proposals.read import open_proposals
from rcnn.detector import Detector
from rcnn.evaluate import Shard, evaluate, loaders_of
from rcnn.model.structures import Proposals, RPNOutput, to_device
from rcnn.paper.experiment import Measurement, Numbers
from rcnn.paper.workspace import Training, Workspace

Change = Callable[[RPNOutput, Tensor], RPNOutput]
"""(output of the RPN's head, (B,) seeds of the images) -> changed output."""


def scores(
    detector: Detector, dataset: Dataset, proposals: "External | RPNProposals | None" = None
) -> dict[str, float]:
    """Score a detector on its own proposals, on external ones or on those of another detector's RPN.

    Returns:
        Percent: `map50`, VOC's mean AP at IoU 0.5 by the rule `val.voc_ap`; `ap` and `ap50` of COCO; `ar300`, the mean
        recall of 300 proposals.
    """
    batch = detector.settings.val.batch
    if isinstance(proposals, RPNProposals):
        loaders = [RPNBatches(loader, proposals) for loader in loaders_of(detector, dataset, batch, Shard())]
        metrics = evaluate(detector, dataset, losses=False, loaders=loaders)
    else:
        metrics = evaluate(detector, dataset, batch=batch, losses=False, proposals=proposals)
    recall = metrics.proposals.ar[metrics.proposals.tops.index(300)]
    numbers = {"map50": metrics.voc_map50, "ap": metrics.ap, "ap50": metrics.ap50, "ar300": recall}
    return {name: 100 * float(value) for name, value in numbers.items()}


class RPNProposals(NamedTuple):
    """Proposals of an RPN, with its own backbone, for the batches of another detector of the same preprocessing.

    Attributes:
        detector: the detector whose first stage proposes.
        change: applied to the output of the RPN's head. None: nothing is changed.
    """

    detector: Detector
    change: Change | None = None

    def __call__(self, item: Item) -> Proposals:
        """Return the (B, P) proposals of a batch."""
        model, batch = self.detector.runner, to_device(item.batch, self.detector.device)
        with torch.inference_mode():
            out = model.execute(batch, fields=()).rpn
            assert out is not None
            out = self.change(out, item.seeds) if self.change else out
            rpn = model.settings.rpn
            return model.rpn.propose(out, batch.sizes, pre=rpn.pre_test, post=rpn.post_test)


class RPNBatches(NamedTuple):
    """The batches of a loader, with an RPN's proposals in them."""

    loader: Loader
    rpn: RPNProposals

    @property
    def steps(self) -> int:
        """Number of batches."""
        return self.loader.steps

    def epoch(self, epoch: int) -> Iterator[Item]:
        """Yield the loader's batches."""
        return (item._replace(proposals=self.rpn(item)) for item in self.loader.epoch(epoch))


def external_proposals(workspace: Workspace, settings: Settings, detector: Detector) -> External | None:
    """Return the external proposals of the scored images that the settings of a training name; None if they name none.

    Args:
        workspace: for the scored images.
        settings: of the training.
        detector: its network has the anchors of sliding windows.
    """
    if settings.train.proposals is None:
        return None
    if settings.train.proposals == SLIDING_WINDOWS:
        return SlidingWindows.of(detector.model)
    images = open_proposals(settings.train.proposals, workspace.dataset, settings)
    return ProposalSet(images, settings.rpn.post_test)


def trained(
    row: str,
    training: Training,
    changes: Mapping[str, Any] | None = None,
    rpn: Training | None = None,
    change: Change | None = None,
) -> Measurement:
    """Return the measurement that scores a trained detector.

    Args:
        row: its row of the table.
        training: the training of the detector. Its external proposals are also those of the scored images.
        changes: changes of the settings in test.
        rpn: the training of another detector, with another backbone, whose RPN proposes instead.
        change: applied to the output of that RPN's head.
    """

    def measure(workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
        detector = workspace.load(training, seed)
        detector = detector.with_settings(changes) if changes else detector
        if rpn is None:
            proposals = external_proposals(workspace, workspace.settings_of(training, seed), detector)
        else:
            proposals = RPNProposals(workspace.load(rpn, seed).with_settings(changes or {}), change)
        return {row: scores(detector, workspace.dataset, proposals)}

    return Measurement((row,), measure, (training, rpn) if rpn else (training,))
