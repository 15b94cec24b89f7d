"""Score a detector on a data set: losses, AP, proposal recall."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice, pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch

from rcnn.config import override
from rcnn.config.aliases import suggest_settings
from rcnn.cores import METER
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, open_dataset
from rcnn.data.loading.loader import Item, Loader
from rcnn.data.loading.windows import cut_into_views
from rcnn.data.proposals.external import External, SlidingWindows
from rcnn.detector import Detector
from rcnn.errors import DataError, check_number
from rcnn.metrics.table import Metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.model.structures import Detections, Proposals, to_host
from rcnn.open_model import load
from rcnn.result import Result

ViewResults = tuple[Result, Result]
"""Detections and proposals of one view of an image, or of the image."""

WINDOWS_KEPT = 1000
"""Number of sliding windows per image that are kept for recall, which uses no more. All would take half a MB."""

NOTHING = Result(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), (), None, (0, 0))


class Source(Protocol):
    """Batches of a data set, for example from a `Loader`."""

    @property
    def steps(self) -> int:
        """Number of batches."""
        ...

    def epoch(self, epoch: int) -> Iterator[Item]:
        """Yield all batches."""
        ...


class Shard(NamedTuple):
    """The share of the images that this process works on.

    Attributes:
        rank: number of this process; process 0 computes the metrics.
        world: number of processes.
        gather: returns the objects of all processes in process 0, and an empty list in the others.
        share: returns the object of process 0 in all processes.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = lambda part: [part]
    share: Callable[[Any], Any] = lambda item: item


class FlatResults(NamedTuple):
    """The results of V views as flat arrays, which take less time to send than an object for each view.

    Attributes:
        places: (V, 2) int64, scale and index of each view.
        counts: (V, 2) int64, number of detections and of proposals of each view.
        boxes: (n, 4) float32, the detections and the proposals of the first view, then of the second.
        scores: (n,) float32.
        labels: (n,) int64.
    """

    places: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, scored: Mapping[tuple[int, int], ViewResults]) -> Self:
        """Return the results by scale and index as flat arrays."""
        results = [result for pair in scored.values() for result in pair] or [NOTHING]
        return cls(
            np.array(list(scored), np.int64).reshape(-1, 2),
            np.array([[len(found), len(given)] for found, given in scored.values()], np.int64).reshape(-1, 2),
            *(np.concatenate([getattr(result, name) for result in results]) for name in ("boxes", "scores", "labels")),
        )

    def by_place(self) -> Iterator[tuple[tuple[int, int], ViewResults]]:
        """Yield scale and index of each view with its results, which have only boxes, scores and labels."""
        edges = np.append(0, np.cumsum(self.counts)).tolist()
        results = [
            replace(NOTHING, boxes=self.boxes[a:b], scores=self.scores[a:b], labels=self.labels[a:b])
            for a, b in pairwise(edges)
        ]
        for (scale, index), found, given in zip(self.places.tolist(), results[::2], results[1::2], strict=True):
            yield (scale, index), (found, given)


@suggest_settings
def val(
    detector: Detector | str | Path,
    data: str | Path,
    *,
    split: Split = "val",
    batch: int = 8,
    losses: bool | None = None,
    shard: Shard | None = None,
    on_fault: str | None = None,
) -> Metrics:
    """Score a detector on a split of a data set.

    Args:
        detector: a detector, or anything that `rcnn.load` accepts: a run folder, a file or a name.
        data: folder, COCO json, data.yaml or csv.
        split: train, val, test or all.
        batch: images per batch.
        losses: also compute the validation losses. None: for a network, but not for an exported file.
        shard: the share of this process, if several share the work.
        on_fault: damaged, stop or skip, as for `data.on_fault`. None: the value in the detector's settings.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: losses are requested for an exported file, `batch` is below 1, or `on_fault` is unknown.
        DataError: the data can't be read, or contains a class that the detector does not have.
    """
    check_number("batch", batch, 1, kind=Integral)  # before anything is read
    detector = load(detector) if isinstance(detector, str | Path) else detector
    settings = override(detector.settings, {"data": {} if on_fault is None else {"on_fault": on_fault}}).data
    dataset = open_dataset(data, split, settings, names=detector.names)
    return evaluate(detector, dataset, batch=batch, losses=losses, shard=shard)


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    batch: int = 8,
    losses: bool | None = None,
    shard: Shard | None = None,
    progress: Callable[[int, int], None] | None = None,
    proposals: External | None = None,
    loaders: Sequence[Source] | None = None,
) -> Metrics:
    """Score a detector on an opened data set.

    If several processes share the work, process 0 computes the metrics from the results of all. The others get its
    numbers, without `Metrics.truths` and `Metrics.predictions`.

    Args:
        detector: the detector to score.
        dataset: the data set to score it on.
        batch: images per batch.
        losses: also compute the validation losses. None: for a network, but not for an exported file.
        shard: the share of this process, if several share the work.
        progress: called after each batch with (batches done, total number of batches).
        proposals: external proposals for every image, or sliding windows, for the second stage and its losses. None:
            the detector's own. Sliding windows have no order, so their recall is computed on a random sample.
        loaders: loaders of batches with external proposals, one for each of `predict.scales`. None: made by
            `loaders_of`.

    Raises:
        SettingsError: the detector has no second stage for external proposals, its own RPN is untrained, or losses are
            requested for an exported file.
        DataError: the data set is empty, or an image can't be read.
    """
    check_number("batch", batch, 1, kind=Integral)
    detector.check_proposals(given=proposals is not None or loaders is not None)
    if not len(dataset):
        raise DataError(f"{dataset.root}: the {dataset.split} split has no images to score on")
    if losses is None:
        losses = detector.has_network
    shard = shard or Shard()
    loaders = loaders or loaders_of(detector, dataset, batch, shard, proposals)
    kept = WINDOWS_KEPT if isinstance(proposals, SlidingWindows) else None
    steps, done = sum(loader.steps for loader in loaders), 0
    scores: dict[tuple[int, int], ViewResults] = {}
    sums: dict[str, list[float]] = {}
    for scale, loader in enumerate(loaders):
        for item in loader.epoch(0):
            with METER.computing(torch.get_num_threads()) if detector.device.type == "cpu" else nullcontext():
                scored = _score(detector, item, sums if losses and scale == 0 else None)
            scores.update({(scale, index): (found, given.filter(top=kept)) for index, (found, given) in scored.items()})
            done += 1
            if progress:
                progress(done, steps)
    parts = shard.gather((FlatResults.of(scores), sums))
    metrics = None
    if shard.rank == 0:
        every = dict(scored for part, _ in parts for scored in part.by_place())
        metrics = _metrics(dataset, list(_pooled(detector, dataset, every)), [part for _, part in parts], detector)
    shared = shard.share(metrics and replace(metrics, truths=(), predictions=()))
    return metrics or shared


def loaders_of(
    detector: Detector, dataset: Dataset, batch: int, shard: Shard, proposals: External | None = None
) -> list[Loader]:
    """Return one loader for each of `predict.scales`, with the views of this process's images at that scale."""
    settings = detector.settings
    return [
        Loader(
            cut_into_views(dataset, lambda size, scale=scale: detector.viewer.views(size, (scale,))),
            settings,
            training=False,
            batch=batch,
            device=detector.device,
            rank=shard.rank,
            world=shard.world,
            proposals=proposals,
            within=detector.runtime.size,
        )
        for scale in settings.predict.scales
    ]


def _pooled(
    detector: Detector, dataset: Dataset, scored: Mapping[tuple[int, int], ViewResults]
) -> Iterator[ViewResults]:
    """Pool the results of all views of every image; the proposals are those of the first scale.

    Args:
        detector: the detector that made the results.
        dataset: the images.
        scored: results by scale and by the index of the view among all views at that scale.
    """
    scales, pooler, start = detector.settings.predict.scales, detector.pooler, 0
    for record in dataset.records:
        views = detector.viewer.pyramid(record.size)
        count = len(views) // len(scales)
        parts = [scored[scale, start + number] for scale in range(len(scales)) for number in range(count)]
        start += count
        yield (
            pooler.detections([part for part, _ in parts], views, record.size, detector.threshold),
            pooler.proposals([part for _, part in parts[:count]], views[:count], record.size),
        )


def _score(
    detector: Detector,
    item: Item,
    sums: dict[str, list[float]] | None,
) -> dict[int, ViewResults]:
    """Return the predictions and proposals of one batch by image index, and add its losses to `sums`."""
    pass_ = (detector.runtime.execute if sums is None else detector.network.record)(item.batch, item.proposals)
    assert pass_.detections is not None
    assert pass_.proposals is not None
    losses = {} if sums is None else detector.network.loss(item.batch, item.targets, item.seeds, pass_)
    numbers = [number for pair in losses.values() for number in pair]
    here = iter(to_host([*pass_.detections, *pass_.proposals, *numbers]))
    detections = Detections(*islice(here, len(pass_.detections)))
    proposals = Proposals(*islice(here, len(pass_.proposals)))
    if sums is not None:
        for name in losses:
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(next(here))
            entry[1] += float(next(here))
    results = zip(
        detector.results(item.batch, detections), detector.proposal_results(item.batch, proposals), strict=True
    )
    return {
        index: (result, proposed)
        for index, (result, proposed) in zip(item.index.tolist(), results, strict=True)
        if index >= 0
    }


def _metrics(
    dataset: Dataset, scored: Sequence[ViewResults], sums: list[dict[str, list[float]]], detector: Detector
) -> Metrics:
    settings = detector.settings
    predictions = [Prediction(result.boxes, result.scores, result.labels) for result, _ in scored]
    losses = {
        name: sum(part[name][0] for part in sums) / max(1.0, sum(part[name][1] for part in sums))
        for name in (sums[0] if sums else ())
    }
    if losses:
        losses["loss"] = sum(losses.values())
    return Metrics.of(
        dataset.names,
        [Truth(record.boxes, record.labels, record.ignore) for record in dataset.records],
        predictions,
        [(proposed.boxes, proposed.scores) for _, proposed in scored],
        # COCO's limit is for images of normal size; a large one may contain many more objects.
        max_detections=100 if settings.predict.tile == "off" else max(100, *map(len, predictions)),
        losses=losses,
        voc_rule=settings.val.voc_ap,
        predicts_classes=settings.predicts_classes,
    )
