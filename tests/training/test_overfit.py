"""Every scheme, and a one-stage detector, learns one image by heart."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from rcnn.training.run import Run
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from tests.training.pieces import OPTIONS, assert_same

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
BOXES = {"disc": (8, 10, 48, 44), "square": (52, 40, 88, 84)}
STEPS = 26
"""Steps per epoch; every thirteenth image has no object."""
OVERRIDES = [
    *("preprocess.short=96", "preprocess.long=96", "model.channels=32", "roi.hidden=64", "roi.canonical_size=32"),
    *("rpn.samples=64", "rpn.post_train=64", "rpn.post_test=32", "rpn.nms=0.8"),
    *("roi.samples=32", "roi.positive_fraction=0.5", "train.warmup=0.5", "train.ema=null"),
    *("augment.flip=0", "augment.scale=[1,1]", "augment.hue=0"),
    *(f"augment.{name}=0" for name in ("brightness", "contrast", "saturation")),
]


def one_picture(folder: Path, side: int, boxes: dict[str, tuple[int, int, int, int]], steps: int) -> Path:
    """Write a data set of one picture, `steps` times for training, so that an epoch has many steps.

    The first object is a red disc, the second a blue rectangle. Every thirteenth image has no object but an unlabelled
    green patch, which gives batch norms numbers like those of the other images. One image of each kind validates.
    """
    empty, picture = (Image.new("RGB", (side, side), (90, 90, 90)) for _ in range(2))
    ImageDraw.Draw(empty).rectangle((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill=(60, 200, 60))
    first, second = boxes.values()
    draw = ImageDraw.Draw(picture)
    draw.ellipse((first[0], first[1], first[2] - 1, first[3] - 1), fill=(250, 60, 60))
    draw.rectangle((second[0], second[1], second[2] - 1, second[3] - 1), fill=(60, 60, 250))
    (folder / "annotations").mkdir()
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(boxes)]
    for split, without in (("train", [i % 13 == 12 for i in range(steps)]), ("val", [False, True])):
        (folder / "images" / split).mkdir(parents=True)
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for image, is_empty in enumerate(without):
            (empty if is_empty else picture).save(folder / "images" / split / f"{image}.png")
            document["images"].append({"id": image, "file_name": f"{image}.png", "height": side, "width": side})
            for category, (x1, y1, x2, y2) in enumerate([] if is_empty else boxes.values()):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                number = len(document["annotations"])
                document["annotations"].append({"id": number, "image_id": image, "category_id": category + 1, **box})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_picture(tmp_path_factory.mktemp("one"), 96, BOXES, STEPS)


def keep_a_copy(monkeypatch: pytest.MonkeyPatch, step: int, copy: Path) -> None:
    """Make runs save a checkpoint after a step of the last stage, and copy the folder of the first run then."""

    def link_weights(source: str, target: str) -> None:
        """Link weights instead of copying them: runs replace these files, and never write into them."""
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)

    def late(trainer: Trainer) -> bool:
        if trainer.state.progress.stage + 1 < len(trainer.state.stages):
            return False
        if trainer.state.progress.step == step and not copy.exists():
            shutil.copytree(trainer.folder.path, copy, copy_function=link_weights)
        return trainer.state.progress.step == step - 1

    monkeypatch.setattr(Trainer, "is_late", late)


def learn(data: Path, runs: Path, saved: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Run:
    """Train to an AP of 1. A run that was killed after `saved` steps of the last stage ends with the same bits."""
    keep_a_copy(monkeypatch, saved, runs / "copy")
    run = train(data, runs=runs, **{**OPTIONS, "batch": 1, **options})
    assert run.metrics.ap == pytest.approx(1.0), run.rows
    assert_same(train(resume=runs / "copy", quiet=True), run)
    return run


@pytest.mark.parametrize(
    ("scheme", "epochs"),
    [
        (["joint"], 8),
        (["joint-full", "rpn.lambda=30"], 8),
        (["joint-full", "rpn.lambda=30", "train.target_gradient=true"], 8),
        (["alternating"], 4),
        (["fast-rcnn", "train.proposals=GIVEN", "roi.box_weight=20", "train.clip=100"], 12),
    ],
)
def test_one_image_is_learnt_to_an_ap_of_1(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: list[str], epochs: int
) -> None:
    proposals = tmp_path / "given.json"  # the objects, slightly shifted
    boxes = [[x + 4, y - 3, X + 4, Y - 3] for x, y, X, Y in BOXES.values()]
    names = [*(f"images/train/{i}.png" for i in range(STEPS)), "images/val/0.png", "images/val/1.png"]
    proposals.write_text(json.dumps(dict.fromkeys(names, boxes)))
    changes = [change.replace("GIVEN", str(proposals)) for change in scheme[1:]]
    overrides = [*OVERRIDES, f"train.scheme={scheme[0]}", *changes, f"val.every={epochs}"]
    learn(data, tmp_path, epochs * STEPS - 6, monkeypatch, overrides=overrides, epochs=epochs, lr=0.03)


@pytest.mark.parametrize(
    ("loss", "settings"), [("cross-entropy", ["rpn.lambda=20", "train.clip=100"]), ("focal", ["rpn.loss=focal"])]
)
def test_a_one_stage_detector_learns_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, settings: list[str]
) -> None:
    (tmp_path / "one").mkdir()
    data, epochs = one_picture(tmp_path / "one", 96, BOXES, 5), 30
    ious = ["rpn.positive_iou=0.5", "rpn.negative_iou=0.5"]
    overrides = [*OVERRIDES, "rpn.classify=classes", "roi.head=none", *ious, *settings, f"val.every={epochs}"]
    run = learn(data, tmp_path, epochs * 5 - 3, monkeypatch, overrides=overrides, epochs=epochs, lr=0.03)
    assert run.rows[-1]["train_rpn_class"] < 0.1 * run.rows[0]["train_rpn_class"]
    (found, of_empty) = run.metrics.predictions
    assert (found.scores[:2] > 0.5).all()
    if loss == "focal":  # trains every anchor; cross-entropy those that are drawn, and may miss a background
        assert not (found.scores[2:] > 0.5).any()
    assert not (of_empty.scores > 0.5).any()
