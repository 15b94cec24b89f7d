"""Commands run in this process, on a small data set and with a small detector of random weights."""

import hashlib
import json
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


class Run:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, *self._capsys.readouterr())

    def ok(self, *words: object) -> Outcome:
        """Run a command that must succeed."""
        outcome = self(*words)
        assert outcome.code == 0, outcome.err
        return outcome

    def json(self, *words: object) -> Any:
        """Run a command that must succeed, and return the document that it prints."""
        return self.ok(*words, "--json").json()

    def fails(self, code: int, message: str, *words: object) -> Outcome:
        """Run a command that must fail with an exit code and a message, and without a traceback."""
        outcome = self(*words)
        assert outcome.code == code, outcome.err
        assert message in outcome.err
        assert "Traceback" not in outcome.err
        return outcome


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Commands run in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return Run(capsys)


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    """Path -> digest of the content of every file and folder in a folder."""
    contents = {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A VOC folder of 6 images with one box each, and the lists train and val."""
    root = tmp_path / "shapes"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(root / f"JPEGImages/{index}.jpg")
        (root / f"Annotations/{index}.xml").write_text(
            f"<annotation><filename>{index}.jpg</filename><size><width>80</width><height>60</height></size>"
            f"<object><name>{NAMES[index % 2]}</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax>"
            f"<ymax>40</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Main/val.txt").write_text("4\n5\n")
    return root


@pytest.fixture
def images(data: Path) -> Path:
    """The folder of the images of `data`."""
    return data / "JPEGImages"


def save_detector(path: Path, preset: str, *changes: str) -> Path:
    """Write a detector of two classes with untrained weights."""
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of(preset, changes)
    Detector(build(settings, len(NAMES)), settings, NAMES, device="cpu").save(path)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of random weights with a threshold of 0."""
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of("mobilenet-fpn", SMALL)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(settings, len(NAMES))
        # With frozen batch norm, small random weights would shrink the activations of each layer to almost zero.
        for parameter in network.backbone.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    Detector(network, settings, NAMES, threshold=0.0, device="cpu").save(path)
    return path
