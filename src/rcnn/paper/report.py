"""The table and the verdicts of an experiment, as rows of text and as a Markdown page."""

import math
from pathlib import Path

from PIL import Image

from rcnn.paper.conduct import ExperimentResult
from rcnn.paper.experiment import Column
from rcnn.paper.verdict import Summary, summarise
from rcnn.report.gallery import as_webp
from rcnn.report.parts import PARTS, Experiment, Table, save_part
from rcnn.weights.file import atomic_write

Cells = tuple[list[str], list[list[str]]]
"""Headings, and rows as long."""


def summary(result: ExperimentResult, row: str, key: str) -> Summary:
    """A quantity of a row over the seeds."""
    return summarise([numbers[key] for numbers in result.scores.get(row, {}).values() if key in numbers])


def results(result: ExperimentResult) -> Cells:
    """Table of each row's quantities, mean +- spread, with the paper's next to it, or below it if there are several."""
    experiment = result.experiment
    given = {key for numbers in experiment.paper.values() for key in numbers}
    beside = len(given) == 1
    headings = ["", "runs"]
    for column in experiment.columns:
        headings += [column.heading, *(["paper"] if beside and column.key in given else [])]
    rows = []
    for row in experiment.rows:
        measured = result.scores.get(row, {})
        cells = [row, str(len(measured))]
        lacks = "" if measured else experiment.lacking.get(row, "")
        for column in experiment.columns:
            first = column is experiment.columns[0]
            cells.append(lacks if lacks and first else _measured(summary(result, row, column.key), column))
            if beside and column.key in given:
                cells.append(_number(experiment.given(row, column.key), column.digits))
        rows.append(cells)
        if not beside and row in experiment.paper:
            rows.append(["  paper", "", *(_number(experiment.given(row, c.key), c.digits) for c in experiment.columns)])
    return headings, rows


def verdicts(result: ExperimentResult) -> Cells:
    """Table of the orderings: difference in the paper and here, its standard error, runs, verdict."""
    rows = []
    for judged in result.judgements:
        numbers = (judged.paper, judged.difference, judged.error)
        cells = [_number(value, judged.claim.digits) for value in numbers]
        rows.append([judged.claim.text, *cells, str(judged.runs), judged.verdict])
    return ["ordering", "paper", "ours", "std. error", "runs", "verdict"], rows


def describe(result: ExperimentResult) -> list[str]:
    """Sentences: where the paper's numbers are from, and what ours are of."""
    settings, dataset, experiment = result.settings, result.dataset, result.experiment
    epochs = f"epochs per stage: {settings.train.epochs}" if experiment.trainings else "untrained"
    return [
        f"The paper's numbers: {experiment.source}",
        f"Ours: {settings.model.preset} on {dataset.root.name}, images of {dataset.split}: {len(dataset)}, {epochs}, "
        f"seeds: {', '.join(map(str, result.seeds))}; mean +- standard deviation",
        *experiment.notes,
    ]


EXPLANATION = (
    "Differences are positive where the first is larger. Within noise: less than twice the standard error from tipping."
)


def write_page(result: ExperimentResult, folder: Path) -> None:
    """Write `NAME.md`: sentences, the tables, the picture."""
    title = f"{result.name}: {result.experiment.title}"
    parts = [f"# {title}", "\n".join(f"- {text}." for text in describe(result)), _markdown(results(result))]
    if result.judgements:
        parts += ["## The paper's orderings", _markdown(verdicts(result)), EXPLANATION]
    if result.failures:
        parts += ["## Failed", "\n".join(f"- {text}" for text in result.failures)]
    parts.append(f"![{title}]({result.name}.png)")
    atomic_write(folder / f"{result.name}.md", ("\n\n".join(parts) + "\n").encode())


def keep_part(result: ExperimentResult, folder: Path) -> None:
    """Write what the page of the folder shows of the experiment; its picture is there."""
    parts, name = folder / PARTS, f"paper-{result.name}"
    parts.mkdir(exist_ok=True)
    with Image.open(folder / f"{result.name}.png") as picture:
        atomic_write(parts / f"{name}.webp", as_webp(picture.convert("RGB")))
    tables = [("Measured", results(result), "")]
    if result.judgements:
        tables.append(("The paper's orderings", verdicts(result), EXPLANATION))
    failed = [f"Failed: {text}" for text in result.failures]
    part = Experiment(
        title=f"{result.name}: {result.experiment.title}",
        sentences=(*describe(result), *failed),
        tables=tuple(
            Table(title=title, headings=tuple(headings), rows=tuple(map(tuple, rows)), note=note)
            for title, (headings, rows), note in tables
        ),
        picture=f"{name}.webp",
    )
    save_part(parts / f"{name}.json", part)


def _markdown(table: Cells) -> str:
    headings, rows = table
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(summed: Summary, column: Column) -> str:
    text = _number(summed.mean, column.digits)
    # The spread has as many decimals as the mean.
    return text if math.isnan(summed.spread) else f"{text} +- {summed.spread:.{len(text.partition('.')[2])}f}"


def _number(value: float, digits: int) -> str:
    """One decimal less from 100 on; a dash for not-a-number."""
    return "-" if math.isnan(value) else f"{value:.{max(0, digits - (abs(value) >= 100))}f}"
