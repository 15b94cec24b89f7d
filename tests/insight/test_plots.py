from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.data.dataset import Record
from rcnn.insight.plots import plot_confusion, plot_curves, plot_history, plot_labels, plot_proposal_recall
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.curves import precision_recall
from rcnn.metrics.proposals import proposal_recall
from rcnn.metrics.types import Prediction, Truth


def images(count: int, classes: int) -> tuple[list[Truth], list[Prediction]]:
    rng = np.random.default_rng(0)
    truths = []
    for _ in range(count):
        low = rng.uniform(0, 200, (4, 2))
        boxes = np.concatenate((low, low + rng.uniform(5, 150, (4, 2))), 1)
        truths.append(Truth(boxes, rng.integers(0, classes, 4), np.zeros(4, bool)))
    return truths, [Prediction(t.boxes + rng.normal(0, 3, (4, 4)), rng.random(4), t.labels) for t in truths]


def check(folder: Path) -> None:
    """One whole picture that can be read, and nothing beside it."""
    (path,) = folder.iterdir()
    with Image.open(path) as picture:
        picture.load()
        assert picture.width >= 1000
        assert len(picture.convert("L").getcolors() or []) > 5


ROW = {"epoch": 1, "rpn_box": 0.5, "val_rpn_box": 0.6, "roi_box": 0.1, "ap": 0.2, "ap50": None, "lr": 0.01}


@pytest.mark.parametrize("rows", [[], [ROW], [ROW, {"epoch": 2, "ap": float("nan")}, ROW | {"epoch": 3}]])
def test_history_of_any_length(tmp_path: Path, rows: list) -> None:
    plot_history(rows, tmp_path / "p.png")
    check(tmp_path)


@pytest.mark.parametrize(("count", "classes"), [(6, 3), (40, 80), (0, 2)])
def test_curves(tmp_path: Path, count: int, classes: int) -> None:
    names = [f"a class with a long name {k}" for k in range(classes)]
    plot_curves(precision_recall(*images(count, classes), classes), names, tmp_path / "p.png")
    check(tmp_path)


@pytest.mark.parametrize(("count", "classes"), [(6, 3), (20, 40), (0, 2), (6, 1)])
def test_confusion(tmp_path: Path, count: int, classes: int) -> None:
    matrix = confusion_matrix(*images(count, classes), classes)
    plot_confusion(matrix, [str(k) for k in range(classes)], tmp_path / "p.png")
    check(tmp_path)


@pytest.mark.parametrize("count", [5, 0])
def test_proposal_recall(tmp_path: Path, count: int) -> None:
    truths, predictions = images(count, 2)
    metrics = proposal_recall(truths, [(p.boxes, p.scores) for p in predictions])
    plot_proposal_recall(metrics, tmp_path / "p.png")
    check(tmp_path)


@pytest.mark.parametrize(("count", "classes"), [(8, 3), (20, 40), (0, 2)])
def test_labels(tmp_path: Path, count: int, classes: int) -> None:
    truths, _ = images(count, classes)
    records = [Record(Path("a"), "a", "a", (400, 400), t.boxes, t.labels, t.ignore) for t in truths]
    empty = Record(Path("b"), "b", "b", (40, 40), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    plot_labels([*records, empty] if count else [], [str(k) for k in range(classes)], tmp_path / "p.png")
    check(tmp_path)


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    """Matplotlib reads text between dollars as mathematics, and fails on a broken formula."""
    names = [r"$\frac", "_hidden"]
    plot_curves(precision_recall(*images(4, 2), 2), names, tmp_path / "p.png")
    plot_confusion(confusion_matrix(*images(4, 2), 2), names, tmp_path / "p.png")
    check(tmp_path)
