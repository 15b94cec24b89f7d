"""The messages at the start of a training."""

from pathlib import Path

import numpy as np
import pytest

from rcnn.data.dataset import Dataset, Record
from rcnn.presets import settings_of
from rcnn.training.summary import DETECTOR, SMALL_SET, detector_hint


@pytest.mark.parametrize(
    ("images", "suffix", "preset", "init", "named"),
    [
        (9, "JPG", "mobilenet-fpn", "imagenet", True),
        (SMALL_SET - 1, "jpeg", "mobilenet-fpn", "imagenet-v1", True),
        (SMALL_SET, "jpeg", "mobilenet-fpn", "imagenet", False),
        (9, "png", "mobilenet-fpn", "imagenet", False),
        (9, "jpg", "resnet50-fpn", "imagenet", False),
        (9, "jpg", "mobilenet-fpn", "blood-cells", False),
    ],
)
def test_a_detector_is_named_on_few_photographs(images: int, suffix: str, preset: str, init: str, named: bool) -> None:
    names = [f"{number}.{suffix}" for number in range(images)]
    nothing = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    records = tuple(Record(Path(name), name, name, (60, 80), *nothing) for name in names)
    dataset = Dataset(Path("d"), "coco", "train", ("a",), (1,), records)
    hint = detector_hint(settings_of(preset, {"train": {"init": init}}), dataset)
    assert (f"--from {DETECTOR}" in " ".join(hint)) == named
