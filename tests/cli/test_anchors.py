import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcnn.config import override
from rcnn.presets import settings_of

SMALL = ("preprocess.short=60", "preprocess.long=80")


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_it_measures_fits_and_draws(run: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """Every box is 40 x 30 px and the images keep their size: one anchor of 34.6 px and ratio 0.75 meets them."""
    result = run("anchors", data, "--ratios", 1, "--out", tmp_path / "out", "--json", *SMALL)
    assert result.code == 0, result.err
    document = result.json()
    assert (document["images"], document["now"]["boxes"]) == (4, 4)
    assert document["now"]["iou"] < 0.7 <= document["fitted"]["iou"]
    assert document["fitted"]["unreached"] == 0
    assert document["unreached"] == []
    assert sum(document["now"]["positive_anchors"].values()) == 4
    settings = override(settings_of("mobilenet-fpn"), document["fitted"]["settings"])
    assert [list(row) for row in settings.anchors.sizes] == document["fitted"]["sizes"]
    assert len(settings.anchors.ratios) == 1
    assert (tmp_path / "out/anchors.png").stat().st_size > 10_000
    assert "Settings to paste" in result.err
    assert "By aspect" in result.err
    rows = rows_of(tmp_path / "out/boxes.csv")
    assert len(rows) == 4
    for end, rule in (("", "now"), ("_fitted", "fitted")):
        assert sum(float(row[f"iou{end}"]) for row in rows) / 4 == pytest.approx(document[rule]["iou"])
        assert sum(int(row[f"positives{end}"]) for row in rows) / 4 == document[rule]["positives"]
    assert (rows[0]["width"], rows[0]["height"]) == ("40.0", "30.0")


def test_objects_that_no_anchor_reaches_are_named_with_their_images(
    run: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    huge = "anchors.sizes=[[200],[200],[200],[200]]"
    result = run("anchors", data, "--split", "val", "--out", tmp_path / "out", huge, *SMALL)
    assert result.code == 0, result.err
    assert "JPEGImages/4.jpg" in result.out
    rows = rows_of(tmp_path / "out/boxes.csv")
    assert sorted(row["image"] for row in rows) == ["JPEGImages/4.jpg", "JPEGImages/5.jpg"]
    assert float(rows[0]["iou"]) == pytest.approx(40 * 30 / 200**2, rel=0.02)  # the square ones hold the box whole
    assert float(rows[0]["iou_fitted"]) > 0.6


def test_the_model_may_be_a_file_of_weights(run: Callable[..., Any], data: Path, weights: Path, tmp_path: Path) -> None:
    result = run("anchors", data, "--model", weights, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert result.json()["now"]["sizes"] == [[32.0], [64.0], [128.0], [256.0]]


def test_an_unknown_model_is_refused_with_the_nearest_name(run: Callable[..., Any], data: Path) -> None:
    result = run("anchors", data, "--model", "mobilenet-fpm")
    assert result.code == 2
    assert "mobilenet-fpn" in result.err
