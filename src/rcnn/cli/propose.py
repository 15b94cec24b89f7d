"""`rcnn propose MODEL SOURCE...`: class-agnostic boxes from a region proposal network or a search, best first."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.cli.predict import Format, Images, Score, Sources

if TYPE_CHECKING:
    from rcnn.result import Result

LISTS = {".json", ".yaml", ".yml"}
"""Suffixes of files that may list images."""


def propose(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A weights file, a name such as blood-cells, or selective-search[-quality]."
        ),
    ],
    sources: Sources,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of proposals per image, best first. Default: 300; of a search 2000."),
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

    Example: rcnn propose runs/train/exp-1/weights/best.safetensors photos/ --top 100
    """
    from rcnn.cli import stream
    from rcnn.data.selective_search import SEARCHES

    def run(results: "Iterable[Result]") -> None:
        job.run((result.filter(score=score or 0.0, top=top) for result in results), ("object",))

    job = stream.Job([*_listed(sources)], out, format, images, json, on_fault)
    with screen.stdout_for_json(json):
        if model in SEARCHES:
            with job.search(SEARCHES[model]) as results:
                run(results)
        else:
            with job.detector(model, device) as detector:
                detector.check_proposals(given=False)
                run(detector.stream_proposals(job.files(), top=top or 300, batch=batch, skip=job.skip))
    job.emit()


def _listed(words: Iterable[str]) -> Iterator[str]:
    """Yield the words, replacing a COCO json or data.yaml by the images that it lists."""
    from rcnn.config import Settings, override
    from rcnn.data.find import open_dataset

    words = list(words)
    settings = override(Settings(), [word for word in arguments.split(words)[1] if word.startswith("data.")]).data
    settings = settings.model_copy(update={"on_fault": "skip"})
    for word in words:
        if Path(word).suffix.lower() in LISTS and os.path.isfile(word):
            dataset = open_dataset(word, "all", settings, decode=False)
            yield from (str(record.path) for record in dataset.records)
        else:
            yield word
