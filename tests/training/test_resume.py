"""Killed runs resume to the bit, also with accumulated batches, hard examples and an early end."""

from pathlib import Path

import pytest

from rcnn.training.train import train
from tests.training.pieces import FEW_PROPOSALS, OPTIONS, SMALL, assert_same
from tests.training.test_overfit import keep_a_copy

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
OVERRIDES = [
    *(*SMALL, *FEW_PROPOSALS, "rpn.post_test=20", "roi.dropout=0.2"),
    *("train.accumulate=2", "roi.sampler=ohem", "train.patience=1"),
]
EPOCHS = 6
STEPS = 2
"""Steps per epoch of three batches; the second step has one batch."""


@pytest.mark.parametrize("step", [1, STEPS + 1])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed in the first epoch, or in the second, which is the last one if AP does not rise."""
    keep_a_copy(monkeypatch, step, tmp_path / "copy")
    run = train(data, overrides=OVERRIDES, runs=tmp_path, **{**OPTIONS, "epochs": EPOCHS})
    assert 2 <= len(run.rows) < EPOCHS
    assert [row["step"] for row in run.rows] == [STEPS * row["epoch"] for row in run.rows]
    found = train(resume=tmp_path / "copy", quiet=True)
    assert found.folder.name == "copy"
    assert_same(found, run)
