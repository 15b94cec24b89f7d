"""Sources of `predict` and `propose`, and their results as data sets."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from cProfile import Profile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import rcnn
from rcnn.cli.stream import Job
from rcnn.cli.writers import FORMATS
from rcnn.config import Data
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import scenes
from rcnn.images import decode, stream
from rcnn.images.sources import OPENERS, NamedImage
from rcnn.result import Result
from tests.cli.conftest import SMALL, Run, read_json

NOTHING = np.zeros(0, dtype=np.float32)
EMPTY = Result(NOTHING.reshape(0, 4), NOTHING, NOTHING.astype(np.int64), ("object",), None, (60, 80))


@pytest.mark.parametrize("command", ["predict", "propose"])
@pytest.mark.parametrize(("split", "stems"), [("val", "45"), ("train", "0123"), ("all", "012345")])
def test_a_list_of_a_data_set_is_a_source(
    run: Run, data: Path, weights: Path, command: str, split: str, stems: str
) -> None:
    outcome = run.ok(command, weights, data, "--split", split, "--format", "json", "--json")
    assert [Path(row["path"]).stem for row in outcome.json()] == list(stems)


def test_a_coco_json_gives_the_ids_of_its_images(run: Run, data: Path, weights: Path) -> None:
    run("data", "convert", data, "--to", "coco", "--out", "copy")
    file = Path("copy/annotations/val.json")
    tree = read_json(file)
    for key, rows in (("id", tree["images"]), ("image_id", tree["annotations"])):
        for row in rows:
            row[key] += 70
    file.write_text(json.dumps(tree))
    run.ok("predict", weights, file, "--format", "coco", "--out", "out")
    assert {row["image_id"] for row in read_json("out/coco.json")} == {71, 72}


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_results_of_predict_are_a_data_set(run: Run, images: Path, weights: Path, form: str) -> None:
    (images / "5.jpg").rename(images / "4.jpeg")  # two images of one stem
    run.ok("predict", weights, images, "--format", form, "--out", "out")
    output = run.ok("data", "check", f"out/{form}").out
    assert ("no faults" in output, "6 images" in output) == (True, True), output
    plan = run.json("train", f"out/{form}", "--model", "tiny-fpn", *SMALL, "--dry-run")
    assert plan["train"]["images"] == 5


class Frames:
    """Synthetic frames of a camera."""

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
    (tmp_path / "files/camera").mkdir(parents=True)
    names = [f"camera/{frame:04}" for frame in range(3)]
    for image in Frames("synthetic:3"):
        assert isinstance(image.image, np.ndarray)
        Image.fromarray(image.image).save(f"files/{image.name}.png")
    for source, out in (("synthetic:3", "frames"), ("files", "as-files")):
        run.ok("predict", weights, source, "--format", "drawn,json,coco,voc,yolo", "--out", out)
    written, expected = (read_json(f"{out}/results.json") for out in ("frames", "as-files"))
    assert [row["path"] for row in written] == names
    assert [row["detections"] for row in written] == [row["detections"] for row in expected]
    for name in names:
        drawn, as_file = (Image.open(f"{out}/drawn/{name}.png") for out in ("frames", "as-files"))
        assert np.array_equal(drawn, as_file)
    for folder in ("frames/voc/camera", "frames/yolo"):
        run.ok("data", "check", folder)
    origins = [result.origin for result in rcnn.load(weights).stream("synthetic:3")]
    assert [(origin.frame, origin.time, origin.name) for origin in origins] == [
        (frame, frame / 25, name) for frame, name in enumerate(names)
    ]


@pytest.mark.parametrize("max_bytes", [0, stream.MAX_KEPT_BYTES])
def test_a_predicted_image_is_decoded_once_as_long_as_memory_allows(
    run: Run, images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int
) -> None:
    read_image = Mock(wraps=decode.read_image)
    monkeypatch.setattr(stream, "read_image", read_image)
    monkeypatch.setattr(stream, "MAX_KEPT_BYTES", max_bytes)
    for command in ("predict", "propose"):
        read_image.reset_mock()
        run.ok(command, weights, images, "--format", "drawn,json")
        decoded = Counter(Path(call.args[0]).name for call in read_image.call_args_list)
        assert decoded == dict.fromkeys([f"{index}.jpg" for index in range(6)], 1 if max_bytes else 2)
    run.ok("predict", weights, images / "0.jpg", "--format", "drawn")
    assert Path("runs/predict-2/drawn/0.jpg").read_bytes() == Path("runs/predict/drawn/0.jpg").read_bytes()


def test_a_data_set_is_a_source(data: Path, weights: Path) -> None:
    dataset = open_dataset(data, "val", Data())
    results = rcnn.load(weights).predict(dataset)
    expected = [(str(record.path), record.name) for record in dataset.records]
    assert [(result.path, result.origin.name) for result in results] == expected


class Names(Sequence[str]):
    """Made-up paths of images, which counts how often one of them is read, also by slicing."""

    def __init__(self, number: int) -> None:
        self.number, self.reads = number, 0

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: Any) -> Any:
        numbers = range(self.number)[index]
        self.reads += len(numbers) if isinstance(numbers, range) else 1
        return [self[number] for number in numbers] if isinstance(numbers, range) else f"photos/{numbers:09}.jpg"


def test_the_work_per_picture_does_not_grow_with_their_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Function calls and read names from the sources to the writers, without files and a detector."""
    monkeypatch.setitem(FORMATS, "json", lambda _: nullcontext(lambda result, name: None))
    calls, reads = [], []
    for number in (1_000, 100_000):
        names, profile = Names(number), Profile()
        monkeypatch.setattr("rcnn.images.sources.file_paths", lambda _, names=names: names)
        profile.enable()
        job = Job(["photos"], Path("out"), "json", None, False, None)
        with job.without_detector():
            job.run((replace(EMPTY, origin=origin) for origin in job.images()), ("object",), {})
        profile.disable()
        calls.append(sum(entry.callcount for entry in profile.getstats()) / number)
        reads.append(names.reads / number)
    assert reads == [1, 1]
    assert calls[1] < 1.05 * calls[0]
