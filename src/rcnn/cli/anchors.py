"""`rcnn anchors DATA`: measure how well anchors match the objects, and fit better ones."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.diagnose.anchors.study import Study

MAX_ROWS = 10
"""Number of objects without an anchor that are printed."""


def anchors(
    words: arguments.Words,
    model: Annotated[
        str, typer.Option(help="A preset, timm/NAME, or a weights file, which gives scale, levels and anchors.")
    ] = "mobilenet-fpn",
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="List of images.")] = "train",
    sizes: Annotated[int | None, typer.Option(min=1, help="Sizes per level to fit. Default: as many as now.")] = None,
    ratios: Annotated[int | None, typer.Option(min=1, help="Ratios to fit. Default: as many as now.")] = None,
    out: arguments.Out = Path("runs/anchors"),
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Measure how well anchors match the labelled boxes, and fit sizes and ratios to them. Images are not decoded.

    Example: rcnn anchors data/ --model mobilenet-fpn --sizes 1 preprocess.short=600
    """
    from rcnn.cli.files import fresh_folder
    from rcnn.cli.loading import load_detector
    from rcnn.data.formats.csv_labels import guarded
    from rcnn.data.formats.find import open_dataset
    from rcnn.diagnose.anchors.fit import setting_words
    from rcnn.diagnose.anchors.picture import plot_anchors
    from rcnn.diagnose.anchors.study import network_of, study
    from rcnn.open_model import names_weights

    path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
    network = load_detector(model, changes, "cpu").model if names_weights(model) else network_of(model, changes)
    with screen.json_document(json) as output:
        dataset = open_dataset(path, split, network.settings.data, decode=False)
        screen.dataset_line(dataset)
        result = study(dataset, network, sizes=sizes, ratios=ratios)
        show(result)
        folder = fresh_folder(out)
        rpn = network.settings.rpn
        plot_anchors(result.objects, result.coverages, (rpn.negative_iou, rpn.positive_iou), folder / "anchors.png")
        boxes = [result.describe(i, dataset) for i in result.worst_first()]
        with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(boxes[0]))
            writer.writeheader()
            writer.writerows(
                {name: guarded(cell) if isinstance(cell, str) else cell for name, cell in box.items()} for box in boxes
            )
        unreached = boxes[: len(result.unreached())]
        if unreached:
            columns = ["image", "class", "width", "height", "best IoU"]
            rows = [[o["image"], o["class"], round(o["width"]), round(o["height"]), o["iou"]] for o in unreached]
            title = "Objects that no anchor reaches now, in pixels of the file"
            screen.table(title, columns, rows, MAX_ROWS, f"{folder / 'boxes.csv'}")
        screen.say("\nSettings to paste (the network must be trained with them):", "bold")
        screen.say(" ".join(setting_words(result.coverages["fitted"].anchors)))
        screen.say(f"picture: {folder / 'anchors.png'}; every object: {folder / 'boxes.csv'}")
        output |= {**result.to_json(), "unreached": unreached, "folder": folder}


def show(result: "Study") -> None:
    """Print tables of all objects, by size, by aspect, and by number of positive anchors."""
    from rcnn.diagnose.anchors.fit import setting_words

    for name, coverage in result.coverages.items():
        screen.say(f"{name}: {' '.join(setting_words(coverage.anchors))}")
    figures = {name: result.figures(name) for name in result.coverages}
    titles = {
        "iou": "mean IoU with the best anchor",
        "recall50": "recall at IoU 0.5",
        "recall70": "recall at IoU 0.7",
        "unreached": f"objects that no anchor reaches (IoU < {result.limits[0]:g})",
        "positives": "positive anchors per object, mean",
        "without_positive": "objects without a positive anchor",
    }
    rows: list[list[object]] = [[text, *(values[key] for values in figures.values())] for key, text in titles.items()]
    screen.table(f"{figures['now']['boxes']:,} objects", ["", *figures], rows)
    keys = {"IoU": "iou", "R@0.5": "recall50", "R@0.7": "recall70", "positives": "positives"}
    headings = {"size": "By size: side in pixels of the resized image", "aspect": "By aspect: height / width"}
    for group, masks in result.groups.items():
        rows = []
        for label, mask in masks.items():
            figures = {name: result.figures(name, mask) for name in result.coverages}
            cells = ([values[key] for values in figures.values()] for key in keys.values())
            texts = [" / ".join("-" if math.isnan(v) else f"{v:.2f}" for v in values) for values in cells]
            rows.append([label, int(mask.sum()), *texts])
        screen.table(f"{headings[group]}; {' / '.join(result.coverages)}", [group, "objects", *keys], rows)
    counts = {name: result.positive_counts(name) for name in result.coverages}
    rows = [[label, *(by_label[label] for by_label in counts.values())] for label in counts["now"]]
    screen.table("Positive anchors per object", ["", *counts], rows)
