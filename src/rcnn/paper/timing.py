"""Table 5: how long the convolutions, the proposals and the second stage take for one image."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Literal, TypeVar

import torch
from torch import Tensor

from rcnn.config import Settings
from rcnn.data.dataset import Record
from rcnn.data.proposals.external import batch_proposals
from rcnn.data.proposals.search import selective_search
from rcnn.detector import Detector
from rcnn.images.decode import read_image
from rcnn.model.structures import Batch, Detections, Proposals, to_device
from rcnn.paper.experiment import Column, Experiment, Measurement, Numbers, more
from rcnn.paper.lab import Lab
from rcnn.paper.quoted import TABLE_5
from rcnn.presets import build

IMAGES = 8
"""Of the data set, evenly chosen; the numbers are their medians."""

COUNT = 2000
"""Proposals of Selective Search that are kept."""

Searches = Mapping[str, Literal["fast", "quality"]]
FAST, QUALITY = "SS fast", "SS quality"
SEARCHES: Searches = {FAST: "fast", QUALITY: "quality"}
RPN = "RPN"
Times = dict[tuple[str, str], list[float]]
"""(row, part) -> milliseconds, one per image."""
Result = TypeVar("Result")

PARTS = ("conv", "proposals", "regions", "total")


def experiment(settings: Settings) -> Experiment:
    """Nothing is trained; each seed is another network of random weights and one more pass over the images."""
    network = "vgg16" if settings.model.backbone == "vgg16" else "zf"
    searched, proposed = TABLE_5.row("vgg16, SS"), TABLE_5.row(f"{network}, RPN")
    return Experiment(
        title="milliseconds per image",
        source=f"table 5; K40 GPU, Selective Search on the CPU; with it VGG-16, with the RPN {network}",
        columns=(*(Column(part, part) for part in PARTS), Column("ratio", "x RPN")),
        runs=(Measurement((*SEARCHES, RPN), _measure),),
        paper={
            FAST: {**_parts(searched), "ratio": searched["proposals"] / proposed["proposals"]},
            RPN: {**_parts(proposed), "ratio": 1.0},
        },
        claims=(
            more("RPN proposals faster than SS fast", FAST, RPN, "proposals"),
            more("with them all of an image faster", FAST, RPN, "total"),
        ),
        notes=("SS is Selective Search; x RPN: its time for proposals over the RPN's",),
    )


def _parts(row: Numbers) -> dict[str, float]:
    return {part: row[part] for part in PARTS}


def _measure(lab: Lab, seed: int) -> Mapping[str, Numbers]:
    """All rows in turn, image by image, so that whatever else the machine does touches them alike."""
    torch.manual_seed(seed)
    settings, records, names = lab.settings, lab.dataset.records, lab.dataset.names
    detector = Detector(build(settings, len(names)), settings, names, device=settings.train.device)
    count = min(IMAGES, len(records))
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with torch.inference_mode():
        _time_image(detector, records[0], {}, defaultdict(list))  # the first pass sets up kernels and memory
        for index in range(count):
            _time_image(detector, records[index * len(records) // count], SEARCHES, times)
    rows = {row: {part: median(times[row, part]) for part in PARTS[:3]} for row in (*SEARCHES, RPN)}
    return {
        row: {**numbers, "total": sum(numbers.values()), "ratio": numbers["proposals"] / rows[RPN]["proposals"]}
        for row, numbers in rows.items()
    }


def _time_image(detector: Detector, record: Record, searches: Searches, times: Times) -> None:
    """Add the milliseconds that each part takes of an image, with the RPN and with each kind of Selective Search."""
    settings, preprocessor, device = detector.settings, detector.preprocessor, detector.device
    data, channels = settings.data, settings.preprocess.in_channels
    picture = read_image(record.path, white=data.white, max_pixels=data.max_pixels, in_channels=channels)
    batch = preprocessor.collate([preprocessor.resize(picture)], [record.size])
    batch = to_device(batch, device)
    levels, conv = _timed(device, lambda: list(detector.runner.backbone(detector.runner.pixels(batch)).values()))
    proposed, proposals = _timed(device, partial(_propose, detector, levels, batch))
    _, regions = _timed(device, partial(_detect, detector, levels, batch, proposed))
    measured = {RPN: (conv, proposals, regions)}
    for row, mode in searches.items():
        given, proposals = _timed(device, partial(selective_search, picture, mode, COUNT))
        _, regions = _timed(device, partial(_detect, detector, levels, batch, batch_proposals([given], batch, COUNT)))
        measured[row] = (conv, proposals, regions)
    for row, parts in measured.items():
        for part, milliseconds in zip(PARTS[:3], parts, strict=True):
            times[row, part].append(milliseconds)


def _propose(detector: Detector, levels: list[Tensor], batch: Batch) -> Proposals:
    """The RPN on feature maps: head, boxes, NMS."""
    model, rpn = detector.runner, detector.settings.rpn
    out = model.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
    return model.rpn.propose(out, batch.sizes, pre=rpn.pre_test, post=rpn.post_test)


def _detect(detector: Detector, levels: list[Tensor], batch: Batch, proposals: Proposals) -> Detections:
    """The second stage on feature maps: pooling, head, boxes, NMS."""
    model = detector.runner
    assert model.fast_rcnn is not None
    rois = model.fast_rcnn([levels[i] for i in model.roi_levels], proposals.boxes)
    return model.fast_rcnn.detect(rois, proposals, batch.sizes)


def _timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of some work and the milliseconds it takes."""
    _wait(device)
    began = time.perf_counter()
    result = work()
    _wait(device)
    return result, 1000 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
