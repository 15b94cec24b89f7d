"""What the numbers of several seeds say: mean and spread, and whether an ordering of the paper holds."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import NamedTuple

from rcnn.paper.experiment import Claim, Experiment, Numbers

Scores = Mapping[str, Mapping[int | None, Numbers]]
"""Row -> seed -> numbers; None is the seed of what does not depend on one."""


class Summary(NamedTuple):
    """Mean, spread (standard deviation, NaN of fewer than two) and number of values."""

    mean: float
    spread: float
    runs: int


class Judgement(NamedTuple):
    """The judgement of a claim.

    Attributes:
        claim: the ordering.
        paper: the difference in the paper, NaN where it gives no numbers.
        difference: ours, mean over the seeds.
        error: its standard error, NaN of one run.
        runs: seeds.
        verdict: `holds`, `reversed`, `within noise`, `one run` or `not measured`.
    """

    claim: Claim
    paper: float
    difference: float
    error: float
    runs: int
    verdict: str


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and number of values; all that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    mean = fmean(known) if known else math.nan
    return Summary(mean, stdev(known) if len(known) > 1 else math.nan, len(known))


def judge(claim: Claim, scores: Scores, paper: Mapping[str, Numbers], seeds: Sequence[int]) -> Judgement:
    """Does the ordering hold? Differences are taken within each seed, and their mean against its standard error."""

    def of_seed(seed: int, row: str, key: str) -> float:
        return scores[row][seed if seed in scores[row] else None][key]

    differences = []
    for seed in seeds:
        try:
            differences.append(claim.difference(partial(of_seed, seed)))
        except KeyError:  # not measured yet
            continue
    try:
        theirs = claim.difference(lambda row, key: paper[row][key])
    except KeyError:
        theirs = math.nan
    mean, spread, count = summarise(differences)
    error = spread / math.sqrt(count) if count else math.nan
    return Judgement(claim, theirs, mean, error, count, verdict(mean, error, count, claim.slack))


def verdict(mean: float, error: float, count: int, slack: float | None) -> str:
    """The verdict on a mean difference: within noise if less than twice its standard error from tipping."""
    if count < 2:
        return "one run" if count else "not measured"
    margin = mean if slack is None else slack - abs(mean)
    if abs(margin) <= 2 * error:
        return "within noise"
    return "holds" if margin > 0 else "reversed"


def judge_all(experiment: Experiment, scores: Scores, seeds: Sequence[int]) -> list[Judgement]:
    """All claims of an experiment."""
    return [judge(claim, scores, experiment.paper, seeds) for claim in experiment.claims]
