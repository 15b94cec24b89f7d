"""`rcnn why MODEL DATA`: where each object was lost, and what each false alarm is."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.insight.funnel.report import Group, WhyReport

SHOWN = 20
"""Classes in the table, those with most losses."""


def why(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A weights file (.safetensors), or a name.")],
    words: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Folder, COCO json or data.yaml; and section.key=value.")
    ],
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="List of images to explain.")] = "val",
    iou: Annotated[float, typer.Option(min=0.1, max=1, help="From this IoU on a box is right.")] = 0.5,
    score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="From this score on a detection is shown. By default as stored."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures and why.json. By default runs/why/NAME.")
    ] = None,
    batch: arguments.BatchSize = 8,
    device: arguments.Device = None,
    on_fault: arguments.OnFault = None,
    json: arguments.Json = False,
) -> None:
    """Say where each labelled object was lost, what each false alarm is, and what to do about the worst of it.

    Example: rcnn why runs/train/exp-1/weights/best.safetensors data/
    """
    from rcnn.cli.files import fresh_folder
    from rcnn.cli.loading import load_detector
    from rcnn.data.find import open_dataset
    from rcnn.insight.funnel import why as insight
    from rcnn.insight.funnel.pictures import draw_funnel, draw_worst
    from rcnn.insight.funnel.report import document, report

    with screen.stdout_for_json(json):
        data, changes = arguments.one_path(words, "DATA")
        options = arguments.given({"data.on_fault": on_fault})
        detector = load_detector(model, [*changes, *options], device or "auto")
        detector.check_proposals(given=False)
        path, settings = arguments.required(data, "DATA"), detector.settings
        with screen.progress("reading images") as progress:
            dataset = open_dataset(path, split, settings.data, names=detector.names, progress=progress)
        screen.dataset_line(dataset)
        threshold = settings.predict.score if score is None else score
        with screen.progress("asking every stage") as progress:
            answer = insight.why(detector, dataset, iou=iou, score=threshold, batch=batch, progress=progress)
        found = report(answer, dataset, settings)
        show(found)
        folder = fresh_folder(out or Path("runs/why") / path.resolve().name)
        whole = document(found, dataset)
        text = json_format.dumps(screen.plain(whole), indent=2, ensure_ascii=False)
        (folder / "why.json").write_text(text + "\n", encoding="utf-8")
        draw_funnel(found, folder / "funnel.png")
        draw_worst(answer, dataset, settings, folder / "worst.jpg")
        screen.say("")
        screen.say(found.advice, "bold")
        screen.say(f"{folder}: funnel.png, worst.jpg, why.json")
    if json:
        lists = ("lost_objects", "false_detections")
        screen.emit({"out": folder, **{key: value for key, value in whole.items() if key not in lists}})


def show(found: "WhyReport") -> None:
    """Losses and false alarms by size, with the AP that mending each would give; and by class."""
    from rcnn.insight.funnel.kinds import ALARMS, FOUND
    from rcnn.insight.funnel.pictures import TAGS
    from rcnn.insight.funnel.report import groups, places

    answer = found.why
    objects, alarms = groups(answer.outcomes, answer.names), groups(answer.alarms, answer.names)
    title = f"Where the objects are lost (IoU {answer.iou:g}" + (
        f", score {answer.score:.3f})" if found.mended else ")"
    )
    _by_size(title, objects, {**places(answer), FOUND: FOUND}, found)
    if answer.detects:
        _by_size("False alarms", alarms, ALARMS, found)
        screen.say(f"AP {found.ap:.3f} at this IoU; `AP if mended` is what it would be without that kind", "dim")
    losses = [kind for kind in places(answer) if objects[0].counts[kind]]
    columns = ["class", "objects", FOUND, *(TAGS[kind] for kind in losses)]
    rows = [
        [group.title, group.counts.total(), group.counts[FOUND], *(group.counts[kind] for kind in losses)]
        for group in objects
        if group.section == "class"
    ]
    rows.sort(key=lambda row: row[2] - row[1])  # type: ignore[operator]
    left = f" ({SHOWN} of {len(rows)} with most losses)" if len(rows) > SHOWN else ""
    screen.table("By class" + left, columns, rows[:SHOWN])


def _by_size(title: str, counted: "Sequence[Group]", kinds: dict[str, str], found: "WhyReport") -> None:
    """A row a kind: how many, how many of each size, and the AP if mended."""
    shown = [group for group in counted if group.section != "class"]
    mended = ["AP if mended"] if found.mended else []
    rows: list[list[object]] = [
        [text, *(group.counts[kind] for group in shown), *([_ap(found, kind, shown[0])] if mended else [])]
        for kind, text in kinds.items()
    ]
    total = [sum(group.counts[kind] for kind in kinds) for group in shown]
    rows.append(["total", *total, *([found.ap] if mended else [])])
    screen.table(title, ["", *(group.title for group in shown), *mended], rows)


def _ap(found: "WhyReport", kind: str, everything: "Group") -> float:
    """The AP if mended, where there is something to mend."""
    return found.mended.get(kind, float("nan")) if everything.counts[kind] else float("nan")
