"""`rcnn propose MODEL SOURCE...`: class-agnostic boxes of the region proposal network, best first."""

from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.cli.predict import Format, Images, Model, Out, Score, Sources


def propose(
    model: Model,
    sources: Sources,
    top: Annotated[int, typer.Option(min=1, help="Proposals of an image at most, best first.")] = 300,
    score: Score = None,
    format: Format = "json",
    images: Images = None,
    out: Out = Path("runs/propose"),
    batch: arguments.BatchSize = 1,
    on_fault: arguments.OnFault = None,
    device: arguments.Device = None,
    json: arguments.Json = False,
) -> None:
    """Propose regions of images, whatever their class.

    Example: rcnn propose runs/train/exp-1/weights/best.safetensors photos/ --top 100
    """
    from rcnn.cli import stream

    job = stream.Job(sources, out, format, images, json, on_fault)
    with screen.stdout_for_json(json), job.detector(model, device) as detector:
        found = detector.stream_proposals(job.files(), top=top, batch=batch, skip=job.skip)
        job.run((result.filter(score=score or 0.0) for result in found), ("object",))
    job.emit()
