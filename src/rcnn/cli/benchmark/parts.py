"""Where the time of a prediction goes: reading, upload, backbone, RPN, suppression, RoIs, heads, download."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import rcnn.ops as ops
from rcnn.detector import Detector
from rcnn.images.stream import read_picture
from rcnn.model.structures import to_device

STAGES = ("read", "resize", "upload", "backbone", "RPN", "NMS", "RoIs", "heads", "boxes", "download")
"""In the order of a prediction. NMS is that of both stages; boxes: what the network does besides, such as sorting."""


@dataclass(frozen=True)
class Stages:
    """What was measured of a detector in PyTorch.

    Attributes:
        device: where it ran.
        batch: images in a batch.
        seconds: stage -> seconds per image, one after another; on a GPU each starts when the one before has ended.
        images_per_second: from files to results, as `predict` works: all at the same time.
    """

    device: str
    batch: int
    seconds: dict[str, float]
    images_per_second: float


def measure_stages(detector: Detector, files: Sequence[Path], batch: int, runs: int) -> Stages:
    """Time each stage of a prediction.

    Args:
        detector: with its network.
        files: images, one or more; each batch has the next `batch` of them that are of the first one's bucket.
        batch: images in a batch.
        runs: measured ones; the medians count.

    Raises:
        SettingsError: the detector is an exported file.
        ImageError: an image can't be read.
    """
    _run(detector, [files[0]] * batch)  # chooses kernels and takes memory: not counted
    times: defaultdict[str, list[float]] = defaultdict(list)
    bucket = _bucket(detector, files[0])
    same = [file for file in files if _bucket(detector, file) == bucket]
    for number in range(runs):
        taken = _run(detector, [same[(number * batch + i) % len(same)] for i in range(batch)])
        for name in STAGES:
            times[name].append(taken.get(name, 0.0) / batch)
    began = time.perf_counter()
    stream = detector.stream if detector.settings.predicts_classes else detector.stream_proposals
    count = sum(1 for _ in stream(list(files), batch=batch))
    speed = count / (time.perf_counter() - began)
    return Stages(str(detector.device), batch, {name: median(column) for name, column in times.items()}, speed)


def _bucket(detector: Detector, file: Path) -> tuple[int, int]:
    height, width = read_picture(file, detector.settings).shape[:2]
    return detector.preprocessor.bucket((height, width))


@torch.inference_mode()
def _run(detector: Detector, files: Sequence[Path]) -> dict[str, float]:
    """Seconds of each stage of one batch."""
    network, preprocessor, watch = detector.network, detector.preprocessor, _Watch(detector.device)
    with watch("read"):
        pictures = [read_picture(file, detector.settings) for file in files]
    with watch("resize"):
        images = [preprocessor.resize(picture) for picture in pictures]
        batch = preprocessor.collate(images, [(picture.shape[0], picture.shape[1]) for picture in pictures])
    with watch("upload"):
        there = to_device(batch, detector.device)
    runner = network.runner
    second = {} if runner.fast_rcnn is None else {runner.fast_rcnn: "heads"}
    fields = ("detections",) if detector.settings.predicts_classes else ("proposals",)
    with ExitStack() as stack:
        for part, name in {runner.pixels: "backbone", runner.backbone: "backbone", runner.rpn: "RPN", **second}.items():
            stack.enter_context(watch.module(part, name))
        for name, stage in (("nms", "NMS"), ("roi_align", "RoIs"), ("roi_pool", "RoIs"), ("roi_warp", "RoIs")):
            stack.enter_context(patch.object(ops, name, watch.function(getattr(ops, name), stage)))
        with watch("boxes"), network.autocast:
            pass_ = runner.execute(there, fields=fields)
    with watch("download"):
        if pass_.detections is not None:
            detector.results(batch, pass_.detections)
        elif pass_.proposals is not None:
            detector.proposal_results(batch, pass_.proposals)
    return watch.seconds


class _Watch:
    """Adds up the seconds of stages; those inside others do not count for these."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._inside = device, [0.0]
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block."""
        began = self._now()
        self._inside.append(0.0)
        yield
        taken = self._now() - began
        self.seconds[stage] += taken - self._inside.pop()
        self._inside[-1] += taken

    @contextmanager
    def module(self, part: nn.Module, stage: str) -> Iterator[None]:
        """Time every call of a module within the block."""
        with patch.object(part, "forward", self.function(part.forward, stage)):
            yield

    def function(self, plain: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function with its time taken."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return plain(*args, **kwargs)

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
