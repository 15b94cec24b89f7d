"""Both networks of the paper learn one image by heart, and killed runs resume to the bit.

All layers have their original sizes, except that the two hidden layers of the second stage have 512 numbers instead of
4096, which would be nine tenths of all weights and take most of the time.

RoI max pooling does not notice if a box moves by less than a cell of 16 pixels, so AP at IoU 0.95 needs proposals that
are exact to the pixel. AdamW with a large weight of the boxes reaches this in few steps; the paper's SGD would take too
long for a test. The number of steps is twice what some seeds need: boxes then have an IoU above 0.97 and scores above
0.7 with every seed that was tried, so the result does not depend on how a CPU rounds.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rcnn.presets import settings_of
from tests.training.test_overfit import learn, one_picture

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
BOXES = {"disc": (16, 16, 64, 64), "square": (64, 48, 112, 96)}
"""Two objects that coincide with anchors, so that few steps are enough."""
OVERRIDES = [
    *("preprocess.short=112", "preprocess.long=112", "preprocess.mean=[0.353]"),
    *("anchors.sizes=[[48,96,144]]", "rpn.samples=8", "rpn.nms=0.45"),
    *("rpn.pre_train=200", "rpn.post_train=32", "rpn.pre_test=200", "rpn.post_test=8"),
    *("roi.samples=16", "roi.positive_fraction=0.5", "roi.positive_iou=0.6"),
    *("train.optimizer=adamw", "train.momentum=0.8", "train.weight_decay=0", "train.schedule=cosine", "train.clip=100"),
    *("rpn.lambda=30", "roi.box_weight=5", "augment.flip=0"),
]
STEPS = 96


@pytest.mark.parametrize(
    ("name", "std", "lr"), [pytest.param("paper-vgg16", 0.02, 1.5e-5, marks=pytest.mark.more), ("paper-zf", 0.03, 5e-5)]
)
def test_one_image_is_learnt_to_an_ap_of_1_and_a_killed_run_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, std: float, lr: float
) -> None:
    with TemporaryDirectory() as folder:  # checkpoints of a gigabyte are not for pytest to keep
        data = one_picture(Path(folder), 112, BOXES, STEPS)
        assert settings_of(name).roi.hidden == 4096
        # Random weights learn fast from pixels of this size.
        overrides = [*OVERRIDES, "roi.hidden=512", f"preprocess.std=[{std}]"]
        options = {"model": name, "overrides": overrides, "epochs": 1, "lr": lr, "init": "none"}
        learn(data, Path(folder) / "runs", STEPS - 2, monkeypatch, **options)
