"""`rcnn why MODEL DATA`: show where each missed object was lost, and what each false detection is."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError

if TYPE_CHECKING:
    from rcnn.diagnose.why.tables import CountedByKind, WhyReport

MAX_ROWS = 20
"""Number of classes in the table, those with the most losses."""


def why(
    model: arguments.Model,
    words: arguments.Words,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="List of images to explain.")] = "val",
    iou: Annotated[float, typer.Option(min=0.1, max=1, help="IoU from which a box counts as correct.")] = 0.5,
    score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Score from which a detection counts. Default: the stored threshold."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures and why.json. Default: runs/why/NAME.")] = None,
    batch: arguments.BatchSize = 8,
    device: arguments.Device = None,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Show where each missed object was lost, what each false detection is, and what to do about the worst problem.

    Example: rcnn why runs/train/exp-1 data/
    """
    from rcnn.cli.files import folder_name, fresh_folder
    from rcnn.cli.loading import load_detector, open_for
    from rcnn.cli.report import describe, page_of
    from rcnn.data.formats.find import find_layout
    from rcnn.diagnose.why.analyse import analyse
    from rcnn.diagnose.why.pictures import draw_why, draw_worst
    from rcnn.diagnose.why.tables import document, report

    with screen.json_document(json) as output:
        path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
        if any(change.startswith("val.voc_ap=") for change in changes):
            raise SettingsError("val.voc_ap is a rule of VOC's AP, and `why` counts AP as COCO does: use `rcnn val`")
        find_layout(path)  # raises before weights are loaded
        detector = load_detector(model, changes, device or "auto")
        detector.check_proposals(given=False)
        settings, dataset = detector.settings, open_for(detector, path, split)
        threshold = settings.predict.score if score is None else score
        with screen.progress("examining every step") as progress:
            answer = analyse(detector, dataset, iou=iou, score=threshold, batch=batch, progress=progress)
        screen.note(*detector.pooler.remarks.values())
        summary = report(answer, dataset, settings)
        show(summary)
        folder = fresh_folder(out or Path("runs/why") / folder_name(path))
        tree = document(summary, dataset)
        text = json_format.dumps(screen.jsonable(tree), indent=2, ensure_ascii=False)
        (folder / "why.json").write_text(text + "\n", encoding="utf-8")
        draw_why(summary, folder / "funnel.png")
        draw_worst(answer, dataset, settings, folder / "worst.jpg")
        screen.say("")
        screen.say(summary.advice, "bold")
        screen.say(f"{folder}: funnel.png, worst.jpg, why.json")
        with page_of(folder):
            describe(folder, model, settings)
        lists = ("lost_objects", "false_detections")
        output |= {"out": folder, **{key: value for key, value in tree.items() if key not in lists}}


def show(report: "WhyReport") -> None:
    """Print losses and false alarms by size, with the AP if each kind were corrected, and losses by class."""
    from rcnn.diagnose.why.outcomes import ALARMS, FOUND
    from rcnn.diagnose.why.pictures import TAGS
    from rcnn.diagnose.why.tables import count_by_kind, possible_reasons

    answer = report.why
    objects, reasons = count_by_kind(answer.outcomes, answer.names), possible_reasons(answer)
    score = f", score {answer.score:.3f}" if report.mended else ""
    _by_size(f"Where the objects are lost (IoU {answer.iou:g}{score})", objects, {**reasons, FOUND: FOUND}, report)
    if answer.predicts_classes:
        _by_size("False alarms", count_by_kind(answer.alarms, answer.names), ALARMS, report)
        screen.say(f"AP {report.ap:.3f} at this IoU; `AP if mended` is what it would be without that kind", "dim")
    losses = [kind for kind in reasons if objects[0].counts[kind]]
    columns = ["class", "objects", FOUND, *(TAGS[kind] for kind in losses)]
    rows = [
        [group.title, group.counts.total(), group.counts[FOUND], *(group.counts[kind] for kind in losses)]
        for group in objects
        if group.section == "class"
    ]
    rows.sort(key=lambda row: row[2] - row[1])  # type: ignore[operator]
    if len(rows) > MAX_ROWS:
        rows = [row for row in rows if row[1]]
    screen.table("By class", columns, rows, MAX_ROWS, "why.json")


def _by_size(title: str, counted: "Sequence[CountedByKind]", kinds: dict[str, str], report: "WhyReport") -> None:
    """Print one row per kind: its number in total and by size, and the AP if it were corrected (NaN if unknown)."""
    groups = [group for group in counted if group.section != "class"]
    rows: list[list[object]] = [[text, *(group.counts[kind] for group in groups)] for kind, text in kinds.items()]
    rows.append(["total", *(sum(group.counts[kind] for kind in kinds) for group in groups)])
    headings = ["", *(group.title for group in groups)]
    if report.mended:
        headings.append("AP if mended")
        for row, kind in zip(rows, kinds, strict=False):
            row.append(report.mended.get(kind, float("nan")) if groups[0].counts[kind] else float("nan"))
        rows[-1].append(report.ap)
    screen.table(title, headings, rows)
