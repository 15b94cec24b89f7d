import html
from pathlib import Path

from PIL import Image

from .conftest import SMALL, Run, read_json, save_detector


def test_why_explains_objects_and_false_alarms(run: Run, data: Path, weights: Path) -> None:
    output = run.ok("why", weights, data, "--out", "why").out
    for text in ("Where the objects are lost", "False alarms", "By class", "circle", "AP if mended", "2 images"):
        assert text in output
    document = read_json("why/why.json")
    assert document["found"] + len(document["lost_objects"]) == document["objects"] == 2
    assert document["advice"] in output
    assert document["advice"] in html.unescape(Path("why/report.html").read_text(encoding="utf-8"))
    for name in ("funnel.png", "worst.jpg"):
        with Image.open(f"why/{name}") as picture:
            picture.load()


def test_json_is_one_document_and_folders_are_not_used_twice(run: Run, data: Path, weights: Path) -> None:
    words = ("why", weights, data, "--split", "train", "--score", "0.4", "--iou", "0.3", "roi.score=0.1")
    document = run.json(*words)
    assert (document["images"], document["objects"], document["iou"], document["score"]) == (4, 4, 0.3, 0.4)
    assert document["out"] == "runs/why/shapes"
    assert document["found"] + sum(entry["count"] for entry in document["lost"].values()) == 4
    assert "lost_objects" not in document
    assert run.json(*words)["out"] == "runs/why/shapes-2"


def test_a_detector_that_only_proposes(run: Run, data: Path, tmp_path: Path) -> None:
    path = save_detector(tmp_path / "rpn.safetensors", "mobilenet-fpn", *SMALL, "roi.head=none")
    document = run.json("why", path, data)
    assert list(document["lost"]) == ["no_anchor", "not_in_top_k", "no_proposal"]
    assert (document["false_alarms"], document["ap"]) == ({}, None)
    run.fails(2, "counted from an IoU of 0.5 on, got 0.3", "why", path, data, "--iou", "0.3")
