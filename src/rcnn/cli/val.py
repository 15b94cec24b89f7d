"""`rcnn val MODEL DATA`: score a detector on labelled images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.config import SLIDING_WINDOWS
from rcnn.errors import cell

if TYPE_CHECKING:
    from rcnn.metrics.table import Metrics


def val(
    model: arguments.Model,
    words: arguments.Words,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="List of images to score on.")] = "val",
    imgsz: arguments.ImageSize = None,
    batch: arguments.BatchSize = 8,
    device: arguments.Device = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for sampling boxes for the losses.")] = None,
    proposals: arguments.Proposals = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page. Default: runs/val/NAME.")] = None,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Score a detector on labelled images.

    Example: rcnn val runs/train/exp-1 data/ --split test
    """
    from rcnn.cli.files import folder_name, fresh_folder
    from rcnn.cli.loading import load_detector, open_for
    from rcnn.cli.report import describe, page_of
    from rcnn.data.formats.find import find_layout
    from rcnn.data.proposals.external import ProposalSet, SlidingWindows
    from rcnn.evaluate import Shard, evaluate
    from rcnn.report.page import keep_scores
    from rcnn.report.scores import ScoredDetector
    from rcnn.training.distributed import join_processes
    from rcnn.training.proposals import shared_proposals

    with screen.json_document(json) as output, join_processes(device or "auto") as distributed:
        options = {"data.on_fault": on_fault, "train.seed": seed, "imgsz": imgsz}
        path, changes = arguments.one_path(words, "DATA", options, accepted=("seed",))
        find_layout(path)  # report what is missing before weights are loaded
        detector = load_detector(model, changes, str(distributed.device), device)
        detector.check_proposals(given=proposals is not None)
        settings, external = detector.settings, None
        dataset = open_for(detector, path, split, distributed.writer)
        if proposals == SLIDING_WINDOWS:
            external = SlidingWindows.of(detector.model)
        elif proposals is not None:
            with screen.progress("proposals", distributed.writer) as progress:
                by_image = shared_proposals(proposals, dataset, settings, distributed, progress)
            external = ProposalSet(by_image, settings.rpn.post_test)
        shard = Shard(distributed.rank, distributed.world, distributed.collect, distributed.share)
        with screen.progress("scoring", distributed.writer) as progress:

            def advance(done: int, steps: int) -> None:
                screen.note_threads()
                progress(done, steps)

            metrics = evaluate(detector, dataset, batch=batch, shard=shard, progress=advance, proposals=external)
        if distributed.writer:
            screen.note(*detector.pooler.remarks.values())
            show(metrics)
            folder = fresh_folder(out or Path("runs/val") / folder_name(path))
            screen.say("")
            with page_of(folder):
                describe(folder, model, settings)
                keep_scores(folder, dataset, metrics, ScoredDetector.of(detector))
        output |= {"split": dataset.split, "images": len(dataset), **summary(metrics)}


def show(metrics: "Metrics") -> None:
    """Print AP by class and by size, and recall of proposals. With many classes, those without boxes are left out."""
    from rcnn.metrics.table import METRICS

    overall = {m.key: cell(metrics.values[m.key].overall, m.digits) for m in METRICS if m.key in metrics.values}
    rows, note = metrics.table()
    every = ["all", int(metrics.coco.counts.sum()), *(overall[metric.key] for metric in metrics.per_class)]
    screen.table("AP by class" + note, metrics.class_headings, [*rows, every])
    shown = {m.heading: overall[m.key] for m in METRICS if m.key in overall and m.group not in ("voc", "proposals")}
    screen.table("All classes", list(shown), [list(shown.values())])
    proposals = metrics.proposals
    tops = [f"AR@{top}" for top in proposals.tops]
    by_size = {"all": proposals.ar, **proposals.ar_by_size}
    boxes = {"all": sum(proposals.counts.values()), **proposals.counts}
    recall = [[size, boxes[size], *values.tolist()] for size, values in by_size.items()]
    screen.table("Proposals: average recall by object size", ["size", "boxes", *tops], recall)


def summary(metrics: "Metrics") -> dict[str, Any]:
    """Return the metrics in the document of `--json`."""
    from rcnn.metrics.table import METRICS

    groups = {metric.key: metric.group for metric in METRICS}
    proposals = metrics.proposals
    return {
        **{key: value.overall for key, value in metrics.values.items() if groups[key] != "proposals"},
        "classes": metrics.by_class(),
        "proposals": {f"ar{top}": value for top, value in zip(proposals.tops, proposals.ar.tolist(), strict=True)},
        "losses": metrics.losses,
    }
