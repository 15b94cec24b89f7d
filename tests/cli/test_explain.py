from pathlib import Path

from .conftest import Run


def test_explain_draws_every_step(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    image = data / "JPEGImages/4.jpg"
    outcome = run.ok("explain", weights, image, "--truth", data, "--score", 0.2, "--json", "--html")
    document = outcome.json()
    assert document["counts"]["objects"] == 1
    assert document["counts"]["proposals"] == 20
    assert len(document["detections"]) == document["counts"]["detections"]
    assert all(detection["score"] >= 0.2 for detection in document["detections"])
    assert all(Path(path).is_file() for path in document["pictures"])
    assert Path(document["pictures"][0]).name == "overview.png"
    assert "positive anchors" in outcome.err
    assert document["page"] == "runs/explain/inside.html"
    page = Path(document["page"]).read_text(encoding="utf-8")
    assert "4.jpg" in page
    assert str(tmp_path) not in page  # users share the page


def test_no_truth_is_needed(run: Run, data: Path, weights: Path) -> None:
    outcome = run.ok("explain", weights, data / "JPEGImages/4.jpg", "roi.score=0.9")
    assert "labelled" not in outcome.out
    drawn = {path.name for path in Path("runs/explain").glob("*.png")}
    assert drawn == {"overview.png", "1-anchors.png", "2-objectness.png", "3-proposals.png"}  # numbered without a gap


def test_an_image_that_is_not_in_the_data_is_refused(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jpg"
    other.write_bytes((data / "JPEGImages/4.jpg").read_bytes())
    run.fails(3, "no image named other.jpg", "explain", weights, other, "--truth", data)
