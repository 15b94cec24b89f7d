"""`rcnn benchmark MODEL [FILES...]`: compare a detector with the files that it was exported to."""

import re
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError, plural

if TYPE_CHECKING:
    from rcnn.cli.benchmark.parts import Stages
    from rcnn.cli.benchmark.runtimes import RuntimeResult

COMPARED_IMAGES = 8
"""Number of images of the data on which runtimes are timed and compared."""
MAX_STREAMED_IMAGES = 64
"""Largest number of images of the data that are predicted from their files."""


def benchmark(
    model: arguments.Model,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILES]...", help="Files of rcnn export, .onnx and .xml.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Folder, COCO json or data.yaml: also compute AP, and time every stage."),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="List of images to score on.")] = "val",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Images per batch: numbers with commas between.")] = "1,8",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of the images. Default: preprocess.short by preprocess.long."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each runtime and batch size; the median counts.")] = 7,
    device: Annotated[str, typer.Option(help="Where the stages are timed; runtimes are compared on the CPU.")] = "cpu",
    json: arguments.Json = False,
) -> None:
    """Compare the time, memory, size and AP of a detector with those of its exported files, on the CPU.

    With data, it also times each stage of a prediction, from file to boxes.

    Example: rcnn benchmark best.safetensors best.onnx best.xml --data path/to/data
    """
    import torch

    import rcnn
    from rcnn.cli.benchmark.parts import measure_stages
    from rcnn.cli.benchmark.runtimes import benchmark as compare
    from rcnn.cli.benchmark.runtimes import size_of
    from rcnn.cli.loading import open_for
    from rcnn.data.formats.find import find_layout
    from rcnn.exporting.export import made_up
    from rcnn.images.batch import Preprocessor
    from rcnn.images.stream import read_picture

    batches, sides = sorted(set(_numbers(batch))), arguments.sides_of(size)
    with screen.json_document(json) as output:
        if data:
            find_layout(data)  # report what is missing before weights are loaded
        detector, on_device = rcnn.load(model, device="cpu"), rcnn.load(model, device=device)
        settings, dataset, files = detector.settings, None, files or []
        sides = size_of(detector, files, sides)
        if data:
            dataset = open_for(detector, data, split)
            pictures = [read_picture(record.path, settings) for record in islice(dataset.records, COMPARED_IMAGES)]
        else:
            pictures = list(made_up(Preprocessor(settings.preprocess, sides)))
        rows = compare(detector, files, pictures, sides, batches, runs, dataset, screen.progress)
        threads, stages_by_batch = torch.get_num_threads(), []
        if dataset:
            paths = [record.path for record in dataset.records[:MAX_STREAMED_IMAGES]]
            with screen.progress("stages") as progress:
                for count in batches:
                    stages_by_batch.append(measure_stages(on_device, paths, count, runs))
                    progress(len(stages_by_batch), len(batches))
        show(rows, f"{sides[0]} x {sides[1]} pixels, {plural(threads, 'thread')}, medians of {runs}")
        if stages_by_batch:
            show_stages(stages_by_batch)
        output |= {"size": sides, "threads": threads, "runs": runs, "split": split if data else None}
        output["engines"] = [asdict(row) | {"costs": [cost._asdict() for cost in row.costs]} for row in rows]
        output["stages"] = [asdict(stages) for stages in stages_by_batch]


def show(rows: list["RuntimeResult"], title: str) -> None:
    """Print a row per runtime and batch size."""
    scored = rows[0].ap is not None
    columns = ["", "n", "ms", "CPU", "ratio", "MB", "file", *(["AP", "AP50"] if scored else []), "agree"]
    lines: list[list[Any]] = []
    for row in rows:
        name = row.name if row.precision == "float32" else f"{row.name} {row.precision}"
        of_file = [f"{row.bytes / 1e6:.1f}", *([row.ap, row.ap50] if scored else []), row.agreed]
        for cost, eager in zip(row.costs, rows[0].costs, strict=True):
            times = (f"{1000 * seconds:.{1 if seconds < 1 else 0}f}" for seconds in (cost.seconds, cost.cpu))
            lines.append(
                [name, cost.batch, *times, f"{cost.cpu / eager.cpu:.2f}", f"{cost.memory / 1e6:.0f}", *of_file]
            )
            name, of_file = "", [""] * len(of_file)  # only in the first line of a runtime
    screen.table(title, columns, lines)
    screen.note(
        "",
        "n: images in a batch. ms, CPU: time and CPU time per image. ratio: of CPU time.",
        "MB: memory beyond that of a process that has imported torch. file: size in MB.",
        "agree: share of boxes that match eager's to 0.05 px and 0.001.",
    )


def show_stages(by_batch: list["Stages"]) -> None:
    """Print a row per stage, with a column per batch size."""
    columns = [{**stages.seconds, "all of them": sum(stages.seconds.values())} for stages in by_batch]
    rows = [[name, *(f"{1000 * seconds[name]:.2f}" for seconds in columns)] for name in columns[0]]
    headings = ["stage", *(f"ms, batch of {stages.batch}" for stages in by_batch)]
    screen.table(f"\nA prediction in PyTorch on {by_batch[0].device}, per image", headings, rows)
    screen.note("")
    for stages in by_batch:
        screen.note(
            f"Batch of {stages.batch}, all stages overlapping: {stages.images_per_second:.1f} images per second."
        )


def _numbers(text: str) -> list[int]:
    """Return the batch sizes of `1,8`.

    Raises:
        SettingsError: the text is something else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,3}", word) for word in words):
        raise SettingsError(f"--batch {text}: give whole numbers from 1 to 9999 with commas between, as in --batch 1,8")
    return [int(word) for word in words]
