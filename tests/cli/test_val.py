import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.cli.val import show
from tests.test_shown import metrics

from .conftest import Outcome

Run = Callable[..., Outcome]


def test_scores_by_class_and_of_proposals(run: Run, data: Path, weights: Path) -> None:
    outcome = run("val", weights, data, "--out", "scores")
    assert "scores/report.html" in outcome.out
    assert "2 images of shapes, list val" in Path("scores/report.html").read_text(encoding="utf-8")
    assert outcome.code == 0, outcome.err
    for text in ("circle", "square", "AP50", "AR@300", "2 images"):
        assert text in outcome.out


def test_of_many_classes_those_without_boxes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show(metrics(80))
    shown = capsys.readouterr().out
    assert "AP by class (without boxes here: 1 of 80)" in shown
    assert "class 78 " in shown
    assert "class 79 " not in shown
    show(metrics(3))
    assert "class 2 " in capsys.readouterr().out


def test_json_is_one_document(run: Run, data: Path, weights: Path) -> None:
    outcome = run("val", weights, data, "--split", "train", "--json", "--imgsz", 32)
    assert "a shorter side of 32 pixels (preprocess.short), the longer at most 48 (preprocess.long)" in outcome.err
    document = outcome.json()
    assert document["images"] == 4
    assert [row["class"] for row in document["classes"]] == ["circle", "square"]
    assert 0 <= document["ap"] <= 1
    assert set(document["proposals"]) == {"ar50", "ar100", "ar300", "ar1000"}


def test_eleven_points_are_named_wherever_they_are_shown(run: Run, data: Path, weights: Path) -> None:
    words = ("val", weights, data, "--split", "train")
    area, points = (run(*words, *more, "--json").json() for more in ([], ["val.voc_ap=11-point"]))
    assert "voc07_ap50" in points
    assert "voc_ap50" not in points
    for one, other in zip(area.pop("classes"), points.pop("classes"), strict=True):
        assert isinstance(one.pop("voc_ap50"), float)
        assert isinstance(other.pop("voc07_ap50"), float)
        assert one == other
    assert isinstance(area.pop("voc_ap50"), float)
    assert isinstance(points.pop("voc07_ap50"), float)
    assert area == points
    outcome = run(*words, "val.voc_ap=11-point", "--out", "points")
    page = Path("points/report.html").read_text(encoding="utf-8")
    kept = json.loads(Path("points/report/scores.json").read_text(encoding="utf-8"))
    assert kept["voc_ap"] == "11-point"
    for text in (outcome.out, page):
        assert "VOC07 AP50 (11-point)" in text
        assert "(area)" not in text


def test_eleven_points_asked_of_cocos_ap_are_refused_before_anything_is_read(run: Run, weights: Path) -> None:
    outcome = run("why", weights, "no-such-data", "val.voc_ap=11-point")
    assert outcome.code == 2
    assert "`why` counts AP as COCO does" in outcome.err
    outcome = run("train", "no-such-data", "roi.head=none", "val.voc_ap=11-point")
    assert outcome.code == 2
    assert "scored by recall alone" in outcome.err


def test_the_seed_chooses_what_the_losses_are_of_and_nothing_else(run: Run, data: Path, weights: Path) -> None:
    words = ("val", weights, data, "--split", "train", "rpn.samples=4", "--json")
    first, again, other = (run(*words, "--seed", seed).json() for seed in (0, 0, 1))
    assert first == again
    assert first["losses"] != other["losses"]
    assert first["proposals"] == other["proposals"]


def test_bf16_is_a_setting_of_prediction(run: Run, data: Path, weights: Path) -> None:
    exact, rounded = (run("val", weights, data, *more, "--json").json() for more in ([], ["predict.precision=bf16"]))
    assert exact["losses"] != rounded["losses"]
    assert rounded["losses"]["loss"] == pytest.approx(exact["losses"]["loss"], rel=0.01)


def test_ctrl_c_is_said(run: Run, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rcnn.evaluate.evaluate", press)
    outcome = run("val", weights, data, "--json")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.endswith("error: interrupted\n")


def test_a_split_that_is_not_there(run: Run, data: Path, weights: Path) -> None:
    outcome = run("val", weights, data, "--split", "test")
    assert outcome.code == 3
    assert "there is no `test` list" in outcome.err


def test_a_class_that_the_detector_lacks(run: Run, data: Path, weights: Path) -> None:
    file = data / "Annotations/4.xml"
    file.write_text(file.read_text().replace("circle", "cirle"))
    outcome = run("val", weights, data)
    assert outcome.code == 3
    assert "4.xml" in outcome.err
    assert "cirle" in outcome.err
    assert run("val", weights, data, "--on-fault", "skip").code == 0
