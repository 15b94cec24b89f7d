"""One folder of results as the values that the template puts in their places."""

import base64
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from rcnn.config import Train
from rcnn.config.files import read_text
from rcnn.diagnose.why.outcomes import ALARMS, FOUND, MISS_REASONS
from rcnn.metrics.proposal_recall import SIZES
from rcnn.report.charts import counts, shown
from rcnn.report.parts import Loss, WhyPart
from rcnn.report.scores import LARGEST, MOST_CONFUSED, Scores
from rcnn.report.subject import Subject, written
from rcnn.report.svg import bar, legend, short

CONFUSIONS = 20
"""Of many classes, the most frequent confusions that are listed."""

BARS = 20
"""Classes whose losses are drawn, those with most of them."""


class Shown(NamedTuple):
    """A picture in the page: name of the image, address, which holds all of it, alternative text and caption."""

    name: str
    address: str
    alt: str
    caption: str


def facts(subject: Subject) -> list[tuple[str, str]]:
    """What was done with what: name, value."""
    settings, machine, scores = subject.settings, subject.environment, subject.scores
    told: list[tuple[str, str | None]] = []
    if settings and subject.trained:
        images = " and ".join(
            f"{number:,} to {what}"
            for file, what in (("train.txt", "train on"), ("val.txt", "validate"))
            if (number := _lines(subject, file))
        )
        told.append(("Data", f"{_last(settings.data.path)}: images: {images}" if images else _last(settings.data.path)))
    if scores:
        split = f"{scores.images:,} images of {scores.data}, list {scores.split}"
        epoch = "" if scores.epoch is None else f", weights of epoch {scores.epoch}"
        told.append(("Scored on", split + epoch))
    elif subject.why:
        told.append(("Explained", f"{subject.why.images:,} images, list {subject.why.split}"))
    if settings:
        told.append(("Model", settings.model.preset))
        if subject.trained:
            told += [("Started from", _last(settings.train.init)), ("Epochs", _epochs(subject, settings.train))]
    if machine:
        versions = ", ".join(
            f"{name} {machine.packages[name]}" for name in ("rcnn", "torch") if name in machine.packages
        )
        told += [
            ("Weights", None if machine.model is None else _last(machine.model)),
            ("Command", machine.command),
            ("Versions", ", ".join(text for text in (versions, f"Python {machine.python}") if text)),
            ("Machine", ", ".join(machine.cuda) or f"{machine.processor}, threads: {machine.threads}"),
        ]
    told.append(("Written", written(subject.folder / "environment.json")))
    return [(name, value) for name, value in told if value]


def tiles(subject: Subject) -> list[tuple[str, str, str]]:
    """The numbers that are looked for first: heading, number, what it is."""
    scores = subject.scores
    if scores is None:
        return []
    metrics = [
        (metric.tile[0], shown(scores.summary[metric.key], metric.digits), metric.tile[1])
        for metric in scores.metrics
        if metric.tile and (metric.group == "proposals") != scores.detects
    ]
    if not scores.detects:
        return metrics
    everything = counts(scores, scores.threshold)[-1]
    return [
        *metrics,
        ("F1", shown(everything.f1), f"mean of classes at score {scores.threshold:.3f}"),
        (
            "found",
            _share(everything.right, everything.objects),
            f"{everything.right:,} of {everything.objects:,} objects",
        ),
        ("wrong", f"{everything.wrong:,}", f"of {everything.right + everything.wrong:,} detections"),
    ]


def by_class(scores: Scores) -> dict[str, Any]:
    """The metrics by class: headings and rows."""
    metrics = [metric for metric in scores.metrics if metric.per_class]
    return {
        "headings": [metric.per_class for metric in metrics],
        "rows": [
            (row.name, row.objects, [shown(row.value(metric), metric.digits) for metric in metrics])
            for row in scores.classes
        ],
    }


def by_size(scores: Scores) -> list[tuple[str, list[str]]]:
    """Rows of numbers by size of the objects: AP, and the recall of so many proposals."""
    names = ("all", *SIZES)
    rows = [("AP", [shown(scores.summary.get("ap" if name == "all" else f"ap_{name}")) for name in names])]
    recalls = ((f"recall of {top} proposals", values) for top, values in scores.recall.items())
    return [*rows, *((title, [shown(values.get(name)) for name in names]) for title, values in recalls)]


def confusion(scores: Scores) -> dict[str, Any]:
    """The matrix with its shades, or of many classes the most frequent confusions."""
    size = scores.num_classes
    names = {one.label: one.name for one in scores.classes} | {size: "nothing there"}
    cells = {(row, column): number for row, column, number in scores.confusion}
    if size > MOST_CONFUSED:
        wrong = sorted((item for item in cells.items() if item[0][0] != item[0][1]), key=lambda item: -item[1])
        known = [item for item in wrong if set(item[0]) <= set(names)][:CONFUSIONS]
        return {"pairs": [(_confused(row, column, size, names), number) for (row, column), number in known]}
    rows = []
    for row in range(size + 1):
        numbers = [cells.get((row, column), 0) for column in range(size + 1)]
        whole = max(1, sum(numbers))
        shades = [round(10 * number / whole) for number in numbers]
        rows.append((names.get(row, "?"), list(zip(numbers, shades, strict=True))))
    return {"columns": [*(names.get(label, "?") for label in range(size)), "missed"], "rows": rows}


def _confused(row: int, column: int, size: int, names: Mapping[int, str]) -> str:
    """What is there and what the detector says, in words."""
    if column == size:
        return f"{short(names[row])} missed"
    said = short(names[column])
    return f"{said} where nothing is" if row == size else f"{short(names[row])} taken for {said}"


def why(answer: WhyPart) -> dict[str, Any]:
    """Where objects are lost and what false alarms are: rows of kinds, and bars of classes and sizes."""
    inks = {kind: f"kind-{place}" for place, kind in enumerate((*MISS_REASONS, *ALARMS))}
    panels = []
    for title, kinds, losses, base in (
        (
            "Lost objects",
            MISS_REASONS,
            answer.lost,
            f"of {answer.objects:,} objects, of which {answer.found:,} are found",
        ),
        ("False alarms", ALARMS, answer.false_alarms, "detections that are wrong"),
    ):
        there = {kind: losses[kind] for kind in kinds if kind in losses}
        if there:
            rows = [
                (kinds[kind], inks[kind], loss, shown(loss.ap_if_mended if loss.count else None))
                for kind, loss in there.items()
            ]
            panels.append({"title": title, "base": base, "rows": rows, "bars": _bars(there, kinds, inks)})
    return {"answer": answer, "panels": panels, "sizes": list(SIZES), "found": FOUND}


def pictures(subject: Subject, budget: int) -> dict[str, list[Shown]]:
    """The worst and best pictures, in turn, as many as fit into so many bytes."""
    scores, left = subject.scores, budget
    shown_by: dict[str, list[Shown]] = {"worst": [], "best": []}
    kinds = [[one for one in (scores.pictures if scores else ()) if one.kind == kind] for kind in shown_by]
    for picture in filter(None, itertools.chain(*itertools.zip_longest(*kinds))):
        content = subject.pictures.get(picture.file)
        if content is not None and len(content) <= left:
            left -= len(content)
            counted = f"{picture.right} right, {picture.wrong} wrong, {picture.lost} lost"
            shown_by[picture.kind].append(Shown(picture.name, address(content), f"{picture.name}: {counted}", counted))
    return shown_by


def address(content: bytes) -> str:
    """A picture as an address that holds all of it."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def _bars(losses: dict[str, Loss], kinds: dict[str, str], inks: dict[str, str]) -> Markup:
    """A bar for each class and size, all on one scale, and what the colours are."""
    groups = []
    for section in ("by_class", "by_size"):
        names = dict.fromkeys(name for loss in losses.values() for name in getattr(loss, section))
        counted = {name: {kind: getattr(loss, section).get(name, 0) for kind, loss in losses.items()} for name in names}
        most = sorted(counted.items(), key=lambda item: -sum(item[1].values()))[:BARS]
        groups += most if section == "by_class" else counted.items()
    longest = max((sum(numbers.values()) for _, numbers in groups), default=0)
    return Markup('<table class="bars"><caption>By class and size</caption>{}</table>{}').format(
        Markup("").join(
            Markup('<tr><th scope="row">{}</th><td class="wide">{}</td><td>{:,}</td></tr>').format(
                short(name, 20),
                bar([(kinds[kind], number, inks[kind]) for kind, number in numbers.items()], longest),
                sum(numbers.values()),
            )
            for name, numbers in groups
        ),
        legend((kinds[kind], inks[kind]) for kind, loss in losses.items() if loss.count),
    )


def _lines(subject: Subject, file: str) -> int:
    """Number of lines of a list of images, 0 if it can't be read."""
    try:
        return read_text(subject.folder / file, LARGEST).count("\n")
    except (OSError, ValueError):
        return 0


def _epochs(subject: Subject, train: Train) -> str:
    stages = len({row.get("stage", 1) for row in subject.rows})
    planned = f"({train.length})" if train.steps else f"of {train.epochs}"
    planned = f" in {stages} stages {planned}" + ("" if train.steps else " each") if stages > 1 else f" {planned}"
    seconds = subject.rows[-1].get("seconds") if subject.rows else None
    spent = f"; {_time(seconds)} of training" if isinstance(seconds, float | int) else ""
    return f"{len(subject.rows)}{planned}{spent}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else shown(None)


def _last(place: str | None) -> str:
    """The last part of a path: no folders of this machine."""
    return str(place or "").rstrip("/").rpartition("/")[2]
