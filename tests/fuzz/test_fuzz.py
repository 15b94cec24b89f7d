"""Test a few mutants of every kind; `make fuzz N=1000` runs more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 10
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked for each mutant")
def test_every_mutant_is_answered_with_a_sentence() -> None:
    """Undamaged files must be read, since mutants of files that no command reads would test nothing."""
    words = [sys.executable, "-m", "tests.fuzz.arena", "--sound", "1", "--count", str(COUNT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
