"""`rcnn predict MODEL SOURCE...`: find objects in images, and write the boxes as pictures and files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError

Listed = Annotated[
    str | None, typer.Option("--list", metavar="FILE", help="Images, one path per line; - is standard input.")
]
Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Images, folders, globs and data sets; and section.key=value.")
]
OptionalSources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="Images, folders, globs and data sets; and section.key=value."),
]
Format = Annotated[str, typer.Option(metavar="a,b", help="drawn, json, coco, yolo, voc.")]
Images = Annotated[Path | None, typer.Option(metavar="FILE.json", help="COCO json with the ids of the images.")]
Split = Annotated[
    Literal["train", "val", "test", "all"] | None,
    typer.Option(help="The sources are data sets: take this list of their images."),
]
Score = Annotated[float | None, typer.Option("--score", "--conf", min=0, max=1, help="Omit boxes with a lower score.")]


def predict(
    context: typer.Context,
    model: arguments.Model,
    sources: OptionalSources = None,
    listed: Listed = None,
    split: Split = None,
    score: Score = None,
    imgsz: arguments.ImageSize = None,
    top: Annotated[int | None, typer.Option(min=1, help="Maximum number of boxes per image, best first.")] = None,
    classes: Annotated[str | None, typer.Option(metavar="a,b", help="Keep only boxes of these classes.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="a,b", help="drawn, json, coco, yolo, voc. Default: drawn,json. With --shard: jsonl or parquet."
        ),
    ] = None,
    images: Images = None,
    out: arguments.Out = Path("runs/predict"),
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Predict shard I of N, in parts below the folder --out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the shard if it was begun before.")] = False,
    batch: arguments.BatchSize = 1,
    proposals: arguments.Proposals = None,
    on_fault: arguments.OnFault = None,
    device: arguments.Device = None,
    json: arguments.Json = False,
) -> None:
    """Find objects in images.

    Example: rcnn predict runs/train/exp-1 photos/ --score 0.4
    """
    from rcnn.cli import regions, shards, stream

    words = [*(sources or []), *arguments.assignments({"imgsz": imgsz})]
    if shard is not None:
        unused = {"--split": split, "--images": images, "--proposals": proposals, "--on-fault": on_fault}
        if names := [name for name, value in (unused | {"--json": json or None}).items() if value is not None]:
            raise SettingsError(f"{names[0]} is not for --shard")
        options = (shard, resume, out, format or "jsonl", score, top, classes, batch, device)
        with shards.continued(context.find_root().obj):
            shards.run(model, words, listed, *options)
        return
    if resume:
        raise SettingsError("--resume continues a shard: add --shard I/N, or --shard 1/1 for all images")
    job = stream.Job(words, out, format or "drawn,json", images, json, on_fault, split, listed)
    with screen.stdout_for_json(json), job.detector(model, device) as detector:
        detector.check_proposals(given=proposals is not None)
        chosen = None if classes is None else stream.parse_list("--classes", classes, detector.names)
        min_score = detector.settings.predict.score if score is None else score
        propose = None
        if proposals is not None:
            progress = job.distributed.writer
            propose = regions.external(proposals, job.files(), job.base, detector, job.skip, progress)
        options = {"batch": batch, "skip": job.skip, "proposals": propose, "keep_pixels": job.draws}
        results = detector.stream(job.images(), score=min_score, **options)
        filtered = (result.filter(classes=chosen, top=top) for result in results)
        job.run(filtered, detector.names, detector.pooler.remarks)
    job.emit()
