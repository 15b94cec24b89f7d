"""Every scheme learns one image by heart."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import rcnn.training.session as session_file
import rcnn.training.train as train_file
from rcnn.training.train import train
from tests.training.test_train import one_thread  # noqa: F401

BOXES = {"disc": (8, 10, 48, 44), "square": (52, 40, 88, 84)}
COPIES = 25
OVERRIDES = [
    *("preprocess.short=96", "preprocess.long=96", "model.channels=32", "roi.hidden=64", "roi.canonical_size=32"),
    *("rpn.samples=64", "rpn.post_train=64", "rpn.post_test=32", "rpn.nms=0.8"),
    *("roi.samples=32", "roi.positive_fraction=0.5", "train.warmup=0.5", "train.ema=null"),
    *("augment.flip=0", "augment.scale=[1,1]", "augment.hue=0"),
    *(f"augment.{name}=0" for name in ("brightness", "contrast", "saturation")),
]


@pytest.fixture(scope="module")
def data(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same picture many times to train on, so that an epoch has many steps, and once to validate."""
    folder = tmp_path_factory.mktemp("one")
    picture = Image.new("RGB", (96, 96), (90, 90, 90))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 10, 47, 43), fill=(250, 60, 60))
    draw.rectangle((52, 40, 87, 83), fill=(60, 60, 250))
    (folder / "annotations").mkdir()
    for split, count in (("train", COPIES), ("val", 1)):
        (folder / "images" / split).mkdir(parents=True)
        document: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(BOXES)],
        }
        for image in range(count):
            picture.save(folder / "images" / split / f"{image}.png")
            document["images"].append({"id": image, "file_name": f"{image}.png", "height": 96, "width": 96})
            for category, (x1, y1, x2, y2) in enumerate(BOXES.values()):
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                number = len(document["annotations"])
                document["annotations"].append({"id": number, "image_id": image, "category_id": category + 1, **box})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("scheme", "epochs"),
    [(["joint"], 8), (["joint-full", "train.target_gradient=true"], 8), (["alternating"], 4)],
)
def test_one_image_is_learnt_to_an_ap_of_1(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: list[str], epochs: int
) -> None:
    for file, name in ((train_file, "draw_start"), (session_file, "draw_course"), (train_file, "draw_end")):
        monkeypatch.setattr(file, name, lambda *_: None)
    overrides = [*OVERRIDES, f"train.scheme={scheme[0]}", *scheme[1:], f"val.every={epochs}"]
    options: dict[str, Any] = {"epochs": epochs, "batch": 1, "lr": 0.03, "device": "cpu", "quiet": True}
    run = train(data, model="tiny-fpn", overrides=overrides, runs=tmp_path, **options)
    assert run.metrics.ap == pytest.approx(1.0)
