"""Time of the stages of a prediction: reading, upload, backbone, RPN, suppression, RoIs, heads, download."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import rcnn.ops as ops
from rcnn.detector import Detector
from rcnn.images.storage import Location
from rcnn.images.stream import read_picture
from rcnn.model.structures import to_device

STAGES = ("read", "resize", "upload", "backbone", "RPN", "NMS", "RoIs", "heads", "boxes", "download")
"""In the order of a prediction. `NMS` is that of both stages, `boxes` the rest of the network, such as sorting."""


@dataclass(frozen=True)
class Stages:
    """Times of a detector in PyTorch.

    Attributes:
        device: where it ran.
        batch: images in a batch.
        seconds: stage -> seconds per image, one after another; on a GPU each starts when the one before has ended.
        images_per_second: from files to results, as `predict` works: with all stages overlapping.
    """

    device: str
    batch: int
    seconds: dict[str, float]
    images_per_second: float


def measure_stages(detector: Detector, files: Sequence[Location], batch: int, runs: int) -> Stages:
    """Time each stage of a prediction.

    Args:
        detector: with its network.
        files: images, one or more; each batch has the next `batch` of them in the first one's bucket.
        batch: images in a batch.
        runs: number of measured runs; the medians count.

    Raises:
        SettingsError: the detector is an exported file.
        ImageError: an image can't be read.
    """
    _run(detector, [files[0]] * batch)  # warm-up, not counted
    buckets = [detector.preprocessor.bucket(read_picture(file, detector.settings).shape[:2]) for file in files]
    same = [file for file, bucket in zip(files, buckets, strict=True) if bucket == buckets[0]]
    batches = [[same[(number * batch + i) % len(same)] for i in range(batch)] for number in range(runs)]
    times = [_run(detector, paths) for paths in batches]
    seconds = {stage: median(by_stage[stage] / batch for by_stage in times) for stage in STAGES}
    began = time.perf_counter()
    stream = detector.stream if detector.settings.predicts_classes else detector.stream_proposals
    count = sum(1 for _ in stream(list(files), batch=batch))
    return Stages(str(detector.device), batch, seconds, count / (time.perf_counter() - began))


@torch.inference_mode()
def _run(detector: Detector, files: Sequence[Location]) -> defaultdict[str, float]:
    """Return the seconds of each stage of one batch."""
    network, preprocessor, watch = detector.network, detector.preprocessor, _Watch(detector.device)
    with watch("read"):
        pictures = [read_picture(file, detector.settings) for file in files]
    with watch("resize"):
        images = [preprocessor.resize(picture) for picture in pictures]
        batch = preprocessor.collate(images, [(picture.shape[0], picture.shape[1]) for picture in pictures])
    with watch("upload"):
        uploaded = to_device(batch, detector.device)
    runner = network.runner
    modules = {runner.pixels: "backbone", runner.backbone: "backbone", runner.rpn: "RPN", runner.fast_rcnn: "heads"}
    operators = {"nms": "NMS", "roi_align": "RoIs", "roi_pool": "RoIs", "roi_warp": "RoIs"}
    functions = [(module, "forward", stage) for module, stage in modules.items() if module is not None]
    functions += [(ops, name, stage) for name, stage in operators.items()]
    fields = ("detections",) if detector.settings.predicts_classes else ("proposals",)
    with ExitStack() as stack:
        for owner, name, stage in functions:
            stack.enter_context(patch.object(owner, name, watch.function(getattr(owner, name), stage)))
        with watch("boxes"), network.autocast:
            pass_ = runner.execute(uploaded, fields=fields)
    with watch("download"):
        if pass_.detections is not None:
            detector.results(batch, pass_.detections)
        elif pass_.proposals is not None:
            detector.proposal_results(batch, pass_.proposals)
    return watch.seconds


class _Watch:
    """Adds up the seconds of stages; the time of a stage within another one does not count for the outer one."""

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

    def function(self, plain: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return the function, with its time added to that of a stage."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return plain(*args, **kwargs)

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
