from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.cli import demo

from .conftest import SMALL, Outcome


def test_the_demo_goes_from_pictures_to_a_report(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SPLITS", {"train": (6, 1), "val": (2, 2), "test": (2, 3)})
    small = (*SMALL, "train.epochs=1", "train.batch=2")
    outcome = run("demo", "--out", tmp_path / "demo", "--device", "cpu", *small, "--json")
    assert outcome.code == 0, outcome.err
    assert "rcnn train path/to/data" in outcome.err.splitlines()[-1]
    page = Path(outcome.json()["report"])
    assert page == tmp_path / "demo/report.html"
    text = page.read_text(encoding="utf-8")
    assert "2 images of data, list test" in text
    assert "images: 6 to train on and 2 to validate" in text
