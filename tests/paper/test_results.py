"""Differences, standard errors and verdicts, worked by hand."""

import math

import pytest

from rcnn.paper.experiment import Claim, close, greater
from rcnn.paper.results import judge, summarise, verdict

PAPER = {"a": {"map50": 70.0}, "b": {"map50": 68.5}}


def scores(a: list[float], b: list[float]) -> dict[str, dict[int | None, dict[str, float]]]:
    return {name: {i: {"map50": x} for i, x in enumerate(column)} for name, column in (("a", a), ("b", b))}


def test_mean_and_sample_deviation_leave_out_nan() -> None:
    summary = summarise([1.0, 2.0, math.nan, 6.0])
    assert (summary.mean, summary.runs) == (3.0, 3)
    assert summary.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(summarise([5.0]).spread)
    assert math.isnan(summarise([]).mean)


def test_differences_are_taken_within_each_seed() -> None:
    """Seeds differ by 10, the rows by 1, 2 and 3: mean 2, deviation 1, standard error 1 / sqrt(3)."""
    judged = judge(greater("a >= b", "a", "b"), scores([11, 22, 33], [10, 20, 30]), PAPER, [0, 1, 2])
    assert (judged.paper, judged.difference, judged.runs) == (1.5, 2.0, 3)
    assert judged.error == pytest.approx(1 / math.sqrt(3))
    assert judged.verdict == "holds"  # 2 > 2 * 0.577


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], "holds"),
        ([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], "within noise"),  # 1 <= 2 * 0.577
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "reversed"),
        ([5.0, 5.0], [5.0, 5.0], "within noise"),
        ([5.0, 5.0], [4.0, 4.0], "holds"),
        ([5.0], [4.0], "one run"),
        ([], [], "not measured"),
        ([math.nan], [4.0], "not measured"),
    ],
)
def test_verdicts(a: list[float], b: list[float], word: str) -> None:
    assert judge(greater("a >= b", "a", "b"), scores(a, b), PAPER, [0, 1, 2]).verdict == word


@pytest.mark.parametrize(
    ("mean", "error", "word"),
    [(0.2, 0.1, "holds"), (-0.2, 0.1, "holds"), (0.9, 0.1, "within noise"), (-1.3, 0.1, "reversed")],
)
def test_about_equal_holds_well_inside_the_slack(mean: float, error: float, word: str) -> None:
    assert verdict(mean, error, 3, slack=1.0) == word
    claim = close("a and b differ by less than 1", "a", "b", 1.0)
    values = scores([mean - error, mean + error], [0.0, 0.0])  # deviation error * sqrt(2), standard error `error`
    judged = judge(claim, values, PAPER, [0, 1])
    assert (judged.verdict, judged.error) == (word, pytest.approx(error))


def test_a_row_without_seeds_is_compared_with_every_seed() -> None:
    values = {"a": {0: {"map50": 3.0}, 1: {"map50": 5.0}}, "b": {None: {"map50": 1.0}}}
    judged = judge(greater("a >= b", "a", "b"), values, {}, [0, 1, 2])
    assert (judged.difference, judged.runs, judged.error) == (3.0, 2, pytest.approx(1.0))
    assert math.isnan(judged.paper)


def test_a_claim_of_several_numbers() -> None:
    claim = Claim("ratio", lambda look_up: look_up("a", "map50") / look_up("b", "map50") - 1)
    assert judge(claim, scores([3.0, 6.0], [2.0, 4.0]), PAPER, [0, 1]).difference == pytest.approx(0.5)
