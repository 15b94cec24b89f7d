"""Results of an experiment: statistics over the seeds, verdicts on the paper's claims, tables, and a Markdown page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from PIL import Image

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.paper.experiment import Claim, Column, Experiment, Lookup, Numbers
from rcnn.report import parts
from rcnn.report.gallery import as_webp
from rcnn.weights.file import atomic_write

NumbersBySeed = Mapping[str, Mapping[int | None, Numbers]]
"""Row -> seed -> numbers; the seed is None if the measurement does not depend on it."""

Cells = tuple[list[str], list[list[str]]]
"""Headings, and rows of equal length."""

EXPLANATION = (
    "Differences are positive where the first is larger. Within noise: within two standard errors of another verdict."
)


class Summary(NamedTuple):
    """Mean, spread (standard deviation, NaN for fewer than two values) and number of values."""

    mean: float
    spread: float
    runs: int


class Judgement(NamedTuple):
    """The outcome of a claim.

    Attributes:
        claim: the ordering.
        paper: the difference in the paper, NaN if it gives no numbers.
        difference: the measured one, mean over the seeds.
        error: its standard error, NaN for one run.
        runs: number of seeds.
        verdict: `holds`, `reversed`, `within noise`, `one run` or `not measured`.
    """

    claim: Claim
    paper: float
    difference: float
    error: float
    runs: int
    verdict: str


@dataclass(frozen=True)
class ExperimentResult:
    """The result of an experiment.

    Attributes:
        name: name of the experiment.
        experiment: its definition.
        settings: settings of all trainings.
        dataset: the scored images.
        seeds: requested seeds.
        scores: the measured numbers.
        failures: message of each measurement that failed.
    """

    name: str
    experiment: Experiment
    settings: Settings
    dataset: Dataset
    seeds: tuple[int, ...]
    scores: NumbersBySeed
    failures: tuple[str, ...]

    @property
    def judgements(self) -> list[Judgement]:
        """The paper's claims, judged by the measured numbers."""
        return judge_all(self.experiment, self.scores, self.seeds)

    def summary(self, row: str, key: str) -> Summary:
        """Summarise a quantity of a row over the seeds."""
        return summarise([numbers[key] for numbers in self.scores.get(row, {}).values() if key in numbers])


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, spread and number of the values that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    mean = fmean(known) if known else math.nan
    return Summary(mean, stdev(known) if len(known) > 1 else math.nan, len(known))


def judge(claim: Claim, scores: NumbersBySeed, paper: Mapping[str, Numbers], seeds: Sequence[int]) -> Judgement:
    """Compare the mean of the differences, each taken within one seed, with its standard error."""

    def look_up(seed: int, row: str, key: str) -> float:
        return scores[row][seed if seed in scores[row] else None][key]

    paper_difference = _difference(claim, lambda row, key: paper[row][key])
    mean, spread, count = summarise([_difference(claim, partial(look_up, seed)) for seed in seeds])
    error = spread / math.sqrt(count) if count else math.nan
    return Judgement(claim, paper_difference, mean, error, count, verdict(mean, error, count, claim.slack))


def _difference(claim: Claim, look_up: Lookup) -> float:
    """Return the difference that a claim is about; NaN if one of its numbers is not known."""
    try:
        return claim.difference(look_up)
    except KeyError:
        return math.nan


def verdict(mean: float, error: float, count: int, slack: float | None) -> str:
    """Return the verdict on a mean difference: within noise if twice its standard error could reverse it."""
    if count < 2:
        return "one run" if count else "not measured"
    margin = mean if slack is None else slack - abs(mean)
    if abs(margin) <= 2 * error:
        return "within noise"
    return "holds" if margin > 0 else "reversed"


def judge_all(experiment: Experiment, scores: NumbersBySeed, seeds: Sequence[int]) -> list[Judgement]:
    """Judge all claims of an experiment."""
    return [judge(claim, scores, experiment.paper, seeds) for claim in experiment.claims]


def score_table(result: ExperimentResult) -> Cells:
    """Return the quantities of each row as mean +- spread, next to the paper's, or above them if there are several."""
    experiment = result.experiment
    in_paper = {key for numbers in experiment.paper.values() for key in numbers}
    beside = in_paper if len(in_paper) == 1 else set()
    headings = ["", "runs"]
    for column in experiment.columns:
        headings += [column.heading, *(["paper"] if column.key in beside else [])]
    rows = []
    for row in experiment.rows:
        measured = result.scores.get(row, {})
        cells = [row, str(len(measured))]
        for index, column in enumerate(experiment.columns):
            omitted = experiment.omitted.get(row) if not measured and index == 0 else None
            cells.append(omitted or _measured(result.summary(row, column.key), column))
            if column.key in beside:
                cells.append(_number(experiment.paper_number(row, column.key), column.digits))
        rows.append(cells)
        if not beside and row in experiment.paper:
            numbers = (_number(experiment.paper_number(row, c.key), c.digits) for c in experiment.columns)
            rows.append(["  paper", "", *numbers])
    return headings, rows


def claim_table(result: ExperimentResult) -> Cells:
    """Return each ordering's difference in the paper and here, its standard error, runs, and verdict."""
    rows = []
    for judged in result.judgements:
        numbers = (judged.paper, judged.difference, judged.error)
        cells = [_number(value, judged.claim.digits) for value in numbers]
        rows.append([judged.claim.text, *cells, str(judged.runs), judged.verdict])
    return ["ordering", "paper", "ours", "std. error", "runs", "verdict"], rows


def describe(result: ExperimentResult) -> list[str]:
    """Return sentences on the source of the paper's numbers and of ours."""
    settings, dataset, experiment = result.settings, result.dataset, result.experiment
    length = f"{settings.train.length} per stage" if experiment.trainings else "untrained"
    return [
        f"The paper's numbers: {experiment.source}",
        f"Ours: {settings.model.preset} on {dataset.root.name}, images of {dataset.split}: {len(dataset)}, {length}, "
        f"seeds: {', '.join(map(str, result.seeds))}; mean +- standard deviation",
        *experiment.notes,
    ]


def write_markdown(result: ExperimentResult, folder: Path) -> None:
    """Write `NAME.md`: sentences, the tables, the figure."""
    title = f"{result.name}: {result.experiment.title}"
    blocks = [f"# {title}", "\n".join(f"- {text}." for text in describe(result)), _markdown(score_table(result))]
    if result.judgements:
        blocks += ["## The paper's orderings", _markdown(claim_table(result)), EXPLANATION]
    if result.failures:
        blocks += ["## Failed", "\n".join(f"- {text}" for text in result.failures)]
    blocks.append(f"![{title}]({result.name}.png)")
    atomic_write(folder / f"{result.name}.md", ("\n\n".join(blocks) + "\n").encode())


def write_report_part(result: ExperimentResult, folder: Path) -> None:
    """Write the experiment's part of the folder's `report.html`, with the figure that `plot` wrote into the folder."""
    part_folder, name = folder / parts.PARTS, f"paper-{result.name}"
    part_folder.mkdir(exist_ok=True)
    with Image.open(folder / f"{result.name}.png") as picture:
        atomic_write(part_folder / f"{name}.webp", as_webp(picture.convert("RGB")))
    tables = [("Measured", score_table(result), "")]
    if result.judgements:
        tables.append(("The paper's orderings", claim_table(result), EXPLANATION))
    part = parts.ExperimentPart(
        title=f"{result.name}: {result.experiment.title}",
        sentences=(*describe(result), *(f"Failed: {text}" for text in result.failures)),
        tables=tuple(
            parts.Table(title=title, headings=tuple(headings), rows=tuple(map(tuple, rows)), note=note)
            for title, (headings, rows), note in tables
        ),
        picture=f"{name}.webp",
    )
    parts.save_part(part_folder / f"{name}.json", part)


def _markdown(table: Cells) -> str:
    headings, rows = table
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(summary: Summary, column: Column) -> str:
    text = _number(summary.mean, column.digits)
    # The spread has as many decimals as the mean.
    return text if math.isnan(summary.spread) else f"{text} +- {summary.spread:.{len(text.partition('.')[2])}f}"


def _number(value: float, digits: int) -> str:
    """Format a number with one decimal less from 100 on; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.{max(0, digits - (abs(value) >= 100))}f}"
