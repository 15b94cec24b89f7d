"""A tiny experiment: a handful of pictures, one epoch, no pictures of the trainings."""

from pathlib import Path
from typing import Any

import pytest
import torch

import rcnn.training.recorders.standard as recorders_file
import rcnn.training.start as start_file
import rcnn.training.summary as summary_file
from rcnn.data.synthetic import synthesise

SMALL = [
    "preprocess.short=64",
    "preprocess.long=96",
    "model.channels=16",
    "roi.hidden=32",
    "rpn.post_train=60",
    "rpn.post_test=40",
    "train.epochs=1",
    "train.batch=2",
    "train.ema=null",
    "train.device=cpu",
]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper") / "shapes"
    for split, images, seed in (("train", 4, 1), ("val", 2, 2), ("test", 2, 3)):
        synthesise(folder, images, split=split, size=(64, 96), seed=seed)
    return folder


@pytest.fixture(autouse=True)
def bare_trainings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread, as many tests run beside each other, and no pictures of the trainings: they take most of the time."""
    for file, name in ((start_file, "draw_start"), (recorders_file, "plot_history"), (summary_file, "draw_end")):
        monkeypatch.setattr(file, name, lambda *_: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
