import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from rcnn.config import Data
from rcnn.data.formats.find import open_dataset
from rcnn.images.sources import files
from rcnn.training.distributed import Distributed
from rcnn.weights.file import load_weights, save_weights

from .conftest import NAMES, Outcome

Run = Callable[..., Outcome]


def test_every_format_is_written_for_every_image(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run("predict", weights, data / "JPEGImages", "--out", out, "--format", "drawn,json,coco,voc,yolo")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (out / "drawn").iterdir()) == [f"{index}.jpg" for index in range(6)]
    with Image.open(out / "drawn/0.jpg") as picture:
        assert picture.size == (80, 60)
    results = json.loads((out / "results.json").read_text())
    assert [Path(row["path"]).name for row in results] == [f"{index}.jpg" for index in range(6)]
    rows = json.loads((out / "coco.json").read_text())
    assert len(rows) == sum(len(row["detections"]) for row in results) > 0
    assert {row["image_id"] for row in rows} <= {f"{index}.jpg" for index in range(6)}
    assert (out / "voc/0.xml").read_text().count("<object>") == len(results[0]["detections"])
    assert (out / "yolo/labels/0.txt").read_text().count("\n") == len(results[0]["detections"])
    assert sorted(path.name for path in out.iterdir()) == [".rcnn", "coco.json", "drawn", "results.json", "voc", "yolo"]


def test_the_first_images_are_told_one_by_one(run: Run, data: Path, weights: Path) -> None:
    for source, more in ((data / "JPEGImages", ["... and 1 more"]), (data / "JPEGImages/[0-4].jpg", [])):
        lines = run("predict", weights, source, "--top", 1).out.splitlines()
        assert [line.split(":")[0] for line in lines[:5]] == [f"{index}.jpg" for index in range(5)]
        assert [line for line in lines if line.startswith("...")] == more


def test_an_image_pyramid_is_a_setting_of_predict_and_val(run: Run, data: Path, weights: Path) -> None:
    """The setting as docs/predict.md and docs/PAPER_MAP.md have it: the image is processed at three scales."""

    def boxes(*changes: str) -> set[tuple[float, ...]]:
        document = run("predict", weights, data / "JPEGImages/0.jpg", "--json", *changes).json()
        return {tuple(found["box"]) for found in document[0]["detections"]}

    whole = ("roi.detections=500", "roi.nms=1")
    one_by_one = [boxes(f"predict.scales=[{scale}]", *whole) for scale in (1, 1.5, 2)]
    assert boxes(*whole) == one_by_one[0]
    assert boxes("predict.scales=[1,1.5,2]", *whole) == set.union(*one_by_one)
    assert len(set.union(*one_by_one)) > len(one_by_one[0])
    outcome = run("val", weights, data, "predict.scales=[1,1.5,2]", "--json")
    assert outcome.code == 0, outcome.err


def test_how_pictures_are_seen_is_said_once(run: Run, data: Path, weights: Path) -> None:
    commands = ("predict", data / "JPEGImages"), ("propose", data / "JPEGImages"), ("val", data), ("why", data)
    for command, source in commands:
        outcome = run(command, weights, source, "predict.tile=100")
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("80x60 pixels fit into a window (predict.tile=100), so the picture is not cut") == 1
    outcome = run("predict", weights, data / "JPEGImages", "predict.tile=64")
    assert outcome.out.count("cut by their edges; raise predict.overlap or predict.tile") == 1
    assert "pixels" not in run("predict", weights, data / "JPEGImages").out
    for change, reason in {
        "predict.tile=auto": "needs the scale of the training, which these weights do not hold",
        "predict.tile=10": "`predict.tile`: off, auto, or the side of the windows in pixels, 64 to 16384 (got 10)",
        "predict.overlap=0.9": "`predict.overlap`: Input should be less than or equal to 0.75 (got 0.9)",
    }.items():
        outcome = run("predict", weights, data / "JPEGImages", change)
        assert outcome.code == 2
        assert reason in outcome.err


def test_a_picture_beyond_the_scale_of_the_training_is_named(run: Run, weights: Path, tmp_path: Path) -> None:
    tensors, about = load_weights(weights)
    save_weights(tmp_path / "known.safetensors", tensors, {**about, "summary": {"scale": 0.9}})
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    said = "large.png: 300x200 pixels are resized by 0.32, those of the training by 0.9"
    assert said in run("predict", "known.safetensors", "large.png").out
    assert said not in run("predict", "known.safetensors", "large.png", "predict.tile=auto").out


def test_yolo_results_are_a_data_set(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("predict", weights, data / "JPEGImages", "--out", out, "--format", "yolo", "--top", 3).code == 0
    dataset = open_dataset(out / "yolo/data.yaml", "all", Data())
    assert dataset.names == NAMES
    assert len(dataset) == 6


def test_json_is_one_document(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    outcome = run("predict", weights, data / "JPEGImages/0.jpg", "--json", "--format", "voc", "--out", tmp_path / "o")
    (row,) = outcome.json()
    assert (row["width"], row["height"]) == (80, 60)
    assert "1 image," in outcome.err


def test_bf16_is_a_setting(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    words = ("predict", weights, data / "JPEGImages/0.jpg", "--json", "--format=json", "--out", tmp_path / "o")
    (exact,), (rounded,) = (run(*words, *more).json() for more in ([], ["predict.precision=bf16"]))
    assert exact["detections"] != rounded["detections"]
    assert exact["detections"][0]["score"] == pytest.approx(rounded["detections"][0]["score"], abs=0.01)


def test_a_single_image_is_counted_by_class_in_one_line(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    words = ("predict", weights, data / "JPEGImages/0.jpg", "--format", "json")
    outcome = run(*words, "--out", tmp_path / "a")
    (row,) = json.loads((tmp_path / "a/results.json").read_text())
    counts = row["counts"]
    assert counts == {name: sum(found["name"] == name for found in row["detections"]) for name in NAMES}
    each = ", ".join(f"{counts[name]} {name}" for name in sorted(NAMES, key=lambda name: -counts[name]))
    assert f"1 image, {sum(counts.values())} boxes: {each}\n" in outcome.out
    assert "0.jpg:" not in outcome.out
    (row,) = run(*words, "--json", "--out", tmp_path / "b").json()
    assert row["counts"] == counts
    assert "1 image, 0 boxes\n" in run(*words, "--score", 1, "--out", tmp_path / "c").out


def test_several_images_are_counted_by_class_in_a_table(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    outcome = run("predict", weights, data / "JPEGImages", "--format", "json", "--out", tmp_path / "a")
    rows = json.loads((tmp_path / "a/results.json").read_text())
    assert "0.jpg: " in outcome.out
    for name in NAMES:
        total = sum(row["counts"].get(name, 0) for row in rows)
        assert [name, str(total), f"{total / 6:.3f}"] in [line.split() for line in outcome.out.splitlines()]


def test_classes_top_and_score_leave_boxes_out(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    common = ["predict", weights, data / "JPEGImages", "--json", "--format", "json"]
    every = run(*common, "--out", tmp_path / "a").json()
    squares = run(*common, "--out", tmp_path / "b", "--classes", "square", "--top", 2).json()
    nothing = run(*common, "--out", tmp_path / "c", "--score", 1).json()
    assert {row["name"] for image in squares for row in image["detections"]} <= {"square"}
    assert max(len(image["detections"]) for image in squares) <= 2 < max(len(image["detections"]) for image in every)
    assert [image["detections"] for image in nothing] == [[]] * 6


def test_image_ids_come_from_a_coco_file(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    listed = tmp_path / "ids.json"
    listed.write_text(json.dumps({"images": [{"id": 70 + i, "file_name": f"{i}.jpg"} for i in range(3)]}))
    common = ["predict", weights, "--images", listed, "--format", "coco", "--out", tmp_path / "o"]
    assert run(*common, data / "JPEGImages/2.jpg").code == 0
    assert {row["image_id"] for row in json.loads((tmp_path / "o/coco.json").read_text())} == {72}
    missing = run(*common, data / "JPEGImages/5.jpg")
    assert missing.code == 3
    assert "5.jpg: not among the images of" in missing.err


def test_image_ids_nested_without_end_are_a_sentence(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[" * 100_000)
    ended = run("predict", weights, data / "JPEGImages/2.jpg", "--images", tmp_path / "ids.json")
    assert ended.code == 3
    assert "ids.json: can't be read as a COCO json with `images`" in ended.err
    assert "Traceback" not in ended.err


def test_images_of_one_name_do_not_overwrite_each_other(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(data / "JPEGImages/0.jpg", tmp_path / folder)
    Image.new("RGB", (50, 40)).save(tmp_path / "a/0.png")
    out = tmp_path / "out"
    words = ("--out", out, "--format", "drawn,voc,coco")
    assert run("predict", weights, tmp_path / "a", tmp_path / "b/*.jpg", *words).code == 0
    ids = {row["image_id"] for row in json.loads((out / "coco.json").read_text())}
    assert ids == {"a/0.jpg", "0.png", "b/0.jpg"}
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.name != ".rcnn")
    assert written == [
        "coco.json",
        "drawn/a/0.jpg",
        "drawn/a/0.png",
        "drawn/b/0.jpg",
        "voc/a/0.jpg.jpg",
        "voc/a/0.jpg.xml",
        "voc/a/0.png.png",
        "voc/a/0.png.xml",
        "voc/b/0.jpg",
        "voc/b/0.xml",
    ]
    read = open_dataset(out / "voc/a", "all", Data(), names=NAMES)
    assert [(record.name, record.size) for record in read.records] == [("0.jpg.jpg", (60, 80)), ("0.png.png", (40, 50))]


def test_a_second_run_leaves_the_first_alone(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            run("predict", weights, data / "JPEGImages/0.jpg", "--out", tmp_path / "out", "--format", "json").code == 0
        )
    assert (tmp_path / "out/results.json").exists()
    assert (tmp_path / "out-2/results.json").exists()


def test_what_was_drawn_is_never_predicted_on(
    run: Run, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [f"{index}.jpg" for index in range(6)]
    monkeypatch.chdir(data / "JPEGImages")
    assert run("predict", weights, ".", "--top", 1).code == 0
    assert sorted(path.name for path in Path("runs/predict/drawn").iterdir()) == images
    for source in (".", "**/*.jpg", "*"):
        assert [file.name for file in files(source)] == images
    assert len(files("runs/predict/drawn")) == 6
    above = run("predict", weights, "runs")
    assert above.code == 3
    assert "there are only results of rcnn here" in above.err


def test_settings_change_the_prediction(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    outcome = run("predict", weights, data / "JPEGImages", "roi.detections=1", "--json", "--out", tmp_path / "o")
    assert {len(image["detections"]) for image in outcome.json()} == {1}
    other = run("predict", weights, data / "JPEGImages", "model.channels=16")
    assert other.code == 2
    assert "the weights are made for other layers" in other.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{weights}", "nowhere/*.jpg"], 3, "no such file, folder or glob"),
        (["nowhere.safetensors", "{image}"], 4, "nowhere.safetensors"),
        (["{image}", "{image}"], 4, "0.jpg"),
        (["{weights}", "{image}", "--classes", "dog"], 2, "unknown `dog`; there are circle, square"),
        (["{weights}", "{image}", "--format", "xls"], 2, "unknown `xls`; there are drawn, json"),
        (["{weights}", "{image}", "roi.nsm=0.3"], 2, "did you mean `roi.nms`?"),
        (["{weights}", "roi.nms=0.3"], 2, "SOURCE is missing"),
    ],
)
def test_bad_input_is_told(
    run: Run, data: Path, weights: Path, words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    image = str(data / "JPEGImages/0.jpg")
    outcome = run("predict", *(word.format(weights=weights, image=image) for word in words))
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_broken_image_is_named_and_what_was_found_is_kept(
    run: Run, data: Path, weights: Path, tmp_path: Path
) -> None:
    (data / "JPEGImages/3.jpg").write_bytes(b"not an image")
    words = ("predict", weights, data / "JPEGImages", "--out", tmp_path / "o", "--format", "json")
    outcome = run(*words, "--on-fault", "stop")
    assert outcome.code == 3
    assert "3.jpg" in outcome.err
    assert 2 <= len(json.loads((tmp_path / "o/results.json").read_text())) <= 3


def test_a_broken_image_can_be_left_out(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    (data / "JPEGImages/1.jpg").write_bytes(b"not an image")
    words = ("predict", weights, data / "JPEGImages", "--out", tmp_path / "o", "--format", "json")
    outcome = run(*words, "--on-fault", "skip")
    assert outcome.code == 0, outcome.err
    assert "1.jpg" in outcome.out
    assert "left out as unreadable: 1 image" in outcome.out
    names = {Path(image["path"]).name for image in json.loads((tmp_path / "o/results.json").read_text())}
    assert names == {path.name for path in (data / "JPEGImages").iterdir()} - {"1.jpg"}
    assert run(*words, "--on-fault", "perhaps").code == 2


@pytest.mark.parametrize("broken", ["0", "012345"])
def test_one_broken_image_of_many_is_left_out_by_default(run: Run, data: Path, weights: Path, broken: str) -> None:
    for stem in broken:
        (data / f"JPEGImages/{stem}.jpg").write_bytes(b"not an image")
    outcome = run("predict", weights, data / "JPEGImages", "--format", "json")
    assert f"left out as unreadable: {len(broken)} image" in outcome.out
    assert outcome.code == (0 if broken == "0" else 3)
    assert ("none of the 6 images can be read" in outcome.err) == (broken != "0")
    assert run("predict", weights, data / "JPEGImages/0.jpg", "--format", "json").code == 3


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("command", ["predict", "propose"])
def test_ctrl_c_and_a_full_disk_keep_what_was_found(
    run: Run,
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: BaseException,
    command: str,
) -> None:
    from rcnn.images import decode

    read, seen = decode.read_image, []

    def stop(path: Path, **options: object) -> object:
        seen.append(path)
        if len(seen) == 4:
            raise end
        return read(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("rcnn.images.stream.read_image", stop)
    outcome = run(
        command, weights, data / "JPEGImages", "--out", tmp_path / "o", "--format", "json", "roi.detections=3"
    )
    assert outcome.code == (130 if isinstance(end, KeyboardInterrupt) else 1)
    assert "Traceback" not in outcome.err
    assert ("interrupted" if outcome.code == 130 else "No space left on device. Make room") in outcome.err
    assert f"results of 3 images are in {tmp_path / 'o'}" in outcome.out
    assert len(json.loads((tmp_path / "o/results.json").read_text())) == 3


def test_weights_that_are_not_finite_are_an_error_not_an_empty_image(
    run: Run, data: Path, weights: Path, tmp_path: Path
) -> None:
    from rcnn.detector import Detector

    broken = tmp_path / "broken.safetensors"
    detector = Detector.load(weights, "cpu")
    with torch.no_grad():
        for name, tensor in detector.model.named_parameters():
            if name.startswith("rpn.head"):
                tensor.fill_(torch.nan)
    detector.save(broken)
    for command in ("predict", "propose", "val"):
        outcome = run(command, broken, data if command == "val" else data / "JPEGImages/0.jpg")
        assert outcome.code == 1
        assert "not finite" in outcome.err


class Half(Distributed):
    """One of two processes, whose numbers count twice, since the other one runs at another time."""

    def gather(self, thing: object) -> list:
        return [thing, thing]


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let commands be one of two processes, and then the other: the second first, as the first puts all together."""
    monkeypatch.setattr("rcnn.cli.stream.fresh_folder", lambda path: path)

    def ranks() -> Iterator[int]:
        for rank in (1, 0):
            distributed = Half(torch.device("cpu"), rank, 2)
            monkeypatch.setattr("rcnn.cli.stream.join_processes", lambda _, half=distributed: nullcontext(half))
            yield rank

    return ranks()


def test_several_processes_share_the_images_and_keep_their_order(
    run: Run, data: Path, weights: Path, tmp_path: Path, halves: Iterator[int]
) -> None:
    out = tmp_path / "o"
    out.mkdir()
    for _ in halves:
        outcome = run("predict", weights, data / "JPEGImages", "--out", out, "--format", "json,coco,yolo")
        assert outcome.code == 0, outcome.err
    stems = [Path(row["path"]).stem for row in json.loads((out / "results.json").read_text())]
    assert stems == ["0", "1", "2", "3", "4", "5"]
    assert len({row["image_id"] for row in json.loads((out / "coco.json").read_text())}) == 6
    assert sorted(path.name for path in out.iterdir()) == ["coco.json", "results.json", "yolo"]


def test_processes_agree_on_the_names_of_labels(
    run: Run, data: Path, weights: Path, tmp_path: Path, halves: Iterator[int]
) -> None:
    """`a.jpg` is one process's and `a.png` the other's: neither may look at which file is there first."""
    images, out = tmp_path / "images", tmp_path / "o"
    for name in ("a.jpg", "a.png", "b.jpg", "a.jpg.png"):
        images.mkdir(exist_ok=True)
        Image.new("RGB", (50, 40)).save(images / name)
    out.mkdir()
    for _ in halves:
        assert run("predict", weights, images, "--out", out, "--format", "voc,yolo").code == 0
        for path in out.rglob("a*"):  # as if both had looked before either wrote
            path.rename(tmp_path / path.name)
    names = ("a.jpg", "a.jpg.png", "a.png")
    written = {path.name for path in tmp_path.glob("a*")}
    assert written == {f"{name}{suffix}" for name in names for suffix in (".xml", ".txt", Path(name).suffix)}
    left = ["voc/b.jpg", "voc/b.xml", "yolo/data.yaml", "yolo/images/b.jpg", "yolo/labels/b.txt"]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == left


def test_when_one_process_fails_the_results_of_all_are_kept(
    run: Run, data: Path, weights: Path, tmp_path: Path, halves: Iterator[int]
) -> None:
    (data / "JPEGImages/4.jpg").write_bytes(b"not an image")
    out = tmp_path / "o"
    out.mkdir()
    for rank in halves:
        words = ("--out", out, "--format", "json", "--on-fault", "stop")
        outcome = run("predict", weights, data / "JPEGImages", *words)
        assert outcome.code == (3 if rank else 0)
    stems = [Path(row["path"]).stem for row in json.loads((out / "results.json").read_text())]
    assert stems == ["0", "1", "2", "3"]


def test_proposals_are_written_in_every_format(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    words = ("propose", weights, data / "JPEGImages/0.jpg", "--top", 5, "--format", "drawn,json,coco,voc,yolo")
    assert run(*words, "--out", tmp_path / "o").code == 0
    rows = json.loads((tmp_path / "o/coco.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("0.jpg", 1)] * 5
    assert (tmp_path / "o/voc/0.xml").read_text().count("<name>object</name>") == 5
    assert (tmp_path / "o/yolo/labels/0.txt").read_text().count("\n") == 5
    assert "object" in (tmp_path / "o/yolo/data.yaml").read_text()
    assert (tmp_path / "o/drawn/0.jpg").exists()


def test_proposals_are_class_agnostic_and_at_most_top(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    outcome = run("propose", weights, data / "JPEGImages", "--top", 7, "--json", "--out", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    assert {len(image["detections"]) for image in outcome.json()} == {7}
    assert {row["name"] for image in outcome.json() for row in image["detections"]} == {"object"}
