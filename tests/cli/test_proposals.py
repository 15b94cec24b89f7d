"""Proposals from elsewhere on the command line: an RPN alone, its file, Fast R-CNN on it; and searches."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcnn.data.proposals.search as search_file
from rcnn.data.proposals.external import ImageProposals, ranked
from tests.data.proposals.edges import write_edge_model

from .conftest import Outcome

Run = Callable[..., Outcome]
TINY = [
    "--model=tiny-fpn",
    "--epochs=1",
    "--device=cpu",
    "preprocess.short=64",
    "preprocess.long=96",
    "model.channels=8",
    "roi.hidden=16",
    "rpn.post_train=30",
    "rpn.post_test=20",
    "train.init=none",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and results of the test lie in its own folder, and nothing is drawn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("start.draw_start", "recorders.standard.plot_history", "summary.draw_end"):
        monkeypatch.setattr(f"rcnn.training.{name}", lambda *_: None)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were searched; the search, which has tests of its own, finds two boxes."""
    shapes: list[tuple[int, ...]] = []

    def search(image: np.ndarray, mode: str) -> ImageProposals:
        shapes.append(image.shape)
        return ranked(np.array([[10.0, 10, 50, 40], [0, 0, 80, 60]]))

    monkeypatch.setattr(search_file, "selective_search", search)
    return shapes


def test_an_rpn_alone_then_fast_rcnn_on_what_it_proposes(run: Run, data: Path, tmp_path: Path) -> None:
    alone = run("train", data, *TINY, "roi.head=none", "--name", "rpn", "--json").json()
    assert "train_rpn_box" in alone["epochs"][0]
    assert "AR300" in (Path(alone["folder"]) / "log.txt").read_text()
    assert f"rcnn propose {alone['folder']} {data.name} --split val" in (Path(alone["folder"]) / "log.txt").read_text()
    outcome = run("propose", alone["best"], data, "--out", "boxes")
    assert outcome.code == 0, outcome.err
    file = tmp_path / "boxes/results.json"
    given = json.loads(file.read_text())
    assert len(given) == 6
    assert {len(image["detections"]) for image in given} <= set(range(1, 21))

    words = ("train", data, *TINY, "train.scheme=fast-rcnn", "train.proposals=boxes/results.json", "--name", "fast")
    trained = run(*words, "--json").json()
    assert {key for key in trained["epochs"][0] if key.startswith("train_")} == {
        *("train_roi_class", "train_roi_box", "train_loss")
    }
    assert "--proposals FILE|selective-search" in (Path(trained["folder"]) / "log.txt").read_text()

    for command in (
        ("val", trained["best"], data),
        ("predict", trained["best"], data),
        ("propose", trained["best"], data),
        ("why", trained["best"], data),
        ("explain", trained["best"], data / "JPEGImages/0.jpg"),
    ):
        outcome = run(*command)
        assert outcome.code == 2
        assert "`predict` and `val` take as --proposals FILE or --proposals selective-search" in outcome.err
    assert not (tmp_path / "runs/predict").exists()

    scores = run("val", trained["best"], data, "--proposals", file, "--json").json()
    theirs = run("val", alone["best"], data, "--json").json()
    assert scores["images"] == 2
    assert scores["proposals"] == pytest.approx(theirs["proposals"], abs=0.05)  # the file's boxes are rounded

    words = ("predict", trained["best"], data / "JPEGImages", "--proposals", file, "--score", "0", "--format", "json")
    outcome = run(*words, "--batch", "4", "--json")
    assert [Path(image["path"]).name for image in outcome.json()] == [f"{index}.jpg" for index in range(6)]
    assert all(image["detections"] for image in outcome.json())


def test_selective_search_in_all_commands_searches_an_image_once(
    run: Run, data: Path, searched: list[tuple[int, ...]], weights: Path
) -> None:
    document = run("propose", "selective-search", data, "--json").json()
    assert searched == [(60, 80, 3)] * 6
    assert [[entry["box"] for entry in image["detections"]] for image in document] == [
        [[10, 10, 50, 40], [0, 0, 80, 60]]
    ] * 6
    words = ("train", data, *TINY, "train.scheme=fast-rcnn", "train.proposals=selective-search")
    trained = run(*words, "--json").json()
    assert trained["proposal_ar300"] == 1
    scores = run("val", trained["best"], data, "--proposals", "selective-search", "--json").json()
    assert scores["proposals"]["ar300"] == 1
    outcome = run("predict", weights, data, "--proposals", "selective-search", "--score", "0", "--json")
    assert len(outcome.json()) == 6
    assert len(searched) == 6
    run("propose", "selective-search-quality", data, "--top", "1", "--out", "quality")
    assert len(searched) == 12
    assert [len(image["detections"]) for image in json.loads(Path("quality/results.json").read_text())] == [1] * 6


def test_edge_boxes_in_all_commands_need_the_model_file(
    run: Run, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search, which has tests of its own, finds two boxes."""
    found = ranked(np.array([[10.0, 10, 50, 40], [0, 0, 80, 60]]))
    monkeypatch.setattr(search_file, "edge_boxes", lambda image, detect: found)
    write_edge_model(tmp_path / "model.yml.gz")
    train = ("train", data, *TINY, "train.scheme=fast-rcnn", "train.proposals=edge-boxes")
    propose, val = ("propose", "edge-boxes", data), ("val", weights, data, "--proposals", "edge-boxes")
    predict = ("predict", weights, data, "--proposals", "edge-boxes", "--score", "0")
    for words in (propose, train, val, predict):
        outcome = run(*words)
        assert outcome.code == 2
        assert "edge-boxes needs OpenCV's model file: data.edge_model=PATH, from https://" in outcome.err
        outcome = run(*words, "data.edge_model=nowhere.yml.gz")
        assert outcome.code == 2
        assert "data.edge_model=nowhere.yml.gz: there is no such file" in outcome.err
    assert not (tmp_path / "runs/train").exists()
    model = "data.edge_model=model.yml.gz"
    document = run(*propose, model, "--json").json()
    assert [[entry["box"] for entry in image["detections"]] for image in document] == [found.boxes.tolist()] * 6
    trained = run(*train, model, "--json").json()
    assert trained["proposal_ar300"] == 1
    config = (Path(trained["folder"]) / "config.yaml").read_text()
    assert f"edge_model: {tmp_path.resolve() / 'model.yml.gz'}" in config
    assert run(*val, model, "--json").json()["proposals"]["ar300"] == 1
    assert len(run(*predict, model, "--json").json()) == 6


def test_sliding_windows_in_all_commands(run: Run, data: Path, weights: Path) -> None:
    """Images of 60 x 80 become 64 x 85 pixels, in which a map of stride 16 has 4 x 6 cells."""
    one_map = ("preprocess.short=64", "model.neck=none", "model.levels=[4]", "anchors.sizes=[[16,32,64]]")
    document = run("propose", "sliding-windows", data, *one_map, "--json").json()
    assert [len(image["detections"]) for image in document] == [4 * 6 * 9] * 6
    boxes = np.array([entry["box"] for entry in document[0]["detections"]])
    assert (boxes >= 0).all()
    assert (boxes <= [80, 60, 80, 60]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    few = run("propose", "sliding-windows", data, *one_map, "--top", "7", "--out", "few", "--json").json()
    assert [entry["box"] for entry in few[0]["detections"]] == boxes[:7].tolist()

    words = ("train", data, *TINY, "train.scheme=fast-rcnn", "--proposals", "sliding-windows", "--json")
    trained = run(*words).json()
    assert {key for key in trained["epochs"][0] if key.startswith("train_")} == {
        *("train_roi_class", "train_roi_box", "train_loss")
    }
    assert run("train", data, *TINY, "train.scheme=fast-rcnn", "--proposals", "sliding-windows", "--dry-run").code == 0
    scores = run("val", trained["best"], data, "--proposals", "sliding-windows", "--json").json()
    assert scores["ap50"] == pytest.approx(trained["ap50"], nan_ok=True)
    outcome = run("predict", weights, data, "--proposals", "sliding-windows", "--score", "0", "--json")
    assert len(outcome.json()) == 6
    for command in ("val", "predict", "propose", "why"):
        outcome = run(command, trained["best"], data)
        assert outcome.code == 2
        assert "take as --proposals sliding-windows" in outcome.err
    outcome = run("train", data, *TINY, "--proposals", "sliding-windows")
    assert outcome.code == 2
    assert "only train.scheme=fast-rcnn reads train.proposals=sliding-windows (got joint)" in outcome.err
    outcome = run("propose", "sliding-windows", data, "anchors.sizes=[[16]]")
    assert outcome.code == 2
    assert "anchors.sizes has 1 levels" in outcome.err


def test_an_unreadable_image_is_left_out_where_asked(
    run: Run, data: Path, searched: list[tuple[int, ...]], weights: Path
) -> None:
    (data / "JPEGImages/3.jpg").write_bytes((data / "JPEGImages/3.jpg").read_bytes()[:700])
    (data / "JPEGImages/4.jpg").write_bytes(b"")
    for words in (("propose", "selective-search"), ("predict", weights, "--proposals", "selective-search")):
        outcome = run(*words, data, "--on-fault", "stop")
        assert outcome.code == 3
        assert "3.jpg" in outcome.err
        outcome = run(*words, data, "--on-fault", "skip", "--format", "json", "--json")
        assert outcome.code == 0, outcome.err
        assert [Path(image["path"]).stem for image in outcome.json()] == ["0", "1", "2", "5"]
        assert outcome.err.count("left out: ") == 2


def test_a_list_stands_for_its_images(run: Run, data: Path, searched: list[tuple[int, ...]], tmp_path: Path) -> None:
    run("data", "convert", data, "--to", "coco", "--out", tmp_path / "coco")
    (file,) = (path for path in (tmp_path / "coco").rglob("*.json") if "val" in path.name)
    document = run("propose", "selective-search", file, "--json").json()
    assert [Path(image["path"]).stem for image in document] == ["4", "5"]


def test_bad_proposals_are_told(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text(json.dumps({f"{index}": [[0, 0, 9, 9], [0, 0, 99, 9]] for index in (4, 5)} | {"x.jpg": []}))
    for words in (("val", weights, data), ("predict", weights, *(data / f"JPEGImages/{i}.jpg" for i in (4, 5)))):
        outcome = run(*words, "--proposals", file)
        assert outcome.code == 3
        for said in (
            "3 faults in the proposals:",
            f"{file}: image `4`, row 2: the box (0, 0, 99, 9) is outside the image of 80 x 60 pixels",
            f"{file}: image `5`, row 2: the box",
            f"{file}: image `x.jpg`, row 0: the data has no such image",
        ):
            assert said in outcome.err
    assert not (tmp_path / "runs").exists()
    outcome = run("val", weights, data, "--proposals", "selective-serch")
    assert outcome.code == 3
    assert "proposals come as .json, .npz, .mat, or from selective-search" in outcome.err


def test_without_a_second_stage_proposals_are_refused(run: Run, data: Path) -> None:
    alone = run("train", data, *TINY, "roi.head=none", "--json").json()
    outcome = run("val", alone["best"], data, "--proposals", "selective-search")
    assert outcome.code == 2
    assert "proposals are for a second stage, and this detector has none" in outcome.err


def test_proposals_lie_in_the_pixels_of_the_file(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    """Whatever the size of an image, a box of the file comes out where it went in: the head's deltas are small."""
    Image.new("RGB", (160, 240), "grey").save(tmp_path / "tall.png")
    box = [40.0, 60.0, 120.0, 200.0]
    (tmp_path / "given.json").write_text(json.dumps({"tall": [box]}))
    words = ("predict", weights, tmp_path / "tall.png", "--proposals", tmp_path / "given.json", "roi.score=0")
    (image,) = run(*words, "--score", "0", "--json").json()
    assert image["detections"]
    for found in image["detections"]:
        np.testing.assert_allclose(found["box"], box, atol=8)
