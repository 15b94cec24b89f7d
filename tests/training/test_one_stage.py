"""A one-stage detector is trained as the others are."""

from pathlib import Path
from typing import Any

import pytest

from rcnn.training.train import train
from tests.training.test_overfit import BOXES, OVERRIDES, keep_a_copy, no_pictures, one_picture  # noqa: F401
from tests.training.test_train import assert_same, one_thread  # noqa: F401

EPOCHS = 30
ONE_STAGE = ["rpn.classify=classes", "roi.head=none", "rpn.positive_iou=0.5", "rpn.negative_iou=0.5"]


@pytest.mark.parametrize(
    ("loss", "settings"), [("cross-entropy", ["rpn.lambda=20", "train.clip=100"]), ("focal", ["rpn.loss=focal"])]
)
def test_one_image_is_learnt_to_an_ap_of_1_and_a_killed_run_ends_with_the_same_bits(
    one_thread: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    settings: list[str],
) -> None:
    (tmp_path / "one").mkdir()
    keep_a_copy(monkeypatch, EPOCHS * 5 - 3, tmp_path / "copy")
    data = one_picture(tmp_path / "one", 96, BOXES, 5)
    overrides = [*OVERRIDES, *ONE_STAGE, *settings, f"val.every={EPOCHS}"]
    options: dict[str, Any] = {"epochs": EPOCHS, "batch": 1, "lr": 0.03, "device": "cpu", "quiet": True}
    run = train(data, model="tiny-fpn", overrides=overrides, runs=tmp_path, **options)
    assert run.metrics.ap == pytest.approx(1.0)
    assert run.rows[-1]["train_rpn_class"] < 0.1 * run.rows[0]["train_rpn_class"]
    (found, nothing) = run.metrics.predictions
    assert (found.scores[:2] > 0.5).all()
    if loss == "focal":  # trains every anchor; cross-entropy those that are drawn, and may miss a background
        assert not (found.scores[2:] > 0.5).any()
    assert not (nothing.scores > 0.5).any()
    assert_same(train(resume=tmp_path / "copy", quiet=True), run)
