import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.config import Data
from rcnn.data.formats.find import open_dataset
from rcnn.images import decode
from rcnn.images.sources import files
from rcnn.training.distributed import Distributed
from rcnn.weights.file import load_weights, save_weights
from tests.commands import run as limited

from .conftest import NAMES, Run, read_json


def test_every_format_is_written_for_every_image(run: Run, images: Path, weights: Path) -> None:
    out = Path("out")
    run.ok("predict", weights, images, "--out", out, "--format", "drawn,json,coco,voc,yolo")
    assert sorted(path.name for path in (out / "drawn").iterdir()) == [f"{index}.jpg" for index in range(6)]
    with Image.open(out / "drawn/0.jpg") as picture:
        assert picture.size == (80, 60)
    results = read_json(out / "results.json")
    assert [Path(row["path"]).name for row in results] == [f"{index}.jpg" for index in range(6)]
    rows = read_json(out / "coco.json")
    assert len(rows) == sum(len(row["detections"]) for row in results) > 0
    assert {row["image_id"] for row in rows} <= {f"{index}.jpg" for index in range(6)}
    assert (out / "voc/0.xml").read_text().count("<object>") == len(results[0]["detections"])
    assert (out / "yolo/labels/0.txt").read_text().count("\n") == len(results[0]["detections"])
    assert sorted(path.name for path in out.iterdir()) == [".rcnn", "coco.json", "drawn", "results.json", "voc", "yolo"]


def test_the_first_images_are_reported_one_by_one(run: Run, images: Path, weights: Path) -> None:
    for source, more in ((images, ["... and 1 more"]), (images / "[0-4].jpg", [])):
        lines = run("predict", weights, source, "--top", 1).out.splitlines()
        assert [line.split(":")[0] for line in lines[:5]] == [f"{index}.jpg" for index in range(5)]
        assert [line for line in lines if line.startswith("...")] == more


def test_an_image_pyramid_is_a_setting_of_predict_and_val(run: Run, data: Path, images: Path, weights: Path) -> None:
    """With the setting of docs/predict.md and docs/PAPER_MAP.md, the image is processed at three scales."""

    def boxes(*changes: str) -> set[tuple[float, ...]]:
        document = run.json("predict", weights, images / "0.jpg", *changes)
        return {tuple(found["box"]) for found in document[0]["detections"]}

    every_box = ("roi.detections=500", "roi.nms=1")
    by_scale = [boxes(f"predict.scales=[{scale}]", *every_box) for scale in (1, 1.5, 2)]
    assert boxes(*every_box) == by_scale[0]
    assert boxes("predict.scales=[1,1.5,2]", *every_box) == set.union(*by_scale)
    assert len(set.union(*by_scale)) > len(by_scale[0])
    run.ok("val", weights, data, "predict.scales=[1,1.5,2]")


def test_how_pictures_are_processed_is_reported_once(run: Run, data: Path, images: Path, weights: Path) -> None:
    for command, source in (("predict", images), ("propose", images), ("val", data), ("why", data)):
        outcome = run.ok(command, weights, source, "predict.tile=100")
        assert outcome.out.count("80x60 pixels fit into a window (predict.tile=100), so the picture is not cut") == 1
    outcome = run("predict", weights, images, "predict.tile=64")
    assert outcome.out.count("cut by their edges; raise predict.overlap or predict.tile") == 1
    assert "pixels" not in run("predict", weights, images).out
    for change, reason in {
        "predict.tile=auto": "needs the scale of the training, which these weights do not hold",
        "predict.tile=10": "`predict.tile`: off, auto, or the side of the windows in pixels, 64 to 16384 (got 10)",
        "predict.overlap=0.9": "`predict.overlap`: Input should be less than or equal to 0.75 (got 0.9)",
    }.items():
        run.fails(2, reason, "predict", weights, images, change)


def test_a_picture_beyond_the_scale_of_the_training_is_reported(run: Run, weights: Path) -> None:
    tensors, metadata = load_weights(weights)
    save_weights(Path("known.safetensors"), tensors, {**metadata, "summary": {"scale": 0.9}})
    Image.new("RGB", (300, 200)).save("large.png")
    remark = "large.png: 300x200 pixels are resized by 0.32, those of the training by 0.9"
    assert remark in run("predict", "known.safetensors", "large.png").out
    assert remark not in run("predict", "known.safetensors", "large.png", "predict.tile=auto").out


def test_yolo_results_are_a_data_set(run: Run, images: Path, weights: Path) -> None:
    run.ok("predict", weights, images, "--format", "yolo", "--top", 3)
    dataset = open_dataset("runs/predict/yolo/data.yaml", "all", Data())
    assert (dataset.names, len(dataset)) == (NAMES, 6)


def test_json_is_one_document(run: Run, images: Path, weights: Path) -> None:
    outcome = run("predict", weights, images / "0.jpg", "--json", "--format", "voc")
    (row,) = outcome.json()
    assert (row["width"], row["height"]) == (80, 60)
    assert "1 image," in outcome.err


def test_bf16_is_a_setting(run: Run, images: Path, weights: Path) -> None:
    words = ("predict", weights, images / "0.jpg", "--format=json")
    (exact,), (rounded,) = run.json(*words), run.json(*words, "predict.precision=bf16")
    assert exact["detections"] != rounded["detections"]
    assert exact["detections"][0]["score"] == pytest.approx(rounded["detections"][0]["score"], abs=0.01)


def test_a_single_image_is_counted_by_class_in_one_line(run: Run, images: Path, weights: Path) -> None:
    words = ("predict", weights, images / "0.jpg", "--format", "json")
    outcome = run(*words)
    (row,) = read_json("runs/predict/results.json")
    counts = row["counts"]
    assert counts == {name: sum(found["name"] == name for found in row["detections"]) for name in NAMES}
    each = ", ".join(f"{counts[name]} {name}" for name in sorted(NAMES, key=lambda name: -counts[name]))
    assert f"1 image, {sum(counts.values())} boxes: {each}\n" in outcome.out
    assert "0.jpg:" not in outcome.out
    assert run.json(*words)[0]["counts"] == counts
    assert "1 image, 0 boxes\n" in run(*words, "--score", 1).out


def test_several_images_are_counted_by_class_in_a_table(run: Run, images: Path, weights: Path) -> None:
    outcome = run("predict", weights, images, "--format", "json")
    assert "0.jpg: " in outcome.out
    for name in NAMES:
        total = sum(row["counts"].get(name, 0) for row in read_json("runs/predict/results.json"))
        assert [name, str(total), f"{total / 6:.3f}"] in [line.split() for line in outcome.out.splitlines()]


def test_classes_top_and_score_leave_boxes_out(run: Run, images: Path, weights: Path) -> None:
    words = ("predict", weights, images, "--format", "json")
    found, squares, nothing = (
        [image["detections"] for image in run.json(*words, *options)]
        for options in ((), ("--classes", "square", "--top", 2), ("--score", 1))
    )
    assert {row["name"] for rows in squares for row in rows} <= {"square"}
    assert max(map(len, squares)) <= 2 < max(map(len, found))
    assert nothing == [[]] * 6


def test_image_ids_come_from_a_coco_file(run: Run, images: Path, weights: Path) -> None:
    words, file = ("predict", weights, "--images", "ids.json", "--format", "coco"), Path("ids.json")
    file.write_text(json.dumps({"images": [{"id": 70 + i, "file_name": f"{i}.jpg"} for i in range(3)]}))
    run.ok(*words, images / "2.jpg")
    assert {row["image_id"] for row in read_json("runs/predict/coco.json")} == {72}
    run.fails(3, "5.jpg: not among the images of", *words, images / "5.jpg")
    file.write_text("[" * 100_000)
    run.fails(3, "ids.json: can't be read as a COCO json with `images`", *words, images / "2.jpg")


def test_images_of_one_name_do_not_overwrite_each_other(run: Run, images: Path, weights: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(images / "0.jpg", tmp_path / folder)
    Image.new("RGB", (50, 40)).save("a/0.png")
    out = Path("out")
    run.ok("predict", weights, "a", "b/*.jpg", "--out", out, "--format", "drawn,voc,coco")
    assert {row["image_id"] for row in read_json(out / "coco.json")} == {"a/0.jpg", "0.png", "b/0.jpg"}
    files_in = {folder: sorted(path.name for path in (out / folder).iterdir()) for folder in ("drawn/a", "voc/a")}
    assert files_in["drawn/a"] == ["0.jpg", "0.png"]
    assert files_in["voc/a"] == ["0.jpg.jpg", "0.jpg.xml", "0.png.png", "0.png.xml"]
    others = {str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent.name != "a"}
    assert others == {".rcnn", "coco.json", "drawn/b/0.jpg", "voc/b/0.jpg", "voc/b/0.xml"}
    read = open_dataset(out / "voc/a", "all", Data(), names=NAMES)
    assert [(record.name, record.size) for record in read.records] == [("0.jpg.jpg", (60, 80)), ("0.png.png", (40, 50))]


def test_a_second_run_writes_to_another_folder(run: Run, images: Path, weights: Path) -> None:
    for _ in range(2):
        run.ok("predict", weights, images / "0.jpg", "--out", "out", "--format", "json")
    assert Path("out/results.json").exists()
    assert Path("out-2/results.json").exists()


def test_drawn_images_are_never_a_source(
    run: Run, images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{index}.jpg" for index in range(6)]
    monkeypatch.chdir(images)
    run.ok("predict", weights, ".", "--top", 1)
    assert sorted(path.name for path in Path("runs/predict/drawn").iterdir()) == names
    for source in (".", "**/*.jpg", "*"):
        assert [file.name for file in files(source)] == names
    assert len(files("runs/predict/drawn")) == 6
    run.fails(3, "there are only results of rcnn here", "predict", weights, "runs")


def test_settings_change_the_prediction(run: Run, images: Path, weights: Path) -> None:
    document = run.json("predict", weights, images, "roi.detections=1")
    assert {len(image["detections"]) for image in document} == {1}


def test_a_broken_image_is_named_and_the_results_before_it_are_kept(run: Run, images: Path, weights: Path) -> None:
    (images / "3.jpg").write_bytes(b"not an image")
    run.fails(3, "3.jpg", "predict", weights, images, "--format", "json", "--on-fault", "stop")
    assert 2 <= len(read_json("runs/predict/results.json")) <= 3


def test_a_broken_image_can_be_left_out(run: Run, images: Path, weights: Path) -> None:
    (images / "1.jpg").write_bytes(b"not an image")
    words = ("predict", weights, images, "--format", "json", "--on-fault")
    outcome = run.ok(*words, "skip")
    assert "1.jpg" in outcome.out
    assert "left out as unreadable: 1 image" in outcome.out
    names = {Path(image["path"]).name for image in read_json("runs/predict/results.json")}
    assert names == {path.name for path in images.iterdir()} - {"1.jpg"}
    run.fails(2, "--on-fault: unknown `perhaps`", *words, "perhaps")


@pytest.mark.parametrize("broken", ["0", "012345"])
def test_one_broken_image_of_many_is_left_out_by_default(run: Run, images: Path, weights: Path, broken: str) -> None:
    for stem in broken:
        (images / f"{stem}.jpg").write_bytes(b"not an image")
    outcome = run("predict", weights, images, "--format", "json")
    assert f"left out as unreadable: {len(broken)} image" in outcome.out
    assert outcome.code == (0 if broken == "0" else 3)
    assert ("none of the 6 images can be read" in outcome.err) == (broken != "0")
    run.fails(3, "0.jpg", "predict", weights, images / "0.jpg", "--format", "json")


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left on device. Free space"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "propose"])
def test_ctrl_c_and_a_full_disk_keep_the_results_so_far(
    run: Run, images: Path, weights: Path, end: BaseException, code: int, message: str, command: str
) -> None:
    pixels = [decode.read_image(images / f"{index}.jpg") for index in range(6)]
    with patch("rcnn.images.stream.read_image", side_effect=[*pixels[:3], end, *pixels[4:]]):
        outcome = run.fails(code, message, command, weights, images, "--format", "json", "roi.detections=3")
    assert f"results of 3 images are in runs/{command}" in outcome.out
    assert len(read_json(f"runs/{command}/results.json")) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked")
@pytest.mark.parametrize("format", ["voc", "yolo", "drawn"])
def test_a_file_that_cannot_be_written_completely_is_named_and_does_not_stay(
    images: Path, weights: Path, tmp_path: Path, format: str
) -> None:
    for path in images.glob("*.jpg"):
        pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels if path.stem == "3" else pixels[:20, :20]).save(path, quality=100)
    words = ["predict", weights, images, "--format", format, "--out", tmp_path / "out"]
    ended = limited(tmp_path, words, [(resource.RLIMIT_FSIZE, 12_000)])
    assert ended.code == 1, ended.output
    assert re.search(rf"error: .*File too large: '\S*/{format}/\S*3\.jpg'", ended.output.replace("\n", "")), (
        ended.output
    )
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".rcnn"]
    assert {path.stem for path in written} == {"0", "1", "2"} | ({"data"} if format == "yolo" else set())
    for path in written:
        assert path.stat().st_size or path.suffix == ".txt"  # without boxes
        if path.suffix == ".jpg":
            decode.read_image(path)


@pytest.mark.parametrize("command", ["predict", "propose"])
@pytest.mark.parametrize("change", ["unlink", "folder"])
def test_an_image_that_disappears_while_the_command_runs_is_left_out(
    run: Run, images: Path, weights: Path, command: str, change: str
) -> None:
    path, read = images / "4.jpg", decode.read_image

    def changing(file: Path, **options: object) -> np.ndarray:
        pixels = read(file, **options)
        if path.is_file():
            path.unlink()
            if change == "folder":
                path.mkdir()
        return pixels

    with patch("rcnn.images.stream.read_image", side_effect=changing):
        outcome = run(command, weights, images, "--format", "json", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "left out as unreadable: 1 image" in outcome.out
    assert f"left out: {path}: " in outcome.out + outcome.err
    assert [Path(row["path"]).stem for row in read_json("out/results.json")] == list("01235")


def test_an_image_that_disappears_before_it_is_copied_is_left_out_of_every_format(
    run: Run, images: Path, weights: Path
) -> None:
    copy = shutil.copyfile

    def losing(source: str, target: Path) -> object:
        Path(source).unlink() if Path(source).stem == "2" else None
        return copy(source, target)

    with patch("rcnn.images.storage.shutil.copyfile", side_effect=losing):
        outcome = run("predict", weights, images, "--format", "json,yolo,coco", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "5 images" in outcome.out
    assert "left out as unreadable: 1 image" in outcome.out
    assert "2.jpg: the image can't be copied: No such file or directory" in outcome.out + outcome.err
    assert [Path(row["path"]).stem for row in read_json("out/results.json")] == list("01345")
    assert {path.stem for path in Path("out/yolo/labels").iterdir()} == set("01345")
    assert {path.stem for path in Path("out/yolo/images").iterdir()} == set("01345")


def test_weights_that_are_not_finite_are_an_error(run: Run, data: Path, weights: Path) -> None:
    tensors, metadata = load_weights(weights)
    broken = {name: tensor * (torch.nan if name.startswith("rpn.head") else 1) for name, tensor in tensors.items()}
    save_weights(Path("broken.safetensors"), broken, metadata)
    for command in ("predict", "propose", "val"):
        run.fails(1, "not finite", command, "broken.safetensors", data)


class Half(Distributed):
    """One of two processes. What it gathers is its own value twice, since the other one runs at another time."""

    def gather(self, part: object) -> list:
        return [part, part]


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Run commands as one of two processes and then as the other: the second first, as the first merges the parts."""
    monkeypatch.setattr("rcnn.cli.stream.fresh_folder", lambda path: path)

    def ranks() -> Iterator[int]:
        for rank in (1, 0):
            process = nullcontext(Half(torch.device("cpu"), rank, 2))
            monkeypatch.setattr("rcnn.cli.stream.join_processes", lambda _, process=process: process)
            yield rank

    return ranks()


def test_several_processes_share_the_images_and_keep_their_order(
    run: Run, images: Path, weights: Path, halves: Iterator[int]
) -> None:
    out = Path("out")
    out.mkdir()
    for _ in halves:
        run.ok("predict", weights, images, "--out", out, "--format", "json,coco,yolo")
    assert [Path(row["path"]).stem for row in read_json(out / "results.json")] == list("012345")
    assert len({row["image_id"] for row in read_json(out / "coco.json")}) == 6
    assert sorted(path.name for path in out.iterdir()) == ["coco.json", "results.json", "yolo"]


def test_processes_agree_on_the_names_of_labels(run: Run, weights: Path, tmp_path: Path, halves: Iterator[int]) -> None:
    """One process has `a.jpg` and the other `a.png`: names must not depend on the files that already exist."""
    out, names = Path("out"), ("a.jpg", "a.jpg.png", "a.png")
    (tmp_path / "images").mkdir()
    for name in (*names, "b.jpg"):
        Image.new("RGB", (50, 40)).save(f"images/{name}")
    out.mkdir()
    for _ in halves:
        run.ok("predict", weights, "images", "--out", out, "--format", "voc,yolo")
        for path in out.rglob("a*"):  # hide the files of one process from the other
            path.rename(tmp_path / path.name)
    written = {path.name for path in tmp_path.glob("a*")}
    assert written == {f"{name}{suffix}" for name in names for suffix in (".xml", ".txt", Path(name).suffix)}
    others = ["voc/b.jpg", "voc/b.xml", "yolo/data.yaml", "yolo/images/b.jpg", "yolo/labels/b.txt"]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == others


def test_when_one_process_fails_the_results_of_all_are_kept(
    run: Run, images: Path, weights: Path, halves: Iterator[int]
) -> None:
    (images / "4.jpg").write_bytes(b"not an image")
    Path("out").mkdir()
    for rank in halves:
        outcome = run("predict", weights, images, "--out", "out", "--format", "json", "--on-fault", "stop")
        assert outcome.code == (3 if rank else 0)
    assert [Path(row["path"]).stem for row in read_json("out/results.json")] == list("0123")


def test_proposals_are_written_in_every_format(run: Run, images: Path, weights: Path) -> None:
    run.ok("propose", weights, images / "0.jpg", "--top", 5, "--format", "drawn,json,coco,voc,yolo", "--out", "o")
    rows = read_json("o/coco.json")
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("0.jpg", 1)] * 5
    assert Path("o/voc/0.xml").read_text().count("<name>object</name>") == 5
    assert Path("o/yolo/labels/0.txt").read_text().count("\n") == 5
    assert "object" in Path("o/yolo/data.yaml").read_text()
    assert Path("o/drawn/0.jpg").exists()


def test_proposals_are_class_agnostic_and_at_most_top(run: Run, images: Path, weights: Path) -> None:
    document = run.json("propose", weights, images, "--top", 7)
    assert {len(image["detections"]) for image in document} == {7}
    assert {row["name"] for image in document for row in image["detections"]} == {"object"}
