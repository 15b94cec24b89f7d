import html
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .conftest import NAMES, SMALL, Outcome

Run = Callable[..., Outcome]


def test_explains_objects_and_false_alarms(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    outcome = run("why", weights, data, "--out", tmp_path / "why")
    assert outcome.code == 0, outcome.err
    for text in ("Where the objects are lost", "False alarms", "By class", "circle", "AP if mended", "2 images"):
        assert text in outcome.out
    document = json.loads((tmp_path / "why/why.json").read_text())
    assert document["found"] + len(document["lost_objects"]) == document["objects"] == 2
    assert document["advice"] in outcome.out
    assert document["advice"] in html.unescape((tmp_path / "why/report.html").read_text(encoding="utf-8"))
    for name in ("funnel.png", "worst.jpg"):
        with Image.open(tmp_path / "why" / name) as picture:
            picture.load()


def test_json_is_one_document_and_folders_are_not_used_twice(run: Run, data: Path, weights: Path) -> None:
    words = ("why", weights, data, "--split", "train", "--score", "0.4", "--iou", "0.3", "roi.score=0.1", "--json")
    document = run(*words).json()
    assert (document["images"], document["objects"], document["iou"], document["score"]) == (4, 4, 0.3, 0.4)
    assert document["out"] == "runs/why/shapes"
    assert document["found"] + sum(entry["count"] for entry in document["lost"].values()) == 4
    assert "lost_objects" not in document
    assert run(*words).json()["out"] == "runs/why/shapes-2"


def test_a_detector_that_only_proposes(run: Run, data: Path, tmp_path: Path) -> None:
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of("mobilenet-fpn", [*SMALL, "roi.head=none"])
    path = tmp_path / "proposes.safetensors"
    Detector(build(settings, len(NAMES)), settings, NAMES, device="cpu").save(path)
    document = run("why", path, data, "--out", tmp_path / "why", "--json").json()
    assert list(document["lost"]) == ["no_anchor", "not_in_top_k", "no_proposal"]
    assert document["false_alarms"] == {}
    assert document["ap"] is None
    outcome = run("why", path, data, "--iou", "0.3")
    assert outcome.code == 2
    assert "counted from an IoU of 0.5 on, got 0.3" in outcome.err


def test_what_is_missing_is_said(run: Run, weights: Path, data: Path) -> None:
    assert run("why", weights).code == 2
    outcome = run("why", weights, data, "--split", "test")
    assert outcome.code == 3
    assert "there is no `test` list" in outcome.err
