import json
from pathlib import Path

import numpy as np
import pytest

from rcnn.config import Data
from rcnn.data.dataset import Dataset, Record
from rcnn.data.formats.find import open_dataset
from rcnn.data.stats import statistics
from tests.data import sets


def record(name: str, boxes: list[list[float]], labels: list[int], ignore: list[bool]) -> Record:
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Record(Path(name), name, name, (300, 400), corners, np.array(labels, np.int64), np.array(ignore, bool))


def dataset(*records: Record) -> Dataset:
    return Dataset(Path("d"), "voc", "train", ("cat", "dog", "eel"), (1, 2, 3), records)


def test_counts_worked_by_hand() -> None:
    # Areas: 20 x 40 = 800 (small), 64 x 64 = 4096 (medium), 100 x 200 = 20000 (large), 32 x 32 = 1024 (medium).
    first = record("a", [[0, 0, 20, 40], [10, 10, 74, 74], [0, 0, 100, 200]], [1, 1, 0], [False, True, False])
    stats = statistics(dataset(first, record("b", [], [], []), record("c", [[0, 0, 32, 32]], [1], [False])))
    assert (stats.images, stats.empty, stats.boxes, stats.ignored) == (3, 1, 4, 1)
    assert stats.classes == {"cat": 1, "dog": 3, "eel": 0}
    assert stats.class_images == {"cat": 1, "dog": 2, "eel": 0}
    assert (stats.small, stats.medium, stats.large) == (1, 2, 1)
    assert stats.boxes_per_image == {0: 1, 1: 1, 3: 1}
    assert (stats.box_sizes[0], stats.box_sizes[-1]) == pytest.approx((800**0.5, 20000**0.5))
    assert (stats.aspect_ratios[0], stats.aspect_ratios[-1]) == (1, 2)
    assert (stats.heights[3], stats.widths[3]) == (300, 400)


@pytest.mark.parametrize("records", [(), (record("b", [], [], []),)])
def test_no_boxes_is_no_error(records: tuple[Record, ...]) -> None:
    stats = statistics(dataset(*records))
    assert (stats.boxes, stats.box_sizes, stats.classes["cat"]) == (0, (), 0)


def test_figures_are_plain_json(tmp_path: Path) -> None:
    stats = statistics(open_dataset(sets.voc(tmp_path / "d", {"a": [("dog", (5, 5, 20, 20))]}), "all", Data()))
    assert json.loads(json.dumps(stats.to_json()))["classes"] == {"dog": 1}
