"""`scripts/compare_speed.py` measures both versions, and its intervals cover the median."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_speed.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("compare_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_are_those_of_the_sign_test(script: ModuleType) -> None:
    """For 30 values, tables of the sign test give the 10th from either end."""
    assert script.interval(range(30, 0, -1)) == (15.5, 10, 21)
    assert script.interval([3.0, 1.0, 2.0]) == (2, 1, 3)


def test_intervals_cover_the_median_in_95_percent_of_all_samples(script: ModuleType) -> None:
    samples = np.random.default_rng(0).lognormal(size=(2000, 30))
    intervals = [script.interval(sample.tolist()) for sample in samples]
    covered = np.mean([found.low <= 1 <= found.high for found in intervals])
    assert 0.94 < covered < 0.98


def test_a_slower_version_fails(script: ModuleType) -> None:
    times = [(script.Times(1, 1), script.Times(1.02 + 0.0001 * number, 1)) for number in range(30)]
    assert script.report("predict", times, limit=0.01)
    assert not script.report("predict", times, limit=0.03)


@pytest.mark.more
def test_the_working_tree_is_compared_with_itself() -> None:
    words = [sys.executable, SCRIPT, ".", ".", "--pairs", "1", "--turns", "1", "--limit", "99"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"{work}, {clock} time" for work in ("predict", "train") for clock in ("cpu", "wall")
    ]
