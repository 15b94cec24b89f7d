"""What `predict` and `propose` take, and what `train` makes of their results."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcnn
from rcnn.config import Data
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import scenes
from rcnn.images import decode, stream
from rcnn.images.sources import OPENERS, NamedImage
from tests.cli.conftest import SMALL, Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("command", ["predict", "propose"])
@pytest.mark.parametrize(("split", "stems"), [("val", "45"), ("train", "0123"), ("all", "012345")])
def test_a_list_of_a_data_set_is_a_source(
    run: Run, data: Path, weights: Path, command: str, split: str, stems: str
) -> None:
    outcome = run(command, weights, data, "--split", split, "--format", "json", "--json")
    assert outcome.code == 0, outcome.err
    assert [Path(row["path"]).stem for row in outcome.json()] == list(stems)


def test_a_coco_json_gives_the_ids_of_its_images(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    run("data", "convert", data, "--to", "coco", "--out", tmp_path / "copy")
    file = tmp_path / "copy/annotations/val.json"
    tree = json.loads(file.read_text())
    for key, rows in (("id", tree["images"]), ("image_id", tree["annotations"])):
        for row in rows:
            row[key] += 70
    file.write_text(json.dumps(tree))
    assert run("predict", weights, file, "--format", "coco", "--out", "out").code == 0
    assert {row["image_id"] for row in json.loads(Path("out/coco.json").read_text())} == {71, 72}


@pytest.mark.parametrize(
    ("words", "said"),
    [(("{data}", "--split", "test"), "no `test` list"), (("{data}/ImageSets", "--split", "val"), "no data set")],
)
def test_a_source_that_is_no_data_set_is_told(
    run: Run, data: Path, weights: Path, words: tuple[str, ...], said: str
) -> None:
    outcome = run("predict", weights, *(word.format(data=data) for word in words))
    assert (outcome.code, said in outcome.err) == (3, True)


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_what_predict_writes_is_a_data_set(run: Run, data: Path, weights: Path, form: str) -> None:
    (data / "JPEGImages/5.jpg").rename(data / "JPEGImages/4.jpeg")  # two images of one stem
    assert run("predict", weights, data / "JPEGImages", "--format", form, "--out", "out").code == 0
    checked = run("data", "check", f"out/{form}")
    assert (checked.code, "no faults" in checked.out, "6 images" in checked.out) == (0, True, True), checked.out
    planned = run("train", f"out/{form}", "--model", "tiny-fpn", *SMALL, "--dry-run", "--json")
    assert planned.json()["train"]["images"] == 5


class Frames:
    """Synthetic frames of a made-up camera."""

    def __init__(self, address: str) -> None:
        self.count = int(address.partition(":")[2])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[NamedImage]:
        for frame, scene in enumerate(scenes(self.count, size=(60, 80))):
            yield NamedImage(scene.image, f"camera/{frame:04}", frame, frame / 25)


def test_a_registered_source_is_predicted_like_files(
    run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPENERS, "synthetic:", Frames)
    frames = [image.image for image in Frames("synthetic:3")]
    command = ("predict", weights, "synthetic:3", "--format", "drawn,json,coco,voc,yolo")
    assert run(*command, "--out", "frames").code == 0
    for frame, pixels in enumerate(frames):
        assert isinstance(pixels, np.ndarray)
        (tmp_path / "files/camera").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"files/camera/{frame:04}.png")
    assert run(*command[:2], tmp_path / "files", *command[3:], "--out", "as-files").code == 0
    written, expected = (json.loads(Path(out, "results.json").read_text()) for out in ("frames", "as-files"))
    assert [row["path"] for row in written] == [f"camera/{frame:04}" for frame in range(3)]
    assert [row["detections"] for row in written] == [row["detections"] for row in expected]
    for frame in range(3):
        drawn, as_file = (Image.open(f"{out}/drawn/camera/{frame:04}.png") for out in ("frames", "as-files"))
        assert np.array_equal(drawn, as_file)
    assert run("data", "check", "frames/voc/camera").code == run("data", "check", "frames/yolo").code == 0
    found = list(rcnn.load(weights).stream("synthetic:3"))
    assert [(result.origin.frame, result.origin.time, result.name) for result in found] == [
        (frame, frame / 25, f"camera/{frame:04}") for frame in range(3)
    ]


@pytest.mark.parametrize("room", [0, stream.MAX_KEPT_BYTES])
def test_a_predicted_image_is_decoded_once_as_long_as_memory_allows(
    run: Run, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    decoded = Counter[str]()
    read_image = decode.read_image

    def count(path: Path, **settings: Any) -> np.ndarray:
        decoded[Path(path).name] += 1
        return read_image(path, **settings)

    monkeypatch.setattr(stream, "read_image", count)
    monkeypatch.setattr(stream, "MAX_KEPT_BYTES", room)
    for command in ("predict", "propose"):
        decoded.clear()
        assert (
            run(command, weights, data / "JPEGImages", "--format", "drawn,json", "--out", f"{command}-{room}").code == 0
        )
        assert decoded == dict.fromkeys([f"{index}.jpg" for index in range(6)], 1 if room else 2)
    assert run("predict", weights, data / "JPEGImages/0.jpg", "--format", "drawn", "--out", f"one-{room}").code == 0
    assert Path(f"one-{room}/drawn/0.jpg").read_bytes() == Path(f"predict-{room}/drawn/0.jpg").read_bytes()


def test_a_data_set_is_a_source(data: Path, weights: Path) -> None:
    dataset = open_dataset(data, "val", Data())
    results = rcnn.load(weights).predict(dataset)
    assert [result.path for result in results] == [str(record.path) for record in dataset.records]
    assert [result.origin.name for result in results] == [record.name for record in dataset.records]
