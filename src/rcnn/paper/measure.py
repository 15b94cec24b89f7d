"""Scores of detectors on their own or given proposals."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.data.proposals.external import External
from rcnn.detector import Detector
from rcnn.evaluate import Metrics, Shard, evaluate, loaders_of
from rcnn.model.structures import Proposals, RPNOutput, to_device
from rcnn.paper.experiment import Measurement, Numbers
from rcnn.paper.lab import Lab, Training

Change = Callable[[RPNOutput, Tensor], RPNOutput]
"""What the RPN's head said, and a seed per image, to what it is taken to have said."""


def scores(detector: Detector, dataset: Dataset, proposals: "External | OfRPN | None" = None) -> dict[str, float]:
    """AP and recall in percent, of a detector on its own proposals, on those given or on those of another's RPN."""
    batch = detector.settings.val.batch
    if isinstance(proposals, OfRPN):
        loaders = [ProposedBatches(loader, proposals) for loader in loaders_of(detector, dataset, batch, Shard())]
        return percent(evaluate(detector, dataset, losses=False, loaders=loaders))
    return percent(evaluate(detector, dataset, batch=batch, losses=False, proposals=proposals))


def percent(metrics: Metrics) -> dict[str, float]:
    """`map50`: VOC's mean AP at IoU 0.5, by `val.voc_ap`; `ap`, `ap50` of COCO; `ar300` of the proposals."""
    recall = metrics.proposals.ar[metrics.proposals.tops.index(300)]
    numbers = {
        "map50": metrics.voc_map50,
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "ar300": recall,
    }
    return {name: 100 * float(value) for name, value in numbers.items()}


class OfRPN:
    """Proposals of an RPN, with its own backbone, for the batches of another detector of the same preprocessing.

    Args:
        detector: whose first stage it is.
        change: made to what its head says. None: none.
    """

    def __init__(self, detector: Detector, change: Change | None = None) -> None:
        self._model, self._device, self._change = detector.runner, detector.device, change

    def __call__(self, item: Item) -> Proposals:
        """(B, P) proposals of a batch."""
        batch = to_device(item.batch, self._device)
        with torch.inference_mode():
            out = self._model.execute(batch, fields=()).rpn
            assert out is not None
            out = self._change(out, item.seeds) if self._change else out
            rpn = self._model.settings.rpn
            return self._model.rpn.propose(out, batch.sizes, pre=rpn.pre_test, post=rpn.post_test)


class ProposedBatches(NamedTuple):
    """The batches of a loader, with an RPN's proposals in them."""

    loader: Loader
    rpn: OfRPN

    @property
    def steps(self) -> int:
        """As many as of the loader."""
        return self.loader.steps

    def epoch(self, epoch: int) -> Iterator[Item]:
        """Those of the loader, one after another."""
        return (item._replace(proposals=self.rpn(item)) for item in self.loader.epoch(epoch))


def without_scores(out: RPNOutput, seeds: Tensor) -> RPNOutput:
    """Without the `cls` layer: scores that say nothing, so that the N best are N at random."""
    shape, count = out.logits[0].shape[2:], [level.shape[1] for level in out.logits]
    rows = [np.random.Generator(np.random.Philox(key=seed)).random((sum(count), *shape)) for seed in seeds.tolist()]
    drawn = torch.from_numpy(np.stack(rows)).to(out.logits[0])
    return out._replace(logits=drawn.split(count, dim=1))


def without_boxes(out: RPNOutput, seeds: Tensor) -> RPNOutput:
    """Without the `reg` layer: proposals are the anchors."""
    return out._replace(deltas=tuple(torch.zeros_like(level) for level in out.deltas))


def trained(row: str, training: Training, changes: Mapping[str, Any] | None = None) -> Measurement:
    """The run that scores a trained detector, if wanted with other settings in prediction."""

    def measure(lab: Lab, seed: int) -> Mapping[str, Numbers]:
        detector = lab.load(lab.train(training, seed).best)
        return {row: scores(detector.with_settings(changes) if changes else detector, lab.dataset)}

    return Measurement((row,), measure, (training,))
