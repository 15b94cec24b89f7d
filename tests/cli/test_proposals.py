"""External proposals on the command line: an RPN alone, its file, Fast R-CNN on it; and searches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcnn.data.proposals.search as search_file
from rcnn.data.proposals.external import ImageProposals, ranked
from tests.data.proposals.edges import write_edge_model

from .conftest import SMALL, Run, read_json, save_detector

TINY = ("--model=tiny-fpn", "--epochs=1", "--device=cpu", "rpn.post_train=30", *SMALL)
FAST_RCNN = (*TINY, "train.scheme=fast-rcnn")
FOUND = ranked(np.array([[10.0, 10, 50, 40], [0, 0, 80, 60]]))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test are in its own folder, and nothing is drawn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("start.draw_start", "recorders.standard.plot_history", "summary.draw_end"):
        monkeypatch.setattr(f"rcnn.training.{name}", lambda *_: None)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were searched by a fake search, which finds two boxes."""
    shapes: list[tuple[int, ...]] = []

    def search(image: np.ndarray, mode: str) -> ImageProposals:
        shapes.append(image.shape)
        return FOUND

    monkeypatch.setattr(search_file, "selective_search", search)
    return shapes


def assert_trains_the_second_stage_only(document: dict[str, Any]) -> None:
    losses = {key for key in document["epochs"][0] if key.startswith("train_")}
    assert losses == {"train_roi_class", "train_roi_box", "train_loss"}


def test_an_rpn_alone_then_fast_rcnn_on_its_proposals(run: Run, data: Path) -> None:
    alone, file = run.json("train", data, *TINY, "roi.head=none", "--name", "rpn"), "boxes/results.json"
    assert "train_rpn_box" in alone["epochs"][0]
    log = Path(alone["folder"], "log.txt").read_text()
    assert "AR300" in log
    assert f"rcnn propose {alone['folder']} {data.name} --split val" in log
    run.ok("propose", alone["best"], data, "--out", "boxes")
    counts = [len(image["detections"]) for image in read_json(file)]
    assert len(counts) == 6
    assert set(counts) <= set(range(1, 21))

    trained = run.json("train", data, *FAST_RCNN, f"train.proposals={file}", "--name", "fast")
    assert_trains_the_second_stage_only(trained)
    assert "--proposals FILE|selective-search" in Path(trained["folder"], "log.txt").read_text()

    best = trained["best"]
    message = "`predict` and `val` take as --proposals FILE or --proposals selective-search"
    for command in ("val", "predict", "propose", "why"):
        run.fails(2, message, command, best, data)
    run.fails(2, message, "explain", best, data / "JPEGImages/0.jpg")
    assert not Path("runs/predict").exists()

    scores = run.json("val", best, data, "--proposals", file)
    own_scores = run.json("val", alone["best"], data)
    assert scores["images"] == 2
    assert scores["proposals"] == pytest.approx(own_scores["proposals"], abs=0.05)  # the file's boxes are rounded

    options = ("--proposals", file, "--score", "0", "--format", "json", "--batch", "4")
    document = run.json("predict", best, data / "JPEGImages", *options)
    assert [Path(image["path"]).name for image in document] == [f"{index}.jpg" for index in range(6)]
    assert all(image["detections"] for image in document)


def test_selective_search_in_all_commands_searches_an_image_once(
    run: Run, data: Path, searched: list[tuple[int, ...]], weights: Path
) -> None:
    option = ("--proposals", "selective-search")
    document = run.json("propose", "selective-search", data)
    assert searched == [(60, 80, 3)] * 6
    assert [[entry["box"] for entry in image["detections"]] for image in document] == [FOUND.boxes.tolist()] * 6
    trained = run.json("train", data, *FAST_RCNN, *option)
    assert trained["proposal_ar300"] == 1
    assert run.json("val", trained["best"], data, *option)["proposals"]["ar300"] == 1
    assert len(run.json("predict", weights, data, *option, "--score", "0")) == 6
    assert len(searched) == 6
    document = run.json("propose", "selective-search-quality", data, "--top", "1")
    assert len(searched) == 12
    assert [len(image["detections"]) for image in document] == [1] * 6


def test_edge_boxes_in_all_commands_need_the_model_file(
    run: Run, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_file, "edge_boxes", lambda image, detect: FOUND)
    write_edge_model(tmp_path / "model.yml.gz")
    option = ("--proposals", "edge-boxes")
    propose, train = ("propose", "edge-boxes", data), ("train", data, *FAST_RCNN, *option)
    val, predict = ("val", weights, data, *option), ("predict", weights, data, *option, "--score", "0")
    for words in (propose, train, val, predict):
        run.fails(2, "edge-boxes needs OpenCV's model file: data.edge_model=PATH, from https://", *words)
        run.fails(2, "data.edge_model=nowhere.yml.gz: there is no such file", *words, "data.edge_model=nowhere.yml.gz")
    assert not Path("runs/train").exists()
    model = "data.edge_model=model.yml.gz"
    document = run.json(*propose, model)
    assert [[entry["box"] for entry in image["detections"]] for image in document] == [FOUND.boxes.tolist()] * 6
    trained = run.json(*train, model)
    assert trained["proposal_ar300"] == 1
    config = Path(trained["folder"], "config.yaml").read_text()
    assert f"edge_model: {tmp_path.resolve() / 'model.yml.gz'}" in config
    assert run.json(*val, model)["proposals"]["ar300"] == 1
    assert len(run.json(*predict, model)) == 6


def test_sliding_windows_in_all_commands(run: Run, data: Path, weights: Path) -> None:
    """Images of 60 x 80 become 64 x 85 pixels, in which a map of stride 16 has 4 x 6 cells."""
    one_map = ("preprocess.short=64", "model.neck=none", "model.levels=[4]", "anchors.sizes=[[16,32,64]]")
    document = run.json("propose", "sliding-windows", data, *one_map)
    assert [len(image["detections"]) for image in document] == [4 * 6 * 9] * 6
    boxes = np.array([entry["box"] for entry in document[0]["detections"]])
    assert (boxes >= 0).all()
    assert (boxes <= [80, 60, 80, 60]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    best = run.json("propose", "sliding-windows", data, *one_map, "--top", "7")
    assert [entry["box"] for entry in best[0]["detections"]] == boxes[:7].tolist()

    option = ("--proposals", "sliding-windows")
    trained = run.json("train", data, *FAST_RCNN, *option)
    assert_trains_the_second_stage_only(trained)
    run.ok("train", data, *FAST_RCNN, *option, "--dry-run")
    assert run.json("val", trained["best"], data, *option)["ap50"] == pytest.approx(trained["ap50"], nan_ok=True)
    assert len(run.json("predict", weights, data, *option, "--score", "0")) == 6
    for command in ("val", "predict", "propose", "why"):
        run.fails(2, "take as --proposals sliding-windows", command, trained["best"], data)
    message = "only train.scheme=fast-rcnn reads train.proposals=sliding-windows (got joint)"
    run.fails(2, message, "train", data, *TINY, *option)
    run.fails(2, "anchors.sizes has 1 levels", "propose", "sliding-windows", data, "anchors.sizes=[[16]]")


def test_an_unreadable_image_is_left_out_with_on_fault_skip(
    run: Run, images: Path, searched: list[tuple[int, ...]], weights: Path
) -> None:
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:700])
    (images / "4.jpg").write_bytes(b"")
    for words in (("propose", "selective-search"), ("predict", weights, "--proposals", "selective-search")):
        run.fails(3, "3.jpg", *words, images, "--on-fault", "stop")
        outcome = run.ok(*words, images, "--on-fault", "skip", "--format", "json", "--json")
        assert [Path(image["path"]).stem for image in outcome.json()] == ["0", "1", "2", "5"]
        assert outcome.err.count("left out: ") == 2


def test_a_list_is_a_source_of_its_images(run: Run, data: Path, searched: list[tuple[int, ...]]) -> None:
    run("data", "convert", data, "--to", "coco", "--out", "coco")
    document = run.json("propose", "selective-search", "coco/annotations/val.json")
    assert [Path(image["path"]).stem for image in document] == ["4", "5"]


def test_bad_proposals_are_reported(run: Run, data: Path, weights: Path) -> None:
    rows = {f"{index}": [[0, 0, 9, 9], [0, 0, 99, 9]] for index in (4, 5)}
    Path("bad.json").write_text(json.dumps(rows | {"x.jpg": []}))
    for words in (("val", weights, data), ("predict", weights, *(data / f"JPEGImages/{i}.jpg" for i in (4, 5)))):
        outcome = run.fails(3, "3 faults in the proposals:", *words, "--proposals", "bad.json")
        for fault in (
            "bad.json: image `4`, row 2: the box (0, 0, 99, 9) is outside the image of 80 x 60 pixels",
            "bad.json: image `5`, row 2: the box",
            "bad.json: image `x.jpg`, row 0: the data has no such image",
        ):
            assert fault in outcome.err
    assert not Path("runs").exists()
    message = "proposals come as .json, .npz, .mat, or from selective-search"
    run.fails(3, message, "val", weights, data, "--proposals", "selective-serch")


def test_without_a_second_stage_proposals_are_refused(run: Run, data: Path, tmp_path: Path) -> None:
    alone = save_detector(tmp_path / "rpn.safetensors", "tiny-fpn", *SMALL, "roi.head=none")
    message = "proposals are for a second stage, and this detector has none"
    run.fails(2, message, "val", alone, data, "--proposals", "selective-search")


def test_proposals_are_in_pixels_of_the_file(run: Run, weights: Path) -> None:
    """For any size of the image, a box of the file stays in its place, as the deltas of the head are small."""
    Image.new("RGB", (160, 240), "grey").save("tall.png")
    box = [40.0, 60.0, 120.0, 200.0]
    Path("boxes.json").write_text(json.dumps({"tall": [box]}))
    options = ("--proposals", "boxes.json", "roi.score=0", "--score", "0")
    (image,) = run.json("predict", weights, "tall.png", *options)
    assert image["detections"]
    for found in image["detections"]:
        np.testing.assert_allclose(found["box"], box, atol=8)
