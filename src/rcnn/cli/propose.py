"""`rcnn propose MODEL SOURCE...`: class-agnostic boxes from an RPN or a search, best first, or sliding windows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.cli.predict import Format, Images, Score, Sources, Split

if TYPE_CHECKING:
    from rcnn.config import Settings
    from rcnn.images.stream import NamedImage, Skip
    from rcnn.result import Result


def propose(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, a weights file, a name such as blood-cells, selective-search[-quality], edge-boxes, or "
            "sliding-windows.",
        ),
    ],
    sources: Sources,
    split: Split = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of proposals per image, best first. Default: 300; of a search 2000; of windows all.",
        ),
    ] = None,
    score: Score = None,
    format: Format = "json",
    images: Images = None,
    out: arguments.Out = Path("runs/propose"),
    batch: arguments.BatchSize = 1,
    on_fault: arguments.OnFault = None,
    device: arguments.Device = None,
    json: arguments.Json = False,
) -> None:
    """Propose regions of images, whatever their class.

    Example: rcnn propose runs/train/exp-1 photos/ --top 100
    """
    from rcnn.cli import regions, stream
    from rcnn.config import SLIDING_WINDOWS

    def run(results: "Iterable[Result]", remarks: Mapping[str, str]) -> None:
        job.run((result.filter(score=score or 0.0, top=top) for result in results), ("object",), remarks)

    job = stream.Job(sources, out, format, images, json, on_fault, split)
    with screen.stdout_for_json(json):
        if model in regions.SEARCHES:
            with job.without_detector() as settings:
                run(regions.search(model, job.files(), settings, job.skip), {})
        elif model == SLIDING_WINDOWS:
            with job.without_detector() as settings:
                run(_dense_windows(job.files(), settings, job.skip), {})
        else:
            with job.detector(model, device) as detector:
                detector.check_proposals(given=False)
                proposals = detector.stream_proposals(
                    job.images(), top=top or 300, batch=batch, skip=job.skip, keep_pixels=job.draws
                )
                run(proposals, detector.pooler.remarks)
    job.emit()


def _dense_windows(images: "Sequence[NamedImage]", settings: "Settings", skip: "Skip | None") -> "Iterator[Result]":
    """Yield dense sliding windows over image files, of the anchors and image size in the settings."""
    import numpy as np
    import torch

    from rcnn.cli.regions import image_proposals
    from rcnn.errors import ImageError
    from rcnn.images.batch import Preprocessor
    from rcnn.images.decode import image_size
    from rcnn.model.sliding_windows import sliding_windows
    from rcnn.presets import build
    from rcnn.weights.adapt import shapes_alone

    with shapes_alone():
        rpn = build(settings, 1).rpn
    preprocessor = Preprocessor(settings.preprocess)
    for image in images:
        try:
            size = image_size(str(image.image), max_pixels=settings.data.max_pixels)
        except ImageError as error:
            if skip is None:
                raise
            skip(error)
            continue
        resized, original = preprocessor.resized(size), torch.tensor(size, dtype=torch.float32)
        sizes = torch.tensor([resized], dtype=torch.float32)
        windows = sliding_windows(rpn.anchors, rpn.strides, preprocessor.padded(resized), sizes)
        boxes = preprocessor.boxes_back(windows.boxes[windows.valid], sizes[0] / original, original).numpy()
        yield image_proposals(boxes, np.ones(len(boxes), dtype=np.float32), image, size, settings)
