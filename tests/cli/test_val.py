from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from rcnn.cli.val import show
from rcnn.images import decode
from tests.test_shown import metrics

from .conftest import Run, read_json


def test_scores_by_class_and_of_proposals(run: Run, data: Path, weights: Path) -> None:
    output = run.ok("val", weights, data, "--out", "scores").out
    assert "2 images of shapes, list val" in Path("scores/report.html").read_text(encoding="utf-8")
    for text in ("circle", "square", "AP50", "AR@300", "2 images", "scores/report.html"):
        assert text in output


def test_with_many_classes_those_without_boxes_are_only_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show(metrics(80))
    output = capsys.readouterr().out
    assert "AP by class (without boxes here: 1 of 80)" in output
    assert "class 78 " in output
    assert "class 79 " not in output
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


def test_eleven_point_ap_has_another_name(run: Run, data: Path, weights: Path) -> None:
    words = ("val", weights, data, "--split", "train")
    area, points = run.json(*words), run.json(*words, "val.voc_ap=11-point")
    rows_of_area, rows_of_points = area.pop("classes"), points.pop("classes")
    for with_area, with_points in zip([area, *rows_of_area], [points, *rows_of_points], strict=True):
        assert isinstance(with_area.pop("voc_ap50"), float)
        assert isinstance(with_points.pop("voc07_ap50"), float)
        assert with_area == with_points
    output = run(*words, "val.voc_ap=11-point", "--out", "points").out
    assert read_json("points/report/scores.json")["voc_ap"] == "11-point"
    for text in (output, Path("points/report.html").read_text(encoding="utf-8")):
        assert "VOC07 AP50 (11-point)" in text
        assert "(area)" not in text


def test_the_seed_changes_only_the_losses(run: Run, data: Path, weights: Path) -> None:
    words = ("val", weights, data, "--split", "train", "rpn.samples=4")
    first, again, other = (run.json(*words, "--seed", seed) for seed in (0, 0, 1))
    assert first == again
    assert first["losses"] != other["losses"]
    assert first["proposals"] == other["proposals"]


def test_bf16_is_a_setting_of_prediction(run: Run, data: Path, weights: Path) -> None:
    words = ("val", weights, data)
    exact, rounded = run.json(*words), run.json(*words, "predict.precision=bf16")
    assert exact["losses"] != rounded["losses"]
    # bfloat16 keeps eight bits, and kernels differ in what they round; a box near a threshold may change its class.
    assert rounded["losses"]["loss"] == pytest.approx(exact["losses"]["loss"], rel=2**-5)


def test_ctrl_c_is_reported(run: Run, data: Path, weights: Path) -> None:
    with patch("rcnn.evaluate.evaluate", side_effect=KeyboardInterrupt):
        outcome = run.fails(130, "error: interrupted\n", "val", weights, data, "--json")
    assert outcome.out == ""


def test_a_class_that_the_detector_lacks_is_a_fault(run: Run, data: Path, weights: Path) -> None:
    file = data / "Annotations/4.xml"
    file.write_text(file.read_text().replace("circle", "cirle"))
    outcome = run.fails(3, "4.xml", "val", weights, data)
    assert "cirle" in outcome.err
    run.ok("val", weights, data, "--on-fault", "skip")


@pytest.mark.parametrize("change", ["gone", "folder", "larger"])
def test_an_image_that_changes_while_the_command_runs_is_named(
    run: Run, data: Path, weights: Path, change: str
) -> None:
    path = data / "JPEGImages/2.jpg"
    read = decode.read_image

    def changing(file: Path, **options: object) -> np.ndarray:
        if Path(file) == path:
            path.unlink()
            if change == "folder":
                path.mkdir()
            elif change == "larger":
                Image.new("RGB", (300, 200)).save(path)
        return read(file, **options)

    reasons = {"gone": "there is no such file", "folder": "this is a folder", "larger": "the image has 300x200 pixels"}
    with patch("rcnn.images.stream.read_image", side_effect=changing):
        run.fails(3, f"2.jpg: {reasons[change]}", "val", weights, data, "--split", "train")
