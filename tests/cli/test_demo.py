from pathlib import Path

import pytest

from rcnn.cli import demo

from .conftest import SMALL, Run


def test_the_demo_trains_scores_and_writes_a_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SPLITS", {"train": (6, 1), "val": (2, 2), "test": (2, 3)})
    small = (*SMALL, "train.epochs=1", "train.batch=2")
    outcome = run.ok("demo", "--device", "cpu", *small, "--json")
    assert "rcnn train path/to/data" in outcome.err.splitlines()[-1]
    assert outcome.json()["report"] == "demo/report.html"
    text = Path("demo/report.html").read_text(encoding="utf-8")
    assert "2 images of data, list test" in text
    assert "images: 6 to train on and 2 to validate" in text
