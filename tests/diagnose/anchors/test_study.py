"""What `rcnn anchors` prints of four objects, every number worked by hand."""

from collections.abc import Sequence

import pytest
import torch

from rcnn.cli import screen
from rcnn.cli.anchors import show
from rcnn.config import Anchors
from rcnn.diagnose.anchors.fit import objects_of
from rcnn.diagnose.anchors.study import Coverage, Study
from tests.diagnose.anchors.test_fit import frame

TALL, FLAT = [0.0, 0, 16, 32], [0.0, 50, 40, 60]  # sides of 22.6 and 20 px, height / width 2 and 0.25
SQUARE, HIGH = [40.0, 0, 100, 60], [60.0, 20, 100, 72]  # 60 and 45.6 px, 1 and 1.3


def coverage(iou: Sequence[float], positives: Sequence[int]) -> Coverage:
    return Coverage(Anchors(sizes=((16,), (32,))), torch.tensor(iou, dtype=torch.float64), torch.tensor(positives))


@pytest.fixture
def result() -> Study:
    """Now the last object is in an image on which positives were not counted."""
    frames = [frame([TALL, FLAT, SQUARE, HIGH])]
    now = coverage([0.65, 0.25, 0.7, 0.5], [2, 0, 4, -1])
    fitted = coverage([0.9, 0.74, 0.85, 0.31], [1, 5, 9, 10])
    return Study(frames, objects_of(frames), {"now": now, "fitted": fitted}, (0.3, 0.7))


def test_every_table(result: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, list[str], list[list[object]]]] = []
    monkeypatch.setattr(screen, "table", lambda *parts: shown.append(parts))
    show(result)
    overall, by_size, by_aspect, positives = shown
    assert overall[:2] == ("4 objects", ["", "now", "fitted"])
    assert {str(row[0]): row[1:] for row in overall[2]} == {
        "mean IoU with the best anchor": pytest.approx([0.525, 0.7]),
        "recall at IoU 0.5": [0.75, 0.75],
        "recall at IoU 0.7": [0.25, 0.75],
        "objects that no anchor reaches (IoU < 0.3)": [1, 0],
        "positive anchors per object, mean": pytest.approx([2.0, 6.25]),
        "objects without a positive anchor": [1, 0],
    }
    columns, large = ["objects", "IoU", "R@0.5", "R@0.7", "positives"], ["1.00 / 0.50", "0.50 / 0.50", "4.00 / 9.50"]
    assert by_size == (
        "By size: side in pixels of the resized image; now / fitted",
        ["size", *columns],
        [
            ["16 - 32", 2, "0.45 / 0.82", "0.50 / 1.00", "0.00 / 1.00", "1.00 / 3.00"],
            ["32 - 64", 2, "0.60 / 0.58", *large],
        ],
    )
    assert by_aspect == (
        "By aspect: height / width; now / fitted",
        ["aspect", *columns],
        [
            ["< 0.4", 1, "0.25 / 0.74", "0.00 / 1.00", "0.00 / 1.00", "0.00 / 5.00"],
            ["0.7 - 1.4", 2, "0.60 / 0.58", *large],
            ["1.4 - 2.5", 1, "0.65 / 0.90", "1.00 / 1.00", "0.00 / 1.00", "2.00 / 1.00"],
        ],
    )
    assert positives == (
        "Positive anchors per object",
        ["", "now", "fitted"],
        [["0", 1, 0], ["1", 0, 1], ["2 - 4", 2, 0], ["5 - 9", 0, 2], ["10 or more", 0, 1]],
    )


def test_the_document_has_the_same_numbers(result: Study) -> None:
    tree = result.to_json()
    assert (tree["images"], tree["now"]["boxes"], tree["now"]["recall70"]) == (1, 4, 0.25)
    assert tree["now"]["positive_anchors"] == {"0": 1, "1": 0, "2 - 4": 2, "5 - 9": 0, "10 or more": 0}
    assert {name: list(tree["now"][f"by_{name}"]) for name in ("size", "aspect")} == {
        "size": ["16 - 32", "32 - 64"],
        "aspect": ["< 0.4", "0.7 - 1.4", "1.4 - 2.5"],
    }
    assert tree["now"]["by_size"]["16 - 32"] == pytest.approx(
        {
            "boxes": 2,
            "iou": 0.45,
            "recall50": 0.5,
            "recall70": 0.0,
            "unreached": 1,
            "positives": 1.0,
            "without_positive": 1,
        }
    )
