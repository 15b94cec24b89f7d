"""`rcnn anchors DATA`: how well anchors match the objects, and which would match them better."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.diagnose.anchors.study import Study

SHOWN = 10
"""Number of objects without an anchor that are listed on the screen."""


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
    from rcnn.data.formats.find import open_dataset
    from rcnn.diagnose.anchors.fit import setting_words
    from rcnn.diagnose.anchors.picture import plot_anchors
    from rcnn.diagnose.anchors.study import study

    path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
    network = _network(model, changes)
    with screen.stdout_for_json(json):
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
            writer.writerows(boxes)
        unreached = boxes[: len(result.unreached())]
        _list_unreached(unreached, folder / "boxes.csv")
        screen.say("\nSettings to paste (the network must be trained with them):", "bold")
        screen.say(" ".join(setting_words(result.coverages["fitted"].anchors)))
        screen.say(f"picture: {folder / 'anchors.png'}; every object: {folder / 'boxes.csv'}")
    if json:
        screen.emit({**result.to_json(), "unreached": unreached, "folder": folder})


def _network(model: str, changes: list[str]) -> Any:
    """Return the network of a weights file, or that of a preset, without values."""
    import torch

    from rcnn.cli.loading import load_detector
    from rcnn.open_model import NAMES
    from rcnn.presets import build, settings_of

    if model in NAMES or model.endswith(".safetensors") or Path(model).is_file():
        return load_detector(model, changes, "cpu").model
    with torch.device("meta"):
        return build(settings_of(model, changes), 1)


def show(result: "Study") -> None:
    """Print tables of all objects, by size, by aspect, and by number of positive anchors."""
    from rcnn.diagnose.anchors.fit import setting_words

    for name, coverage in result.coverages.items():
        screen.say(f"{name}: {' '.join(setting_words(coverage.anchors))}")
    whole = {name: result.figures(name) for name in result.coverages}
    titles = {
        "iou": "mean IoU with the best anchor",
        "recall50": "recall at IoU 0.5",
        "recall70": "recall at IoU 0.7",
        "unreached": f"objects that no anchor reaches (IoU < {result.limits[0]:g})",
        "positives": "positive anchors per object, mean",
        "without_positive": "objects without a positive anchor",
    }
    screen.table(
        f"{result.figures('now')['boxes']:,} objects",
        ["", *whole],
        [[t, *(f[k] for f in whole.values())] for k, t in titles.items()],
    )
    keys = {"IoU": "iou", "R@0.5": "recall50", "R@0.7": "recall70", "positives": "positives"}
    for what, masks in result.groups.items():
        rows = []
        for label, mask in masks.items():
            own = [result.figures(name, mask) for name in result.coverages]
            cells = [" / ".join(_short(f[key]) for f in own) for key in keys.values()]
            rows.append([label, int(mask.sum()), *cells])
        title = "By size: side in pixels of the resized image" if what == "size" else "By aspect: height / width"
        screen.table(f"{title}; {' / '.join(result.coverages)}", [what, "objects", *keys], rows)
    spread = {name: result.positive_counts(name) for name in result.coverages}
    rows = [[label, *(counts[label] for counts in spread.values())] for label in spread["now"]]
    screen.table("Positive anchors per object", ["", *spread], rows)


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _list_unreached(rows: list[dict[str, Any]], path: Path) -> None:
    """List the objects that no anchor reaches, worst first; all objects are in the file."""
    if not rows:
        return
    columns = ["image", "class", "width", "height", "best IoU"]
    shown = [[r["image"], r["class"], round(r["width"]), round(r["height"]), r["iou"]] for r in rows[:SHOWN]]
    more = f" (the first {SHOWN} of {len(rows):,}; all: {path})" if len(rows) > SHOWN else ""
    screen.table(f"Objects that no anchor reaches now, pixels of the file{more}", columns, shown)
