import csv
from pathlib import Path

import pytest

from rcnn.config import override
from rcnn.presets import settings_of
from tests.data import sets

from .conftest import Run

SMALL = ("preprocess.short=60", "preprocess.long=80")


def read_rows() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("runs/anchors/boxes.csv").read_text().splitlines()))


def test_names_that_are_formulas_are_text_in_the_table(run: Run, tmp_path: Path) -> None:
    sets.image(tmp_path / "set/a.jpg")
    sets.csv(tmp_path / "set/x.csv", ["a.jpg,60,40,=1+1,5,6,20,30"])
    run.ok("anchors", tmp_path / "set", "--split", "all", *SMALL)
    (row,) = read_rows()
    assert (row["image"], row["class"], row["x1"]) == ("a.jpg", "'=1+1", "5.0")


def test_anchors_measures_fits_and_draws(run: Run, data: Path) -> None:
    """Every box is 40 x 30 px and the images keep their size, so one anchor of 34.6 px and ratio 0.75 matches them."""
    outcome = run.ok("anchors", data, "--ratios", 1, "--json", *SMALL)
    document = outcome.json()
    assert (document["images"], document["now"]["boxes"]) == (4, 4)
    assert document["now"]["iou"] < 0.7 <= document["fitted"]["iou"]
    assert document["fitted"]["unreached"] == 0
    assert document["unreached"] == []
    assert sum(document["now"]["positive_anchors"].values()) == 4
    settings = override(settings_of("mobilenet-fpn"), document["fitted"]["settings"])
    assert [list(row) for row in settings.anchors.sizes] == document["fitted"]["sizes"]
    assert len(settings.anchors.ratios) == 1
    assert Path("runs/anchors/anchors.png").stat().st_size > 10_000
    assert "Settings to paste" in outcome.err
    assert "By aspect" in outcome.err
    rows = read_rows()
    assert len(rows) == 4
    for end, rule in (("", "now"), ("_fitted", "fitted")):
        assert sum(float(row[f"iou{end}"]) for row in rows) / 4 == pytest.approx(document[rule]["iou"])
        assert sum(int(row[f"positives{end}"]) for row in rows) / 4 == document[rule]["positives"]
    assert (rows[0]["width"], rows[0]["height"]) == ("40.0", "30.0")


def test_objects_that_no_anchor_reaches_are_listed_with_their_images(run: Run, data: Path) -> None:
    outcome = run.ok("anchors", data, "--split", "val", "anchors.sizes=[[200],[200],[200],[200]]", *SMALL)
    assert "JPEGImages/4.jpg" in outcome.out
    rows = read_rows()
    assert sorted(row["image"] for row in rows) == ["JPEGImages/4.jpg", "JPEGImages/5.jpg"]
    assert float(rows[0]["iou"]) == pytest.approx(40 * 30 / 200**2, rel=0.02)  # a square anchor contains the box
    assert float(rows[0]["iou_fitted"]) > 0.6


def test_the_model_may_be_a_weights_file(run: Run, data: Path, weights: Path) -> None:
    document = run.json("anchors", data, "--model", weights)
    assert document["now"]["sizes"] == [[32.0], [64.0], [128.0], [256.0]]
