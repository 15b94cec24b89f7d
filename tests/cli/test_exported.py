"""Exported files in the commands."""

from pathlib import Path

import pytest

from rcnn.cli.loading import load_detector
from rcnn.errors import SettingsError
from tests.cli.conftest import Run
from tests.runtime import graphs


@pytest.fixture(scope="module", params=graphs.WRITE)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / f"best.{request.param}"
    return graphs.WRITE[request.param](path, graphs.detector())


def test_predict_and_propose_work_on_the_file_alone(run: Run, exported: Path, data: Path) -> None:
    images = data / "JPEGImages"
    (first, *_) = run.json("predict", exported, images, "--batch", 4)
    assert first["counts"] == {"square": 1, "circle": 1}
    assert first["detections"][0]["box"] == pytest.approx([8, 12, 40, 36], abs=0.01)
    (first, *_) = run.json("propose", exported, images, "--top", 1)
    assert [detection["name"] for detection in first["detections"]] == ["object"]
    run.fails(2, "roi.score: fixed in the exported file", "predict", exported, images / "0.jpg", "roi.score=0.1")


def test_val_gives_everything_but_losses(run: Run, exported: Path, data: Path) -> None:
    document = run.json("val", exported, data)
    assert (document["losses"], document["images"]) == ({}, 2)
    assert 0 <= document["ap"] <= 1
    assert document["proposals"]["ar300"] > 0


def test_inspect_shows_what_the_export_fixed(run: Run, exported: Path, tmp_path: Path) -> None:
    document = run.json("inspect", exported)
    assert document["exported"] == {"size": None, "svd": [], "parity": {"images": 6, "agreement": 1.0}}
    assert [row["name"] for row in document["classes"]] == list(graphs.NAMES)
    assert (document["threshold"], document["licence"], document["types"]) == (0.25, "CC0", ["float32"])
    output = run("inspect", exported).out
    for text in ("best", "a detector of 2 classes, exported", "for any size; agreement 1.000; images 6"):
        assert text in output
    fixed = graphs.write_onnx(tmp_path / "fixed.onnx", graphs.detector(), (64, 96))
    assert "for 64 x 96 pixels" in run("inspect", fixed).out


def test_commands_that_need_the_network_refuse_the_file(run: Run, exported: Path, data: Path, tmp_path: Path) -> None:
    picture = data / "JPEGImages/0.jpg"
    for code, words, message in (
        (2, ("why", exported, data), "only detects and proposes"),
        (2, ("explain", exported, picture), "only detects and proposes"),
        (2, ("export", exported), "only detects and proposes"),
        (2, ("export", exported, "--int8", "--data", data, "--out", "int8.xml"), "only detects and proposes"),
        (2, ("anchors", data, "--model", exported), "only detects and proposes"),
        (2, ("predict", exported, picture, "--proposals", "selective-search"), "uses only its own proposals"),
        (2, ("val", exported, data, "--proposals", "selective-search"), "uses only its own proposals"),
        (4, ("train", data, "--init", exported), "an exported file can't be trained"),
        (2, ("train", data, "--model", exported), "no model is called"),
        (4, ("import", exported, "--arch", "fasterrcnn_resnet50_fpn"), "a graph can't be imported"),
    ):
        run.fails(code, message, *words)
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


def test_a_file_runs_on_the_cpu_unless_the_user_chooses_another_device(exported: Path) -> None:
    assert load_detector(str(exported), [], "cuda:0").device.type == "cpu"
    with pytest.raises(SettingsError, match="runs on the CPU here; got `cuda:0`"):
        load_detector(str(exported), [], "cuda:0", "cuda:0")


def test_a_shard_is_continued_with_the_same_file_only(run: Run, exported: Path, data: Path) -> None:
    words = ("--shard", "1/1", "--out", "out", "--resume")
    run.ok("predict", exported, data / "JPEGImages", *words)
    assert "6 images" in run.ok("predict", exported, data / "JPEGImages", *words).out
    other = graphs.WRITE[exported.suffix[1:]](
        Path(f"other{exported.suffix}").absolute(), graphs.detector("predict.score=0.3")
    )
    message = f"out/1-of-1 was begun with the model {exported} (digest"
    run.fails(2, message, "predict", other, data / "JPEGImages", *words)
