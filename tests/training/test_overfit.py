"""Every scheme learns one image by heart."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from tests.training.pieces import without_pictures
from tests.training.test_train import assert_same, one_thread  # noqa: F401

BOXES = {"disc": (8, 10, 48, 44), "square": (52, 40, 88, 84)}
STEPS = 26
"""Of an epoch; every thirteenth image has no object."""
OVERRIDES = [
    *("preprocess.short=96", "preprocess.long=96", "model.channels=32", "roi.hidden=64", "roi.canonical_size=32"),
    *("rpn.samples=64", "rpn.post_train=64", "rpn.post_test=32", "rpn.nms=0.8"),
    *("roi.samples=32", "roi.positive_fraction=0.5", "train.warmup=0.5", "train.ema=null"),
    *("augment.flip=0", "augment.scale=[1,1]", "augment.hue=0"),
    *(f"augment.{name}=0" for name in ("brightness", "contrast", "saturation")),
]


def one_picture(folder: Path, side: int, boxes: dict[str, tuple[int, int, int, int]], steps: int) -> Path:
    """The same picture many times to train on, so that an epoch has many steps, and once to validate; and empty ones.

    The first of two objects is a red disc, the second a blue rectangle; every thirteenth image has neither, but a green
    patch that nobody labelled, so that its batch norms see numbers like the others'.
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
        for image, nothing in enumerate(without):
            (empty if nothing else picture).save(folder / "images" / split / f"{image}.png")
            document["images"].append({"id": image, "file_name": f"{image}.png", "height": side, "width": side})
            for category, (x1, y1, x2, y2) in enumerate([] if nothing else boxes.values()):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                number = len(document["annotations"])
                document["annotations"].append({"id": number, "image_id": image, "category_id": category + 1, **box})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def data(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return one_picture(tmp_path_factory.mktemp("one"), 96, BOXES, STEPS)


@pytest.fixture(autouse=True)
def no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


def link_weights(source: str, target: str) -> None:
    """Weights are replaced, never written into, so that a second name for the file will do."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def keep_a_copy(monkeypatch: pytest.MonkeyPatch, step: int, copy: Path) -> None:
    """Have runs save their state after a step of their last stage, and copy the first's folder then, as if killed."""

    def late(trainer: Trainer) -> bool:
        if trainer.state.progress.stage + 1 < len(trainer.state.stages):
            return False
        if trainer.state.progress.step == step and not copy.exists():
            shutil.copytree(trainer.folder.path, copy, copy_function=link_weights)
        return trainer.state.progress.step == step - 1

    monkeypatch.setattr(Trainer, "is_late", late)


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
    """And a run that was killed in the last of its epochs ends with the same bits."""
    given = tmp_path / "given.json"  # the objects, moved a little
    boxes = [[x + 4, y - 3, X + 4, Y - 3] for x, y, X, Y in BOXES.values()]
    names = [*(f"images/train/{i}.png" for i in range(STEPS)), "images/val/0.png", "images/val/1.png"]
    given.write_text(json.dumps(dict.fromkeys(names, boxes)))
    keep_a_copy(monkeypatch, epochs * STEPS - 6, tmp_path / "copy")
    changes = [change.replace("GIVEN", str(given)) for change in scheme[1:]]
    overrides = [*OVERRIDES, f"train.scheme={scheme[0]}", *changes, f"val.every={epochs}"]
    options: dict[str, Any] = {"epochs": epochs, "batch": 1, "lr": 0.03, "device": "cpu", "quiet": True}
    run = train(data, model="tiny-fpn", overrides=overrides, runs=tmp_path, **options)
    assert run.metrics.ap == pytest.approx(1.0)
    assert_same(train(resume=tmp_path / "copy", quiet=True), run)
