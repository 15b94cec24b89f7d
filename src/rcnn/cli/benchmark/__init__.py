"""`rcnn benchmark MODEL [FILES...]`: a detector beside the files that it was exported to."""

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
    from rcnn.data.dataset import Dataset
    from rcnn.detector import Detector

PICTURES = 8
"""Of the data, on which runtimes are timed and compared."""
STREAMED = 64
"""Images of the data, at most, that are predicted from their files."""


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
    from rcnn.cli.benchmark.runtimes import benchmark as compare
    from rcnn.cli.benchmark.runtimes import size_of
    from rcnn.data.formats.find import find_layout, open_dataset
    from rcnn.exporting.export import made_up
    from rcnn.images.batch import Preprocessor
    from rcnn.images.stream import read_picture

    batches, sides = sorted(set(_numbers(batch))), arguments.sides_of(size)
    with screen.stdout_for_json(json):
        if data:
            find_layout(data)  # report what is missing before weights are loaded
        detector, there = rcnn.load(model, device="cpu"), rcnn.load(model, device=device)
        settings, dataset, files = detector.settings, None, files or []
        sides = size_of(detector, files, sides)
        if data:
            with screen.progress("reading images") as progress:
                dataset = open_dataset(data, split, settings.data, names=detector.names, progress=progress)
            screen.dataset_line(dataset)
            pictures = [read_picture(record.path, settings) for record in islice(dataset.records, PICTURES)]
        else:
            pictures = list(made_up(Preprocessor(settings.preprocess, sides)))
        options: dict[str, Any] = {"size": sides, "batches": batches, "runs": runs, "dataset": dataset}
        rows = compare(detector, files, pictures, **options, progress=screen.progress)
        threads = torch.get_num_threads()
        stages = time_stages(there, dataset, batches, runs) if dataset else []
        show(rows, f"{sides[0]} x {sides[1]} pixels, {plural(threads, 'thread')}, medians of {runs}")
        show_stages(stages)
    if json:
        facts = {"size": sides, "threads": threads, "runs": runs, "split": split if data else None}
        runtimes = [asdict(row) | {"costs": [c._asdict() for c in row.costs]} for row in rows]
        screen.emit({**facts, "engines": runtimes, "stages": [asdict(one) for one in stages]})


def show(rows: list["RuntimeResult"], title: str) -> None:
    """Print a row per runtime and batch size."""
    scored = rows[0].ap is not None
    columns = ["", "n", "ms", "CPU", "ratio", "MB", "file", *(["AP", "AP50"] if scored else []), "agree"]
    lines: list[list[Any]] = []
    for row in rows:
        for cost, plain in zip(row.costs, rows[0].costs, strict=True):
            name = row.name if row.precision == "float32" else f"{row.name} {row.precision}"
            first = cost is row.costs[0]
            once = [f"{row.bytes / 1e6:.1f}", *([row.ap, row.ap50] if scored else []), row.agreed]
            lines.append(
                [
                    name if first else "",
                    cost.batch,
                    *(f"{1000 * seconds:.{1 if seconds < 1 else 0}f}" for seconds in (cost.seconds, cost.cpu)),
                    f"{cost.cpu / plain.cpu:.2f}",
                    f"{cost.memory / 1e6:.0f}",
                    *(once if first else [""] * len(once)),
                ]
            )
    screen.table(title, columns, lines)
    screen.note(
        "",
        "n: images in a batch. ms, CPU: time and CPU time per image. ratio: of CPU time.",
        "MB: memory, beyond that of a process that has imported torch. file: MB.",
        "agree: share of boxes that are eager's to 0.05 px and 0.001.",
    )


def time_stages(detector: "Detector", dataset: "Dataset", batches: list[int], runs: int) -> list["Stages"]:
    """Time the stages of a prediction of the data's first images, for each batch size."""
    from rcnn.cli.benchmark.parts import measure_stages

    paths, found = [record.path for record in dataset.records[:STREAMED]], []
    with screen.progress("stages") as progress:
        for count in batches:
            found.append(measure_stages(detector, paths, count, runs))
            progress(len(found), len(batches))
    return found


def show_stages(stages: list["Stages"]) -> None:
    """Print a row per stage, a column per batch size; nothing if none was timed."""
    if not stages:
        return
    rows: list[list[Any]] = []
    for name in (*stages[0].seconds, "all of them"):
        taken = [sum(one.seconds.values()) if name == "all of them" else one.seconds[name] for one in stages]
        rows.append([name, *(f"{1000 * seconds:.2f}" for seconds in taken)])
    columns = ["stage", *(f"ms, batch of {one.batch}" for one in stages)]
    screen.table(f"\nA prediction in PyTorch on {stages[0].device}, per image", columns, rows)
    screen.note(
        "", *(f"Batch of {one.batch}, all at once: {one.images_per_second:.1f} images per second." for one in stages)
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
