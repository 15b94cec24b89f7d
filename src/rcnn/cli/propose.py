"""`rcnn propose MODEL SOURCE...`: class-agnostic boxes from an RPN or a search, best first, or sliding windows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.cli.predict import Format, Images, Score, Sources, Split

if TYPE_CHECKING:
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

    def run(results: "Iterable[Result]", remarks: Mapping[str, str]) -> None:
        job.run((result.filter(score=score or 0.0, top=top) for result in results), ("object",), remarks)

    job = stream.Job(sources, out, format, images, json, on_fault, split)
    with screen.stdout_for_json(json):
        if model in regions.WITHOUT_DETECTOR:
            with job.without_detector() as settings:
                run(regions.WITHOUT_DETECTOR[model](job.files(), settings, job.skip), {})
        else:
            with job.detector(model, device) as detector:
                detector.check_proposals(given=False)
                proposals = detector.stream_proposals(
                    job.images(), top=top or 300, batch=batch, skip=job.skip, keep_pixels=job.draws
                )
                run(proposals, detector.pooler.remarks)
    job.emit()
