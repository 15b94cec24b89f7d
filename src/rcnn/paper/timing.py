"""Table 5: time of the convolutions, the proposals and the second stage for one image."""

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
from rcnn.paper.experiment import Column, Experiment, Measurement, Numbers, greater
from rcnn.paper.quoted import TABLE_5
from rcnn.paper.workspace import Workspace
from rcnn.presets import build

IMAGES = 8
"""Number of images, evenly chosen from the data set; results are medians over them."""

COUNT = 2000
"""Number of proposals taken from Selective Search."""

Searches = Mapping[str, Literal["fast", "quality"]]
FAST, QUALITY = "SS fast", "SS quality"
SEARCHES: Searches = {FAST: "fast", QUALITY: "quality"}
RPN = "RPN"
Times = dict[tuple[str, str], list[float]]
"""(row, part) -> milliseconds, one per image."""
Result = TypeVar("Result")

PARTS = ("conv", "proposals", "regions", "total")


def experiment(settings: Settings) -> Experiment:
    """Return an experiment without training: each seed stands for other random weights and another pass."""
    network = "vgg16" if settings.model.backbone == "vgg16" else "zf"
    searched, proposed = TABLE_5.row("vgg16, SS"), TABLE_5.row(f"{network}, RPN")
    return Experiment(
        title="milliseconds per image",
        source=f"table 5; K40 GPU, Selective Search on the CPU; with it VGG-16, with the RPN {network}",
        columns=(*(Column(part, part) for part in PARTS), Column("ratio", "x RPN")),
        measurements=(Measurement((*SEARCHES, RPN), _measure),),
        paper={
            row: {**{part: quoted[part] for part in PARTS}, "ratio": quoted["proposals"] / proposed["proposals"]}
            for row, quoted in ((FAST, searched), (RPN, proposed))
        },
        claims=(
            greater("RPN proposals faster than SS fast", FAST, RPN, "proposals"),
            greater("with them all of an image faster", FAST, RPN, "total"),
        ),
        notes=("SS is Selective Search; x RPN: its time for proposals over the RPN's",),
    )


def _measure(workspace: Workspace, seed: int) -> Mapping[str, Numbers]:
    """Time all rows in turn, image by image, so that other load on the machine affects them equally."""
    torch.manual_seed(seed)
    settings, records, names = workspace.settings, workspace.dataset.records, workspace.dataset.names
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
    """Add the milliseconds of each part for an image, with the RPN and with each kind of Selective Search."""
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
        found, proposals = _timed(device, partial(selective_search, picture, mode, COUNT))
        _, regions = _timed(device, partial(_detect, detector, levels, batch, batch_proposals([found], batch, COUNT)))
        measured[row] = (conv, proposals, regions)
    for row, parts in measured.items():
        for part, milliseconds in zip(PARTS[:3], parts, strict=True):
            times[row, part].append(milliseconds)


def _propose(detector: Detector, levels: list[Tensor], batch: Batch) -> Proposals:
    """Run the RPN on feature maps: head, boxes, NMS."""
    model, rpn = detector.runner, detector.settings.rpn
    out = model.rpn(levels, (batch.images.shape[2], batch.images.shape[3]))
    return model.rpn.propose(out, batch.sizes, pre=rpn.pre_test, post=rpn.post_test)


def _detect(detector: Detector, levels: list[Tensor], batch: Batch, proposals: Proposals) -> Detections:
    """Run the second stage on feature maps: pooling, head, boxes, NMS."""
    model = detector.runner
    assert model.fast_rcnn is not None
    rois = model.fast_rcnn.execute([levels[i] for i in model.roi_levels], proposals.boxes, batch.sizes)
    return model.fast_rcnn.detect(rois, proposals, batch.sizes)


def _timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of a call and the milliseconds that it took."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return result, 1000 * (time.perf_counter() - began)
