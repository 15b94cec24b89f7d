"""A killed run goes on to the bit also with accumulated batches, hard examples and an early end."""

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
"""Of an epoch of three batches, the second of one batch alone."""


@pytest.mark.parametrize("step", [1, STEPS + 1])
def test_it_ends_as_if_it_had_not_been_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Stopped within the first epoch, and within the second, which is the last where AP does not rise."""
    keep_a_copy(monkeypatch, step, tmp_path / "copy")
    run = train(data, overrides=OVERRIDES, runs=tmp_path, **{**OPTIONS, "epochs": EPOCHS})
    assert 2 <= len(run.rows) < EPOCHS
    assert [row["step"] for row in run.rows] == [STEPS * row["epoch"] for row in run.rows]
    found = train(resume=tmp_path / "copy", quiet=True)
    assert found.folder.name == "copy"
    assert_same(found, run)
