"""`rcnn why MODEL DATA`: where each missed object was lost, and what each false detection is."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError

if TYPE_CHECKING:
    from rcnn.diagnose.why.tables import Group, WhyReport

SHOWN = 20
"""Number of classes in the table, those with most losses first."""


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
    """Tell where each missed object was lost, what each false detection is, and what to do about the worst problem.

    Example: rcnn why runs/train/exp-1 data/
    """
    from rcnn.cli.files import fresh_folder
    from rcnn.cli.loading import load_detector
    from rcnn.cli.report import describe, page_of
    from rcnn.data.formats.find import find_layout, open_dataset
    from rcnn.diagnose.why import why as insight
    from rcnn.diagnose.why.pictures import draw_funnel, draw_worst
    from rcnn.diagnose.why.tables import document, report

    with screen.stdout_for_json(json):
        path, changes = arguments.one_path(words, "DATA", {"data.on_fault": on_fault})
        if any(change.startswith("val.voc_ap=") for change in changes):
            raise SettingsError("val.voc_ap is a rule of VOC's AP, and `why` counts AP as COCO does: ask `rcnn val`")
        find_layout(path)  # what is missing is told before weights are loaded
        detector = load_detector(model, changes, device or "auto")
        detector.check_proposals(given=False)
        settings = detector.settings
        with screen.progress("reading images") as progress:
            dataset = open_dataset(path, split, settings.data, names=detector.names, progress=progress)
        screen.dataset_line(dataset)
        threshold = settings.predict.score if score is None else score
        with screen.progress("asking every stage") as progress:
            answer = insight.why(detector, dataset, iou=iou, score=threshold, batch=batch, progress=progress)
        screen.note(*detector.pooler.remarks.values())
        summary = report(answer, dataset, settings)
        show(summary)
        folder = fresh_folder(out or Path("runs/why") / path.resolve().name)
        whole = document(summary, dataset)
        text = json_format.dumps(screen.jsonable(whole), indent=2, ensure_ascii=False)
        (folder / "why.json").write_text(text + "\n", encoding="utf-8")
        draw_funnel(summary, folder / "funnel.png")
        draw_worst(answer, dataset, settings, folder / "worst.jpg")
        screen.say("")
        screen.say(summary.advice, "bold")
        screen.say(f"{folder}: funnel.png, worst.jpg, why.json")
        with page_of(folder):
            describe(folder, model, settings)
    if json:
        lists = ("lost_objects", "false_detections")
        screen.emit({"out": folder, **{key: value for key, value in whole.items() if key not in lists}})


def show(report: "WhyReport") -> None:
    """Print losses and false alarms by size, with the AP if each were mended, and losses by class."""
    from rcnn.diagnose.why.outcomes import ALARMS, FOUND
    from rcnn.diagnose.why.pictures import TAGS
    from rcnn.diagnose.why.tables import groups, places

    answer = report.why
    objects, alarms = groups(answer.outcomes, answer.names), groups(answer.alarms, answer.names)
    title = f"Where the objects are lost (IoU {answer.iou:g}" + (
        f", score {answer.score:.3f})" if report.mended else ")"
    )
    _by_size(title, objects, {**places(answer), FOUND: FOUND}, report)
    if answer.predicts_classes:
        _by_size("False alarms", alarms, ALARMS, report)
        screen.say(f"AP {report.ap:.3f} at this IoU; `AP if mended` is what it would be without that kind", "dim")
    losses = [kind for kind in places(answer) if objects[0].counts[kind]]
    columns = ["class", "objects", FOUND, *(TAGS[kind] for kind in losses)]
    rows = [
        [group.title, group.counts.total(), group.counts[FOUND], *(group.counts[kind] for kind in losses)]
        for group in objects
        if group.section == "class"
    ]
    rows.sort(key=lambda row: row[2] - row[1])  # type: ignore[operator]
    if len(rows) > SHOWN:
        rows = [row for row in rows if row[1]]
    left = f" ({SHOWN} of {len(rows)} with most losses)" if len(rows) > SHOWN else ""
    screen.table("By class" + left, columns, rows[:SHOWN])


def _by_size(title: str, counted: "Sequence[Group]", kinds: dict[str, str], report: "WhyReport") -> None:
    """Print one row per kind: the number in total and of each size, and the AP if mended."""
    shown = [group for group in counted if group.section != "class"]
    mended = ["AP if mended"] if report.mended else []
    rows: list[list[object]] = [
        [text, *(group.counts[kind] for group in shown), *([_ap(report, kind, shown[0])] if mended else [])]
        for kind, text in kinds.items()
    ]
    total = [sum(group.counts[kind] for kind in kinds) for group in shown]
    rows.append(["total", *total, *([report.ap] if mended else [])])
    screen.table(title, ["", *(group.title for group in shown), *mended], rows)


def _ap(report: "WhyReport", kind: str, everything: "Group") -> float:
    """Return the AP if this kind were mended, or NaN if there is none of it."""
    return report.mended.get(kind, float("nan")) if everything.counts[kind] else float("nan")
