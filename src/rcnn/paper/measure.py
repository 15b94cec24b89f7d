"""Scores of detectors on their own or external proposals."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.data.proposals.external import External
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


class RPNProposals:
    """Proposals of an RPN, with its own backbone, for the batches of another detector of the same preprocessing.

    Args:
        detector: the detector whose first stage proposes.
        change: applied to the output of the RPN's head. None: nothing is changed.
    """

    def __init__(self, detector: Detector, change: Change | None = None) -> None:
        self._model, self._device, self._change = detector.runner, detector.device, change

    def __call__(self, item: Item) -> Proposals:
        """Return the (B, P) proposals of a batch."""
        batch = to_device(item.batch, self._device)
        with torch.inference_mode():
            out = self._model.execute(batch, fields=()).rpn
            assert out is not None
            out = self._change(out, item.seeds) if self._change else out
            rpn = self._model.settings.rpn
            return self._model.rpn.propose(out, batch.sizes, pre=rpn.pre_test, post=rpn.post_test)


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


def trained(row: str, training: Training, changes: Mapping[str, Any] | None = None) -> Measurement:
    """Return the measurement that scores a trained detector, optionally with changed settings."""

    def measure(workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
        detector = workspace.load(workspace.train(training, seed).best)
        return {row: scores(detector.with_settings(changes) if changes else detector, workspace.dataset)}

    return Measurement((row,), measure, (training,))
