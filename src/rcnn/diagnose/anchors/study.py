"""`rcnn.anchors`: the anchors of a network compared with ones fitted to a data set."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcnn.config import Anchors, override
from rcnn.config.aliases import suggest_settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import Split, open_dataset
from rcnn.detector import Detector
from rcnn.diagnose.anchors.fit import (
    Frame,
    Grid,
    TruthBoxes,
    best_iou,
    fit,
    frames_of,
    network_grids,
    objects_of,
    setting_words,
)
from rcnn.errors import DataError, SettingsError
from rcnn.model import anchors as anchor_ops
from rcnn.model import boxes as box_ops
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.structures import Targets
from rcnn.open_model import load, names_weights
from rcnn.presets import build, settings_of

POSITIVES = {"0": (0, 0), "1": (1, 1), "2 - 4": (2, 4), "5 - 9": (5, 9), "10 or more": (10, 1 << 62)}
"""Positive anchors per object: name -> lowest and highest number."""

MAX_ASSIGNED = 2000
"""Largest number of images on which positive anchors are counted."""

SIZE_BOUNDS = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)
ASPECT_BOUNDS = (0.0, 0.4, 0.7, 1.4, 2.5, math.inf)


class Coverage(NamedTuple):
    """How anchors fit the objects.

    Attributes:
        anchors: the rule.
        iou: (N,) IoU of the best anchor that may be trained.
        positives: (N,) anchors that are trained to find the object; -1 in images on which they were not counted.
    """

    anchors: Anchors
    iou: Tensor
    positives: Tensor


def count_positives(frames: Sequence[Frame], objects: TruthBoxes, rpn: RegionProposalNetwork) -> Tensor:
    """Return (N,) the positive anchors of each object by the network's assignment; -1 in images not counted."""
    counts = torch.full((len(objects.boxes),), -1)
    order = torch.arange(len(objects.boxes)).split(objects.image.bincount(minlength=len(frames)).tolist())
    cells = rpn.cells.cpu().unbind()

    @cache
    def anchors_of(grid: Grid) -> Tensor:
        return torch.cat(anchor_ops.pyramid_anchors(rpn.anchors, grid.cells, rpn.strides, grid.padded, cells))

    for index in range(0, len(frames), max(1, -(-len(frames) // MAX_ASSIGNED))):
        frame, own = frames[index], order[index]
        if not len(own):
            continue
        valid = torch.ones(1, len(frame.boxes), dtype=torch.bool)
        targets = Targets(frame.boxes[None], valid.long(), valid, frame.ignore[None])
        assignment = rpn.assign(anchors_of(frame.grid), targets, torch.tensor([frame.size]))
        per_box = assignment.truth[assignment.positive].bincount(minlength=len(frame.boxes))
        counts[own] = per_box[objects.row[own]]
    return counts


def groups(objects: TruthBoxes) -> Mapping[str, Mapping[str, Tensor]]:
    """Return masks (N,) by `size` (root of the area, resized pixels) and `aspect` (height / width), none empty."""
    width, height = box_ops.centre_size(objects.boxes)[1].unbind(dim=1)
    values = {"size": ((width * height).sqrt(), SIZE_BOUNDS), "aspect": (height / width, ASPECT_BOUNDS)}
    masks: dict[str, dict[str, Tensor]] = {"size": {}, "aspect": {}}
    for group, (value, bounds) in values.items():
        for low, high in pairwise(bounds):
            name = f"< {high:g}" if low == 0 else f">= {low:g}" if high == math.inf else f"{low:g} - {high:g}"
            if (mask := (value >= low) & (value < high)).any():
                masks[group][name] = mask
    return masks


class Study:
    """Objects, and how the rules `now` and `fitted` cover them.

    Args:
        frames: the images.
        objects: objects of all frames.
        coverages: name of a rule -> coverage.
        limits: IoU below which an anchor is negative, and from which it is positive.
    """

    def __init__(
        self, frames: list[Frame], objects: TruthBoxes, coverages: Mapping[str, Coverage], limits: tuple[float, float]
    ) -> None:
        self.frames, self.objects, self.coverages, self.limits = frames, objects, dict(coverages), limits

    @cached_property
    def groups(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Masks of the objects by size and aspect."""
        return groups(self.objects)

    def figures(self, name: str, mask: Tensor | None = None) -> dict[str, float | int]:
        """Summarise a rule on the objects of a mask (N,), None for all; `unreached`: IoU below the lower limit."""
        chosen = slice(None) if mask is None else mask
        iou, positives = self.coverages[name].iou[chosen], self.coverages[name].positives[chosen]
        counted = positives[positives >= 0].double()
        return {
            "boxes": len(iou),
            "iou": float(iou.mean()),
            "recall50": float((iou >= 0.5).double().mean()),
            "recall70": float((iou >= 0.7).double().mean()),
            "unreached": int((iou < self.limits[0]).sum()),
            "positives": float(counted.mean()),
            "without_positive": int((counted == 0).sum()),
        }

    def positive_counts(self, name: str) -> dict[str, int]:
        """Return the number of objects for each number of positive anchors."""
        counts = self.coverages[name].positives
        return {label: int(((counts >= low) & (counts <= high)).sum()) for label, (low, high) in POSITIVES.items()}

    def worst_first(self) -> list[int]:
        """Return the indices of the objects, ascending by their best IoU with the present anchors."""
        return self.coverages["now"].iou.argsort(stable=True).tolist()

    def unreached(self) -> list[int]:
        """Return the objects whose best IoU with the present anchors is below `rpn.negative_iou`, worst first."""
        return [index for index in self.worst_first() if self.coverages["now"].iou[index] < self.limits[0]]

    def describe(self, index: int, dataset: Dataset) -> dict[str, Any]:
        """Return one object: image, class, corners and sides in pixels of the file, best IoU and positives by rule.

        Positive anchors are None in images on which they were not counted.
        """
        record, row = dataset.records[int(self.objects.image[index])], int(self.objects.row[index])
        x1, y1, x2, y2 = record.boxes[row].tolist()
        corners = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "width": x2 - x1, "height": y2 - y1}
        fits: dict[str, float | int | None] = {}
        for end, coverage in (("", self.coverages["now"]), ("_fitted", self.coverages["fitted"])):
            positives = int(coverage.positives[index])
            fits |= {f"iou{end}": float(coverage.iou[index]), f"positives{end}": positives if positives >= 0 else None}
        return {"image": record.name, "class": dataset.names[int(record.labels[row])], **corners, **fits}

    def to_json(self) -> dict[str, Any]:
        """Return a plain tree: figures of both rules, of all objects and by group."""
        tree: dict[str, Any] = {"images": len(self.frames)}
        for name, coverage in self.coverages.items():
            rule = coverage.anchors
            counts = {"positive_anchors": self.positive_counts(name), "settings": list(setting_words(rule))}
            tree[name] = {"sizes": rule.sizes, "ratios": rule.ratios, **counts, **self.figures(name)}
            for group, masks in self.groups.items():
                tree[name][f"by_{group}"] = {label: self.figures(name, mask) for label, mask in masks.items()}
        return tree


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: more are no faster with thousands of small tensors, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def study(dataset: Dataset, model: FasterRCNN, *, sizes: int | None = None, ratios: int | None = None) -> Study:
    """Measure a network's anchors on an opened data set and fit others.

    Args:
        dataset: images; only sizes and boxes are read.
        model: network whose settings, strides and shapes of maps are used, but not its weights.
        sizes: number of sizes per level to fit; None: as many as now.
        ratios: number of ratios to fit; None: as many as now.

    Raises:
        DataError: there is no object.
        SettingsError: `sizes` or `ratios` is below 1.
    """
    for name, number in (("sizes", sizes), ("ratios", ratios)):
        if number is not None and number < 1:
            raise SettingsError(f"{name} must be at least 1, got {number}")
    settings, strides = model.settings, model.rpn.strides
    grid = network_grids(model.backbone, settings.preprocess.in_channels)
    frames = frames_of(dataset.records, settings, grid)
    objects = objects_of(frames)
    if not len(objects.boxes):
        raise DataError(f"{dataset.root}: `{dataset.split}` has no object that is not crowd or difficult")
    target = settings.rpn.positive_iou
    fitted = fit(objects, settings.anchors, strides, target, sizes=sizes, ratios=ratios)
    rules = {"now": settings.anchors, "fitted": fitted}
    coverages = {
        name: Coverage(
            rule,
            best_iou(objects, rule, strides),
            count_positives(frames, objects, RegionProposalNetwork(1, strides, rule, settings.rpn)),
        )
        for name, rule in rules.items()
    }
    return Study(frames, objects, coverages, (settings.rpn.negative_iou, target))


@suggest_settings
def anchors(
    data: str | Path,
    model: FasterRCNN | Detector | str | Path = "mobilenet-fpn",
    *,
    overrides: Sequence[str] = (),
    split: Split = "train",
    sizes: int | None = None,
    ratios: int | None = None,
    on_fault: str | None = None,
) -> Study:
    """Measure how well anchors match the labelled boxes of a data set, and fit sizes and ratios to them.

    Args:
        data: folder, COCO json, data.yaml or csv. Images are not decoded.
        model: gives scale, levels and anchors: a preset, timm/NAME, what `rcnn.load` loads, a detector, or a network.
        overrides: changes of the settings of a named model, as `section.key=value`.
        split: train, val, test or all.
        sizes: number of sizes per level to fit; None: as many as now.
        ratios: number of ratios to fit; None: as many as now.
        on_fault: damaged, stop or skip, as `data.on_fault`. None: as in the model's settings.

    Raises:
        DataError: the data can't be read, or has no object.
        SettingsError: there is no such model or setting, `sizes` or `ratios` is below 1, or `overrides` come with a
            network.
        WeightsError: as for `rcnn.load`.
    """
    if isinstance(model, str | Path):
        model = network_of(str(model), overrides)
    elif overrides:
        raise SettingsError("overrides change the settings of a named model; give a preset or a file of weights")
    network = model.model if isinstance(model, Detector) else model
    settings = override(network.settings, {"data": {} if on_fault is None else {"on_fault": on_fault}})
    dataset = open_dataset(data, split, settings.data, decode=False)
    return study(dataset, network, sizes=sizes, ratios=ratios)


def network_of(model: str, overrides: Sequence[str]) -> FasterRCNN:
    """Return the network of a weights file, or that of a preset, without values.

    Raises:
        SettingsError: there is no such preset or setting.
        WeightsError: as for `rcnn.load`.
    """
    if names_weights(model):
        detector = load(model, "cpu")
        return (detector.with_settings(overrides) if overrides else detector).model
    with torch.device("meta"):
        return build(settings_of(model, overrides), 1)
