"""A one-stage detector has no stages to explain, which is an error."""

import numpy as np
import pytest

from rcnn.config import Data
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.diagnose.explain.follow import follow
from rcnn.diagnose.why.analyse import analyse
from rcnn.errors import SettingsError
from rcnn.plots.run_plots import plot_history
from tests.model import tiny

ONE_STAGE = {"rpn": {"classify": "classes"}, "roi": {"head": "none"}}


def test_explanations_of_stages_are_refused(tmp_path):
    synthesise(tmp_path / "shapes", 1, split="val", size=(64, 96))
    dataset = open_dataset(tmp_path / "shapes", "val", Data())
    made = Detector(tiny.model(ONE_STAGE), tiny.settings(ONE_STAGE), dataset.names, device="cpu")
    for call in (lambda: analyse(made, dataset), lambda: follow(made, np.zeros((64, 96, 3), dtype=np.uint8))):
        with pytest.raises(SettingsError, match=r"a one-stage detector .* needs a detector with a second stage"):
            call()


def test_the_two_losses_are_drawn(tmp_path):
    rows = [{"epoch": 1, "train_rpn_class": 0.7, "val_rpn_class": 0.8, "train_rpn_box": 0.2, "lr": 1e-3, "ap": 0.1}]
    plot_history(rows, tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000
