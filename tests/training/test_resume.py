"""A killed run goes on to the bit also with accumulated batches, hard examples and an early end."""

from pathlib import Path
from typing import Any

import pytest

from rcnn.training.train import train
from tests.training.test_alternating import data, no_pictures  # noqa: F401
from tests.training.test_overfit import keep_a_copy
from tests.training.test_train import assert_same, one_thread  # noqa: F401

OVERRIDES = [
    *("preprocess.short=64", "preprocess.long=96", "model.channels=16", "roi.hidden=32", "roi.dropout=0.2"),
    *("rpn.pre_train=60", "rpn.post_train=40", "rpn.pre_test=60", "rpn.post_test=20"),
    *("train.accumulate=2", "roi.sampler=ohem", "train.patience=1"),
]
EPOCHS = 6
STEPS = 2
"""Of an epoch of three batches, the second of one batch alone."""


@pytest.mark.parametrize("step", [1, STEPS + 1])
def test_it_ends_as_if_it_had_not_been_stopped(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """Stopped within the first epoch, and within the second, which is the last where AP does not rise."""
    keep_a_copy(monkeypatch, step, tmp_path / "copy")
    options: dict[str, Any] = {"model": "tiny-fpn", "epochs": EPOCHS, "batch": 2, "lr": 0.02, "device": "cpu"}
    run = train(data, overrides=OVERRIDES, runs=tmp_path, quiet=True, **options)
    assert 2 <= len(run.rows) < EPOCHS
    assert [row["step"] for row in run.rows] == [STEPS * row["epoch"] for row in run.rows]
    found = train(resume=tmp_path / "copy", quiet=True)
    assert found.folder.name == "copy"
    assert_same(found, run)
