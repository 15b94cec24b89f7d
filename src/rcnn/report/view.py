"""The values that the template shows of one folder of results."""

import base64
import itertools
import time
from typing import Any, NamedTuple

from markupsafe import Markup

from rcnn.config import Train
from rcnn.config.files import read_text
from rcnn.diagnose.why.outcomes import ALARMS, FOUND, MISS_REASONS
from rcnn.metrics.proposal_recall import SIZES
from rcnn.report.charts import counts, shown
from rcnn.report.parts import Loss, WhyPart
from rcnn.report.scores import MAX_FILE_BYTES, Scores
from rcnn.report.subject import Subject
from rcnn.report.svg import bar, legend, short

MAX_MATRIX_CLASSES = 40
"""Number of classes up to which the entire confusion matrix is shown."""

MAX_CONFUSIONS = 20
"""Number of confusions that are listed instead of a matrix, the most frequent ones."""

MAX_BARS = 20
"""Number of classes whose lost objects are drawn, those with most of them."""


class Shown(NamedTuple):
    """A picture in the page: name of the image, data address, alternative text and caption."""

    name: str
    address: str
    alt: str
    caption: str


def facts(subject: Subject) -> list[tuple[str, str]]:
    """Return facts about the results, as (name, value)."""
    settings, machine, scores = subject.settings, subject.environment, subject.scores
    found: list[tuple[str, str | None]] = []
    if settings and subject.trained:
        images = " and ".join(
            f"{number:,} to {what}"
            for file, what in (("train.txt", "train on"), ("val.txt", "validate"))
            if (number := _lines(subject, file))
        )
        name = _last(settings.data.path)
        found.append(("Data", f"{name}: images: {images}" if images else name))
    if scores:
        split = f"{scores.images:,} images of {scores.data}, list {scores.split}"
        epoch = "" if scores.epoch is None else f", weights of epoch {scores.epoch}"
        found.append(("Scored on", split + epoch))
    elif subject.why:
        found.append(("Explained", f"{subject.why.images:,} images, list {subject.why.split}"))
    if settings:
        found.append(("Model", settings.model.preset))
        if subject.trained:
            found += [("Started from", _last(settings.train.init)), ("Epochs", _epochs(subject, settings.train))]
    if machine:
        versions = ", ".join(
            f"{name} {machine.packages[name]}" for name in ("rcnn", "torch") if name in machine.packages
        )
        found += [
            ("Weights", None if machine.model is None else _last(machine.model)),
            ("Command", machine.command),
            ("Versions", ", ".join(text for text in (versions, f"Python {machine.python}") if text)),
            ("Machine", ", ".join(machine.cuda) or f"{machine.processor}, threads: {machine.threads}"),
        ]
    file = subject.folder / "environment.json"
    if file.exists():
        found.append(("Written", time.strftime("%Y-%m-%d", time.localtime(file.stat().st_mtime))))
    return [(name, value) for name, value in found if value]


def tiles(subject: Subject) -> list[tuple[str, str, str]]:
    """Return the most important numbers, as (heading, number, explanation)."""
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
    row = counts(scores, scores.threshold)[-1]
    found = f"{100 * row.right / row.objects:.1f}%" if row.objects else shown(None)
    return [
        *metrics,
        ("F1", shown(row.f1), f"mean of classes at score {scores.threshold:.3f}"),
        ("found", found, f"{row.right:,} of {row.objects:,} objects"),
        ("wrong", f"{row.wrong:,}", f"of {row.right + row.wrong:,} detections"),
    ]


def by_class(scores: Scores) -> dict[str, Any]:
    """Return the headings and rows of the metrics by class."""
    metrics = [metric for metric in scores.metrics if metric.per_class]
    return {
        "headings": [metric.per_class for metric in metrics],
        "rows": [
            (row.name, row.objects, [shown(row.value(metric), metric.digits) for metric in metrics])
            for row in scores.classes
        ],
    }


def by_size(scores: Scores) -> list[tuple[str, list[str]]]:
    """Return rows of numbers by size of the objects: AP, and the recall at each number of proposals."""
    names = ("all", *SIZES)
    rows = [("AP", [shown(scores.summary.get("ap" if name == "all" else f"ap_{name}")) for name in names])]
    recalls = ((f"recall of {top} proposals", values) for top, values in scores.recall.items())
    return [*rows, *((title, [shown(values.get(name)) for name in names]) for title, values in recalls)]


def confusion(scores: Scores) -> dict[str, Any]:
    """Return the matrix with its shades, or the most frequent confusions if there are many classes."""
    background = scores.num_classes
    names = {row.label: row.name for row in scores.classes} | {background: "nothing there"}
    if background > MAX_MATRIX_CLASSES:
        wrong = [cell for cell in scores.confusion if cell[0] != cell[1] and set(cell[:2]) <= set(names)]
        pairs = []
        for true, predicted, number in sorted(wrong, key=lambda cell: -cell[2])[:MAX_CONFUSIONS]:
            text = f"{short(names[true])} taken for {short(names[predicted])}"
            if predicted == background:
                text = f"{short(names[true])} missed"
            elif true == background:
                text = f"{short(names[predicted])} where nothing is"
            pairs.append((text, number))
        return {"pairs": pairs}
    cells = {(true, predicted): number for true, predicted, number in scores.confusion}
    rows = []
    for true in range(background + 1):
        numbers = [cells.get((true, predicted), 0) for predicted in range(background + 1)]
        total = max(1, sum(numbers))
        rows.append((names.get(true, "?"), [(number, round(10 * number / total)) for number in numbers]))
    return {"columns": [*(names.get(label, "?") for label in range(background)), "missed"], "rows": rows}


def why(answer: WhyPart) -> dict[str, Any]:
    """Return the lost objects and the false alarms: rows of kinds, and bars of classes and sizes."""
    inks = {kind: f"kind-{number}" for number, kind in enumerate((*MISS_REASONS, *ALARMS))}
    panels = []
    found = f"of {answer.objects:,} objects, of which {answer.found:,} are found"
    for title, kinds, parts, base in (
        ("Lost objects", MISS_REASONS, answer.lost, found),
        ("False alarms", ALARMS, answer.false_alarms, "detections that are wrong"),
    ):
        losses = {kind: parts[kind] for kind in kinds if kind in parts}
        if losses:
            rows = [
                (kinds[kind], inks[kind], loss, shown(loss.ap_if_mended if loss.count else None))
                for kind, loss in losses.items()
            ]
            panels.append({"title": title, "base": base, "rows": rows, "bars": _bars(losses, kinds, inks)})
    return {"answer": answer, "panels": panels, "sizes": list(SIZES), "found": FOUND}


def pictures(subject: Subject, budget: int) -> dict[str, list[Shown]]:
    """Return the worst and best pictures that fit into `budget` bytes, taken in turn."""
    by_kind: dict[str, list[Shown]] = {"worst": [], "best": []}
    listed = subject.scores.pictures if subject.scores else ()
    kinds = [[picture for picture in listed if picture.kind == kind] for kind in by_kind]
    for picture in filter(None, itertools.chain(*itertools.zip_longest(*kinds))):
        content = subject.pictures.get(picture.file)
        if content is not None and len(content) <= budget:
            budget -= len(content)
            caption = f"{picture.right} right, {picture.wrong} wrong, {picture.lost} lost"
            by_kind[picture.kind].append(Shown(picture.name, address(content), f"{picture.name}: {caption}", caption))
    return by_kind


def address(content: bytes) -> str:
    """Return the data address of a WebP picture."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def _bars(losses: dict[str, Loss], kinds: dict[str, str], inks: dict[str, str]) -> Markup:
    """Return a bar for each class and size, all on one scale, and a legend of the colours."""
    groups = []
    for section in ("by_class", "by_size"):
        names = dict.fromkeys(name for loss in losses.values() for name in getattr(loss, section))
        counted = {name: {kind: getattr(loss, section).get(name, 0) for kind, loss in losses.items()} for name in names}
        largest = sorted(counted.items(), key=lambda item: -sum(item[1].values()))[:MAX_BARS]
        groups += largest if section == "by_class" else counted.items()
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
    """Return the number of lines of a list of images; 0 if it can't be read."""
    try:
        return read_text(subject.folder / file, MAX_FILE_BYTES).count("\n")
    except (OSError, ValueError):
        return 0


def _epochs(subject: Subject, train: Train) -> str:
    """Return the number of epochs that are done and planned, and the time that they took."""
    stages = len({row.get("stage", 1) for row in subject.rows})
    text = f"{len(subject.rows)}" + (f" in {stages} stages" if stages > 1 else "")
    text += f" ({train.length})" if train.steps else f" of {train.epochs}" + (" each" if stages > 1 else "")
    seconds = subject.rows[-1].get("seconds") if subject.rows else None
    if isinstance(seconds, float | int):
        text += f"; {seconds:.0f} s of training" if seconds < 60 else f"; {seconds / 60:.1f} minutes of training"
    return text


def _last(path: str | None) -> str:
    """Return the last part of a path, without the folders of this machine."""
    return str(path or "").rstrip("/").rpartition("/")[2]
