"""Whether the anchors of a network meet the objects of a data set, in the seconds before a training starts."""

from typing import NamedTuple

import torch

from rcnn.config import Anchors, Settings
from rcnn.data.dataset import Dataset, Record
from rcnn.diagnose.anchors.fit import RECALLED, best_iou, fit, frames_of, network_grids, objects_of, recall
from rcnn.diagnose.anchors.study import groups, one_thread
from rcnn.presets import build
from rcnn.weights.adapt import shapes_alone

MOST, FEWEST = 5000, 50
"""Objects that are looked at, and objects without which anchors are neither judged nor fitted."""
GOOD, GAIN = 0.9, 0.05
"""Recall at IoU 0.5 that is good enough, and by how much fitted anchors must raise it to be worth having."""


class Advice(NamedTuple):
    """How the anchors meet the objects.

    Attributes:
        objects: number of objects that were looked at.
        now: recall at IoU 0.5 of the present anchors; 1 if there are too few objects to judge.
        fitted: that of the fitted ones; as `now` where nothing was fitted because it is good.
        anchors: the fitted rule where it is worth having; otherwise None.
        missed: the sizes, in pixels of the resized image, that hold most of the objects without an anchor, such as
            `< 16`, the number of these objects, and how many are in them.
    """

    objects: int
    now: float
    fitted: float
    anchors: Anchors | None = None
    missed: tuple[str, int, int] = ("", 0, 0)


@one_thread()
def advise(dataset: Dataset, settings: Settings) -> Advice:
    """Measure the anchors of settings on up to `MOST` objects of a data set, and fit others where they miss many."""
    records = _some(dataset.records)
    count = sum(int((~record.ignore).sum()) for record in records)
    if count < FEWEST:
        return Advice(count, 1.0, 1.0)
    with shapes_alone():
        model = build(settings, 1)
    strides, rule = model.rpn.strides, settings.anchors
    objects = objects_of(frames_of(records, settings, network_grids(model.backbone, settings.preprocess.in_channels)))
    objects = objects[torch.arange(len(objects.boxes))[:MOST]]
    iou = best_iou(objects, rule, strides)
    without = iou < RECALLED
    now = 1 - float(without.double().mean())
    if now >= GOOD:
        return Advice(len(iou), now, now)
    counts = {name: int((without & mask).sum()) for name, mask in groups(objects)["size"].items()}
    worst = max(counts, key=lambda name: counts[name])
    fitted = fit(objects, rule, strides, settings.rpn.positive_iou)
    gained = recall(objects, fitted, strides)
    better = fitted if gained - now >= GAIN else None
    return Advice(len(iou), now, gained, better, (worst, counts[worst], int(without.sum())))


def _some(records: tuple[Record, ...]) -> list[Record]:
    """Images in random order, as many as have `MOST` objects."""
    some, count = list[Record](), 0
    for index in torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist():
        if count >= MOST:
            break
        count += int((~records[index].ignore).sum())
        if len(records[index].boxes):
            some.append(records[index])
    return some
