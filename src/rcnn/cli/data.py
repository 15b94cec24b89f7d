"""`rcnn data check|stats|show|convert`: check, count, draw and convert a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.config import Preprocess, Settings, override
from rcnn.errors import ImageError, SettingsError, plural
from rcnn.images.storage import Location

if TYPE_CHECKING:
    from rcnn.data.stats import Stats

app = typer.Typer(help="Look at a data set: check, stats, show, convert, audit.", no_args_is_help=True)

Data = Annotated[
    list[str], typer.Argument(metavar="DATA", help="Folder, COCO json, data.yaml or csv; and data.key=value.")
]


@app.command("check", cls=arguments.SuggestingCommand)
def check(words: Data, json: arguments.Json = False) -> None:
    """List every fault as file:line: reason. The exit code is 3 if there are any.

    Example: rcnn data check data/
    """
    from rcnn.data.check import check as check_data

    path, settings = _path_and_settings(words)
    with screen.json_document(json) as output:
        with screen.progress("reading images") as progress:
            report = check_data(path, settings.data, progress)
        screen.lines(f"{fault} [{fault.kind}]" for fault in report.faults)
        screen.note(*report.notes)
        lists = ", ".join(f"{plural(stats.images, 'image')} in {name}" for name, stats in report.lists.items())
        read = f"{lists}; classes: {', '.join(report.names)}" if lists else "no list can be read"
        screen.say(f"{path} ({report.format}): {read}")
        by_kind = ", ".join(f"{count} {kind}" for kind, count in report.counts.items() if count)
        screen.say(f"{plural(len(report.faults), 'fault')}: {by_kind}" if report.faults else "no faults")
        if report.counts["fatal"]:
            screen.note("Training stops on fatal faults; with --on-fault skip it leaves these images out")
        if report.counts["damaged"]:
            screen.note("Damaged: training leaves these images out; with --on-fault stop it stops")
        if report.counts["mendable"]:
            screen.note("Mendable: training drops or clips these boxes, and continues")
        output |= report.to_json()
    if report.faults:
        raise typer.Exit(3)


@app.command("stats", cls=arguments.SuggestingCommand)
def stats(
    words: Data,
    out: arguments.Out = Path("runs/stats"),
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Count images, boxes and sizes by class and list, and plot them.

    Example: rcnn data stats data/ --out stats
    """
    from rcnn.cli.files import fresh_folder
    from rcnn.data.formats.find import open_lists
    from rcnn.data.stats import statistics
    from rcnn.images.sources import is_image
    from rcnn.plots.run_plots import plot_labels

    if is_image(out.name):
        raise SettingsError(f"--out {out}: give a folder; one picture is written for each list")
    path, settings = _path_and_settings(words, on_fault)
    with screen.json_document(json) as output:
        datasets = open_lists(path, settings.data, decode=False)
        screen.note(*dict.fromkeys(note for dataset in datasets for note in dataset.notes))
        figures = {dataset.split: statistics(dataset) for dataset in datasets}
        show_stats(figures)
        folder = fresh_folder(out)
        for dataset in datasets:
            plot_labels(dataset.records, dataset.names, folder / f"{dataset.split}.png")
        screen.say(f"plots: {folder}")
        output |= {"lists": {name: figure.to_json() for name, figure in figures.items()}, "plots": folder}


@app.command("show", cls=arguments.SuggestingCommand)
def show(
    words: Data,
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="List of images.")] = "train",
    out: Annotated[
        Path,
        typer.Option(help="Folder for the picture, -2, -3, ... is appended if it is taken; or a new .png or .jpg."),
    ] = Path("runs/show"),
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing the images.")] = 0,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Draw images with their boxes, side by side in one picture.

    Example: rcnn data show data/ --split val --count 9
    """
    from random import Random

    from rcnn.cli.files import fresh_folder, new_file, outside_data
    from rcnn.data.formats.find import open_dataset
    from rcnn.images.decode import read_image
    from rcnn.images.sources import is_image
    from rcnn.plots.contact_sheet import Tile, contact_sheet

    if is_image(out.name):
        new_file(out, (".png", ".jpg", ".jpeg"))
    path, settings = _path_and_settings(words, on_fault)
    with screen.json_document(json) as output:
        dataset = open_dataset(path, split, settings.data, decode=False)
        screen.dataset_line(dataset)
        data, channels = settings.data, settings.preprocess.in_channels
        # Without a model, any image can be shown.
        in_channels = None if channels == Preprocess().in_channels else channels
        tiles = list[Tile]()
        for record in Random(seed).sample(dataset.records, len(dataset)):
            try:
                image = read_image(record.path, white=data.white, max_pixels=data.max_pixels, in_channels=in_channels)
            except ImageError as error:
                if data.on_fault == "stop":
                    raise
                screen.note(f"left out: {error}")
                continue
            tiles.append(Tile(image, record.boxes, record.labels, record.name, ignore=record.ignore))
            if len(tiles) == count:
                break
        picture = outside_data(out, dataset) if is_image(out.name) else fresh_folder(out) / "mosaic.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(tiles, dataset.names, picture)
        screen.say(f"{plural(len(tiles), 'image')}: {picture}")
        output |= {"picture": picture, "images": [tile.title for tile in tiles]}


@app.command("convert", cls=arguments.SuggestingCommand)
def convert(
    words: Data,
    to: Annotated[str, typer.Option(help="The format to write: voc, coco, yolo, csv, huggingface or labelme.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Copy a data set into another format. Images are copied byte for byte, and the lists are kept.

    Example: rcnn data convert data/ --to coco --out copy
    """
    from rcnn.data.convert import convert as convert_data
    from rcnn.data.formats.find import open_lists

    path, settings = _path_and_settings(words, on_fault)
    with screen.json_document(json) as output:
        datasets = open_lists(path, settings.data)
        screen.note(*dict.fromkeys(note for dataset in datasets for note in dataset.notes))
        notes = convert_data(datasets, to, out)
        screen.note(*notes)
        lists = {dataset.split: len(dataset) for dataset in datasets}
        screen.say(f"{out} ({to}): " + ", ".join(f"{plural(n, 'image')} in {name}" for name, n in lists.items()))
        output |= {"out": out, "format": to, "lists": lists, "notes": notes}


def show_stats(figures: Mapping[str, "Stats"]) -> None:
    """Print tables with one column per list: boxes and images by class, and properties of images and boxes."""
    lists, names = list(figures), list(next(iter(figures.values())).classes)
    boxes = [[name, *(figure.classes[name] for figure in figures.values())] for name in names]
    images = [[name, *(figure.class_images[name] for figure in figures.values())] for name in names]
    screen.table("Boxes by class", ["class", *lists], boxes)
    screen.table("Images by class", ["class", *lists], images)
    rows = {
        "images": [figure.images for figure in figures.values()],
        "images without a box": [figure.empty for figure in figures.values()],
        "boxes": [figure.boxes for figure in figures.values()],
        "crowd or difficult": [figure.ignored for figure in figures.values()],
        "small (< 32 px)": [figure.small for figure in figures.values()],
        "medium": [figure.medium for figure in figures.values()],
        "large (> 96 px)": [figure.large for figure in figures.values()],
        "most boxes in an image": [max(figure.boxes_per_image, default=0) for figure in figures.values()],
    }
    screen.table("Images and boxes", ["", *lists], [[name, *row] for name, row in rows.items()])
    sizes = {
        "box side (px)": [figure.box_sizes for figure in figures.values()],
        "height / width": [figure.aspect_ratios for figure in figures.values()],
        "image height (px)": [figure.heights for figure in figures.values()],
        "image width (px)": [figure.widths for figure in figures.values()],
    }
    ranges = [[name, *map(_range, row)] for name, row in sizes.items()]
    screen.table("Smallest / median / largest", ["", *lists], ranges)


def _range(quantiles: tuple[float, ...]) -> str:
    """Format the first, middle and last quantile."""
    chosen = quantiles[:: len(quantiles) // 2] if quantiles else ()
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in chosen) or "-"


def _path_and_settings(words: list[str], on_fault: str | None = None) -> tuple[Location, Settings]:
    """Return the path and the settings among the words."""
    path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
    return path, override(Settings(), changes)
