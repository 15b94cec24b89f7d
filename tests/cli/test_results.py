"""Our own readers read the results of `predict`: boxes, classes and images, also in subfolders."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.config import Data
from rcnn.data.dataset import Record
from rcnn.data.formats.find import find_layout, open_dataset, read_lists
from rcnn.data.image_checks import ImageChecks
from rcnn.data.proposals.read import read_proposals
from rcnn.detector import Detector
from rcnn.images.sources import NamedImage
from rcnn.result import Result

from .conftest import NAMES, Run

SIZES = {"a.jpg": (60, 80), "below/b.png": (90, 50), "below/deeper/c.jpg": (33, 200)}
FORMATS = "json,coco,voc,yolo"


@pytest.fixture
def found(run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """Made-up results of `predict` by image: large boxes, slivers of less than a pixel and boxes at every edge."""
    results: dict[str, Result] = {}
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(path)
        corners = np.sort(rng.uniform(0, (width, height), (20, 2, 2)), axis=1).reshape(20, 4)
        low = rng.uniform(0, (width - 2, height - 2), (6, 2))
        slivers = np.concatenate((low, low + rng.uniform(0.01, 1.9, (6, 2))), axis=1)
        edges = [[0, 0, width, height], [0, 0, 0.3, height], [width - 0.2, height - 0.6, width, height]]
        edges += [[5, 5, 6, 9], [width - 1, 0, width, 1]]  # a pixel wide
        boxes = np.concatenate((corners, slivers, edges)).astype(np.float32)
        scores = np.linspace(1, 0.5, len(boxes), dtype=np.float32)
        labels, origin = np.arange(len(boxes)) % 2, NamedImage(path, name)
        results[name] = Result(boxes, scores, labels, NAMES, str(path), (height, width), origin=origin)
    monkeypatch.setattr(Detector, "stream", lambda *_, **__: iter(results.values()))
    run.ok("predict", weights, "images", "--format", FORMATS, "--out", "out")
    return results


def assert_read(records: Mapping[str, Record], names: tuple[str, ...], found: Mapping[str, Result]) -> None:
    """Every box was read with its class, within 0.01 pixels."""
    assert records.keys() == found.keys()
    for name, result in found.items():
        record = records[name]
        assert record.size == result.size
        distance = np.abs(record.boxes[:, None] - result.boxes)  # (read, written, 4)
        near = (distance <= 0.01 + 1e-4).all(axis=2)
        classes, expected = np.array(names)[record.labels], np.array(result.names)[result.labels]
        near &= classes[:, None] == expected
        assert near.any(axis=0).all(), f"{name}: {result.boxes[~near.any(axis=0)]}"
        assert near.any(axis=1).all()


@pytest.mark.parametrize("folder", ["", "below", "below/deeper"])
def test_voc_results_are_read(found: dict[str, Result], tmp_path: Path, folder: str) -> None:
    layout = find_layout(tmp_path / "out/voc" / folder)
    (dataset,), faults = read_lists(layout.root, layout, Data(), ImageChecks(layout.root, Data()))
    assert (faults, dataset.faults) == ([], ())
    assert dataset.names == NAMES
    in_folder = {name: result for name, result in found.items() if Path(name).parent == Path(folder)}
    assert_read({f"{folder}/{record.name}".strip("/"): record for record in dataset.records}, NAMES, in_folder)


def test_yolo_results_are_read(found: dict[str, Result], tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path / "out/yolo/data.yaml", "all", Data())
    assert dataset.faults == ()
    records = {record.name.removeprefix("images/"): record for record in dataset.records}
    assert_read(records, dataset.names, found)


def test_coco_results_are_read(found: dict[str, Result], tmp_path: Path) -> None:
    """As the annotations of a data set, and as proposals."""
    rows = json.loads((tmp_path / "out/coco.json").read_text())
    boxes = [{**row, "id": index, "iscrowd": 0, "area": 1} for index, row in enumerate(rows)]
    sizes = {Path(name).name: (name, *size) for name, size in SIZES.items()}
    images = [{"id": id_, "file_name": name, "height": h, "width": w} for id_, (name, h, w) in sizes.items()]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    document = {"images": images, "categories": categories, "annotations": boxes}
    (tmp_path / "images/labels.json").write_text(json.dumps(document))
    dataset = open_dataset(tmp_path / "images/labels.json", "all", Data())
    assert dataset.faults == ()
    assert_read({record.name: record for record in dataset.records}, dataset.names, found)
    by_image = read_proposals(tmp_path / "out/coco.json", dataset.records)
    for record, proposals in zip(dataset.records, by_image, strict=True):
        np.testing.assert_allclose(proposals.boxes, found[record.name].boxes, atol=0.01)
        np.testing.assert_allclose(proposals.scores, found[record.name].scores, atol=1e-5)


def test_json_results_are_read_as_proposals(found: dict[str, Result], tmp_path: Path) -> None:
    no_objects = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
    records = [Record(Path(str(result.path)), name, name, result.size, *no_objects) for name, result in found.items()]
    by_image = read_proposals(tmp_path / "out/results.json", records)
    for result, proposals in zip(found.values(), by_image, strict=True):
        np.testing.assert_allclose(proposals.boxes, result.boxes, atol=0.01)
