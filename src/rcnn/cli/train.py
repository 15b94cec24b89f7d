"""`rcnn train DATA`: train a detector on labelled images."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcnn.cli import arguments, screen
from rcnn.config import Settings, dump, shorten, to_yaml

if TYPE_CHECKING:
    from rcnn.data.dataset import Dataset

OPTIONS = {
    "epochs": "train.epochs",
    "batch": "train.batch",
    "lr": "train.lr",
    "seed": "train.seed",
    "device": "train.device",
    "init": "train.init",
    "proposals": "train.proposals",
    "workers": "data.workers",
    "on_fault": "data.on_fault",
}
"""Option -> the setting that it abbreviates."""

MAX_ROWS = 12
"""Number of image sizes in the table of `--dry-run`, the most frequent ones."""


def epochs_of(text: str) -> int | str:
    """Return the value of --epochs, a number or `auto`."""
    if text != "auto" and not re.fullmatch(r"\d{1,9}", text):
        raise typer.BadParameter(f"{shorten(text)} is neither a number of epochs nor auto")
    return text if text == "auto" else int(text)


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA", help="Folder, COCO json, data.yaml or csv; and section.key=value."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="mobilenet-fpn (default), another preset, or timm/NAME.")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Fine-tune this detector: a run, a file, blood-cells, ..."),
    ] = None,
    epochs: Annotated[
        Any,
        typer.Option(metavar="N|auto", parser=epochs_of, help="Passes over the images; auto: from their number."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step, in all processes together.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate for train.lr_batch images per step.")] = None,
    seed: arguments.Seed = None,
    imgsz: arguments.ImageSize = None,
    device: arguments.Device = None,
    init: Annotated[str | None, typer.Option(metavar="imagenet|blood-cells|none|FILE", help="Initial weights.")] = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|selective-search|sliding-windows", help="Proposals to train train.scheme=fast-rcnn on."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of loader processes.")] = None,
    on_fault: arguments.OnFault = None,
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: the name of the data.")] = None,
    out: Annotated[Path, typer.Option(help="Parent folder of runs.")] = arguments.RUNS,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Repeat the run of a config.yaml.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what training would do, and stop.")] = False,
    json: arguments.Json = False,
) -> None:
    """Train a detector on labelled images.

    Example: rcnn train data/ --epochs 20 train.ema=null. `--dry-run` shows every setting.
    """
    data, changes = arguments.optional_path(words or [], "DATA", arguments.TRAINING)
    changes += arguments.assignments({"imgsz": imgsz})
    values = (epochs, batch, lr, seed, device, init, proposals, workers, on_fault)
    options: dict[str, Any] = {key: value for key, value in zip(OPTIONS, values, strict=True) if value is not None}

    from rcnn.training.configure import check_arguments, choose_settings
    from rcnn.training.train import train as run_training

    new_folder = name is not None or out != arguments.RUNS
    with screen.json_document(json) as output:
        if dry_run:
            check_arguments(data, config, model, changes, options, from_, resume, new_folder=new_folder)
            config = config if resume is None else resume / "config.yaml"
            output |= plan(choose_settings(data, config, model, changes, options, from_))
        else:
            chosen: dict[str, Any] = {
                "data": data,
                "model": model,
                "start_from": from_,
                "overrides": changes,
                "resume": resume,
            }
            run = run_training(config=config, **chosen, name=name, runs=out, **options)
            output |= {"folder": run.folder, "best": run.best, "epochs": run.rows, **run.metrics.to_row()}


def plan(settings: Settings) -> dict[str, Any]:
    """Print and return what training would do: settings, data, sizes, steps, parameters."""
    from rcnn.data.formats.find import open_splits
    from rcnn.data.loading.windows import training_windows
    from rcnn.data.proposals.read import WORDS, open_proposals
    from rcnn.presets import build
    from rcnn.training.proposals import together
    from rcnn.training.settle import settle
    from rcnn.training.stages import stage_lengths, steps_per_epoch

    train_set, val_set = open_splits(str(settings.data.path), settings.data)
    source = settings.train.proposals
    if source is not None and source not in WORDS:  # a file may be faulty; a search only takes time
        open_proposals(source, together((train_set, val_set)), settings)
    seen = training_windows(train_set, settings)
    settings, notes = settle(settings, seen)
    network = build(settings, len(train_set.names))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    rows = sizes(settings, seen)
    steps = steps_per_epoch(settings, seen, 0)
    total = sum(stage_steps for _, stage_steps in stage_lengths(settings, seen))
    screen.say(to_yaml(settings))
    for dataset in (train_set, val_set):
        screen.dataset_line(dataset)
    for note in notes:
        screen.say(note)
    columns = ["file", "images", "resized", "padded"]
    title = "Input size -> network size, height x width"
    screen.table(title, columns, [list(row.values()) for row in rows], MAX_ROWS, "--json")
    screen.say(f"\n{steps:,} steps per epoch, {total:,} in total; {parameters:,} parameters")
    return {
        "settings": dump(settings),
        "train": {"images": len(train_set), "names": train_set.names, "faults": len(train_set.faults)},
        "val": {"images": len(val_set), "faults": len(val_set.faults)},
        "notes": notes,
        "sizes": rows,
        "steps": steps,
        "parameters": parameters,
    }


def sizes(settings: Settings, dataset: "Dataset") -> list[dict[str, Any]]:
    """Return one row per size of the images, or of their windows, the most frequent first."""
    from rcnn.images.batch import Preprocessor

    preprocessor = Preprocessor(settings.preprocess)
    counts = Counter((record.size, record.view.resized if record.view else None) for record in dataset.records)
    rows = []
    for (size, view_resized), count in counts.most_common():
        resized = view_resized or preprocessor.resized(size)
        sizes = (size, resized, preprocessor.padded(resized))
        file, resized_text, padded = (f"{height} x {width}" for height, width in sizes)
        rows.append({"file": file, "images": count, "resized": resized_text, "padded": padded})
    return rows
