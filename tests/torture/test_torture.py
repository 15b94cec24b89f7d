"""Disturb a training of every scheme once, and once in each other way; `make torture N=60` does it more often."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcnn.training.schemes import SCHEMES
from rcnn.weights.file import save_weights
from tests.torture import arena, compare

ROOT = Path(__file__).parents[2]


def test_every_scheme_is_tried() -> None:
    assert SCHEMES.keys() <= arena.SCHEMES.keys()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="clocks of other processes are Linux's")
def test_a_disturbed_run_ends_with_the_bits_of_an_undisturbed_one() -> None:
    words = [sys.executable, "-m", "tests.torture.arena", "--count", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_differences_are_found(tmp_path: Path) -> None:
    """A bit of a weight, a row, a file that is left over, a cut picture."""
    for name in ("found", "expected"):
        run = tmp_path / name
        (run / "weights").mkdir(parents=True)
        tensors = {"a": torch.tensor([1.0, float("nan")])}
        save_weights(run / "weights" / "last.safetensors", tensors, {"settings": {"train": {"lr": 0.1}}})
        (run / "config.yaml").write_text("train:\n  lr: 0.1\n")
        (run / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 2}\n')
        (run / "results.csv").write_text("epoch,seconds\n1,2\n")
        (run / "picture.jpg").write_bytes(b"picture")
        (run / "log.txt").write_text(name)
    found, expected = tmp_path / "found", tmp_path / "expected"
    (found / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 3}\n')
    assert list(compare.differences(found, expected)) == []
    tensors["a"].view(torch.int32)[0] ^= 1
    save_weights(found / "weights" / "last.safetensors", tensors, {"settings": {"train": {"lr": 0.2}}})
    (found / "metrics.jsonl").write_text('{"epoch": 2, "seconds": 3}\n')
    (found / "results.csv").write_text("epoch,seconds\n2,2\n")
    (found / ".step-1.tmp").touch()
    (found / "picture.jpg").write_bytes(b"pic")
    assert list(compare.differences(found, expected)) == [
        ".step-1.tmp is left over",
        "picture.jpg: other bytes, damaged",
        "weights/last.safetensors: other bits in a",
        "metrics.jsonl: other rows",
        "results.csv: other rows",
    ]
