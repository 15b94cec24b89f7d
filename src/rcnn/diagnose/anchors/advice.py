"""Check how well the anchors fit the objects of a data set, in seconds, before a training starts."""

from typing import NamedTuple

import torch

from rcnn.config import Anchors, Settings
from rcnn.data.dataset import Dataset, Record
from rcnn.diagnose.anchors.fit import RECALLED, best_iou, fit, frames_of, network_grids, objects_of, recall
from rcnn.diagnose.anchors.study import groups, one_thread
from rcnn.presets import build
from rcnn.weights.adapt import shapes_alone

MAX_OBJECTS, MIN_OBJECTS = 5000, 50
"""Largest number of objects that are measured, and the number below which anchors are neither judged nor fitted."""

GOOD_RECALL, MIN_GAIN = 0.9, 0.05
"""Recall at IoU 0.5 that is good enough, and the least gain of recall for which fitted anchors are suggested."""


class Advice(NamedTuple):
    """How well the anchors fit the objects.

    Attributes:
        objects: number of objects that were measured.
        now: recall at IoU 0.5 of the present anchors; 1 if there are too few objects to judge.
        fitted: recall of the fitted anchors; equal to `now` if none were fitted because that is good enough.
        anchors: the fitted rule if its gain is large enough; otherwise None.
        missed: the range of sizes that holds most of the objects without an anchor, such as `< 16`, in pixels of the
            resized image; the number of these objects in it; and the number of all.
    """

    objects: int
    now: float
    fitted: float
    anchors: Anchors | None = None
    missed: tuple[str, int, int] = ("", 0, 0)


@one_thread()
def advise(dataset: Dataset, settings: Settings) -> Advice:
    """Measure the anchors of settings on up to `MAX_OBJECTS` objects, and fit others where they miss many."""
    records, count = list[Record](), 0
    for index in torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist():
        if count >= MAX_OBJECTS:
            break
        record = dataset.records[index]
        count += int((~record.ignore).sum())
        if len(record.boxes):
            records.append(record)
    if count < MIN_OBJECTS:
        return Advice(count, 1.0, 1.0)
    with shapes_alone():
        model = build(settings, 1)
    strides, rule = model.rpn.strides, settings.anchors
    objects = objects_of(frames_of(records, settings, network_grids(model.backbone, settings.preprocess.in_channels)))
    objects = objects[torch.arange(len(objects.boxes))[:MAX_OBJECTS]]
    iou = best_iou(objects, rule, strides)
    missed = iou < RECALLED
    now = 1 - float(missed.double().mean())
    if now >= GOOD_RECALL:
        return Advice(len(iou), now, now)
    counts = {name: int((missed & mask).sum()) for name, mask in groups(objects)["size"].items()}
    worst = max(counts, key=lambda name: counts[name])
    fitted = fit(objects, rule, strides, settings.rpn.positive_iou)
    fitted_recall = recall(objects, fitted, strides)
    better = fitted if fitted_recall - now >= MIN_GAIN else None
    return Advice(len(iou), now, fitted_recall, better, (worst, counts[worst], int(missed.sum())))
