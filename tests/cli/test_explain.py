from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_it_draws_every_stage(run: Callable[..., Any], data: Path, weights: Path, tmp_path: Path) -> None:
    image = data / "JPEGImages/4.jpg"
    result = run(
        "explain", weights, image, "--truth", data, "--out", tmp_path / "out", "--score", 0.2, "--json", "--html"
    )
    assert result.code == 0, result.err
    document = result.json()
    assert document["counts"]["objects"] == 1
    assert document["counts"]["proposals"] == 20
    assert len(document["detections"]) == document["counts"]["detections"]
    assert all(detection["score"] >= 0.2 for detection in document["detections"])
    assert all(Path(path).is_file() for path in document["pictures"])
    assert Path(document["pictures"][0]).name == "overview.png"
    assert "positive anchors" in result.err
    page = Path(document["page"])
    assert page.name == "inside.html"
    assert "4.jpg" in page.read_text(encoding="utf-8")
    assert str(tmp_path) not in page.read_text(encoding="utf-8")  # it is made to be shown to others


def test_no_truth_is_needed(run: Callable[..., Any], data: Path, weights: Path, tmp_path: Path) -> None:
    result = run("explain", weights, data / "JPEGImages/4.jpg", "--out", tmp_path / "out", "roi.score=0.9")
    assert result.code == 0, result.err
    assert "labelled" not in result.out
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {"overview.png", "1-anchors.png", "2-objectness.png", "3-proposals.png"}  # without a gap


def test_an_image_that_the_data_does_not_have_is_named(
    run: Callable[..., Any], data: Path, weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jpg"
    other.write_bytes((data / "JPEGImages/4.jpg").read_bytes())
    result = run("explain", weights, other, "--truth", data)
    assert result.code == 3
    assert "no image named other.jpg" in result.err


def test_a_missing_image_is_named(run: Callable[..., Any], weights: Path) -> None:
    result = run("explain", weights, "nowhere.jpg")
    assert result.code == 3
    assert "nowhere.jpg" in result.err
