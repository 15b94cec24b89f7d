"""Commands run in this process, on a small data set and with a small detector of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.cli.app import main

SMALL = [
    "preprocess.short=64",
    "preprocess.long=96",
    "model.channels=8",
    "roi.hidden=16",
    "rpn.pre_test=50",
    "rpn.post_test=20",
    "train.init=none",
    "data.workers=0",
]
NAMES = ("circle", "square")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A VOC folder of 6 images with a box each, lists train and val."""
    root = tmp_path / "shapes"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{index}.jpg")
        (root / f"Annotations/{index}.xml").write_text(
            f"<annotation><filename>{index}.jpg</filename><size><width>80</width><height>60</height></size>"
            f"<object><name>{NAMES[index % 2]}</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax>"
            f"<ymax>40</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Main/val.txt").write_text("4\n5\n")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of random weights whose threshold lets every box through."""
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of("mobilenet-fpn", SMALL)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(settings, len(NAMES))
        # Where batch norm is frozen, random weights shrink a picture layer by layer until nothing follows from it.
        for parameter in network.backbone.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    Detector(network, settings, NAMES, threshold=0.0, device="cpu").save(path)
    return path
