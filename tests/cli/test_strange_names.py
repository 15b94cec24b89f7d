"""Data sets whose images and classes have names that are hard to write: a sentence or the files, from every command."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.errors import UNPRINTABLE
from tests.cli.conftest import SMALL
from tests.commands import Ended
from tests.commands import run as run_limited

UNFIT = [b"caf\xe9.png", b"a\xed\xa0\x80b.png", b"a\nb.png", b"a\x1b[2Jb.png"]
"""Latin-1, half of a surrogate pair, a line end, an escape sequence."""
FIT = [b"x" * 251 + b".png", b"y" * 251 + b".tif", "\u00fc".encode() * 125 + b".tif"]
FIT += ["a\u200fb.png".encode(), "a\u202eb.png".encode()]
"""255 bytes, which leaves none for `.tif.png`; 254 of letters of two bytes; marks that turn the direction of text."""
TRAIN = ("--model", "tiny-fpn", "--epochs", "1", "--batch", "2", "--device", "cpu", *SMALL)
ALL = ("--format", "drawn,json,coco,voc,yolo")


def limited(folder: Path, *words: object) -> Ended:
    """Run a command; whatever it prints is plain text, and no traceback."""
    ended = run_limited(folder, words)
    assert ended.code is not None, ended.said
    for text in ("Traceback", "UnicodeEncodeError", "unexpected"):
        assert text not in ended.said
    assert not UNPRINTABLE.search(ended.said), ended.said
    return ended


def shapes(root: Path, names: Sequence[bytes] = (), classes: str = "[circle, square]") -> Path:
    """A YOLO set of three images of plain names, and others."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
    for name in (b"0.png", b"1.png", b"2.png", *names):
        stem, suffix = os.path.splitext(name)
        with open(os.path.join(os.fsencode(root / "images"), name), "wb") as file:
            pixels.save(file, "TIFF" if suffix == b".tif" else "PNG")
        with open(os.path.join(os.fsencode(root / "labels"), stem + b".txt"), "w") as rows:
            rows.write("1 .5 .5 .4 .4\n")
    (root / "data.yaml").write_text(f"names: {classes}\ntrain: images\nval: images\n", encoding="utf-8")
    return root


def assert_found(folder: Path, count: int) -> None:
    """There are results of so many images in every format."""
    for inner, ending in (("drawn", "*.png"), ("voc", "*.xml"), ("yolo/labels", "*.txt")):
        assert len(list((folder / inner).glob(ending))) == count
    for name in ("results", "coco"):
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("blank_figures")
def test_names_that_can_not_be_written_are_refused_or_left_out(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path / "d", UNFIT)
    work: list[tuple[object, ...]] = [
        ("train", data, *TRAIN),
        ("data", "convert", data, "--to", "coco", "--out", "copy"),
        ("predict", weights, data / "images", *ALL, "--score", "0", "--out", "found"),
    ]
    for words in (*work, ("val", weights, data)):
        ended = limited(tmp_path, *words, "--on-fault", "stop")
        assert ended.code == 3, ended.said
        assert "rename" in ended.said
    for words in work:
        ended = limited(tmp_path, *words, "--on-fault", "skip")
        assert ended.code == 0, ended.said
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 3
    assert_found(tmp_path / "found", 3)
    assert next((tmp_path / "runs/train").iterdir()).joinpath("weights/best.safetensors").is_file()


def test_names_that_can_be_written_are(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path / "d", FIT)
    for form in ("voc", "coco", "yolo"):
        ended = limited(tmp_path, "data", "convert", data, "--to", form, "--out", form)
        assert ended.code == 0, ended.said
        assert sum(path.suffix in (".png", ".tif") for path in (tmp_path / form).rglob("*")) == 3 + len(FIT)
    (data / "images" / ("x" * 251 + ".jpg")).write_bytes((data / "images/0.png").read_bytes())  # results stay apart
    ended = limited(tmp_path, "predict", weights, data / "images", *ALL, "--score", "0", "--out", "found")
    assert ended.code == 0, ended.said
    drawn = tmp_path / "found/drawn"
    (drawn / ("x" * 251 + ".jpg")).rename(drawn / "moved.png")
    assert_found(tmp_path / "found", 4 + len(FIT))


@pytest.mark.usefixtures("blank_figures")
def test_a_run_on_such_names_ends_and_goes_on(tmp_path: Path) -> None:
    ended = limited(tmp_path, "train", shapes(tmp_path / "d", FIT), *TRAIN)
    assert ended.code == 0, ended.said
    (folder,) = (tmp_path / "runs/train").iterdir()
    assert limited(tmp_path, "train", "--resume", folder).code == 0


def test_names_of_classes_that_can_be_written_are(tmp_path: Path) -> None:
    names = ["a\\u200fb", "a\\u202eb", "x" * 255, "\u00fc" * 127]
    data = shapes(tmp_path / "d", classes='["' + '", "'.join(names) + '"]')
    for form in ("voc", "coco", "yolo"):
        ended = limited(tmp_path, "data", "convert", data, "--to", form, "--out", form)
        assert ended.code == 0, ended.said
    assert limited(tmp_path, "train", data, *TRAIN).code == 0
    best = next((tmp_path / "runs/train").iterdir()) / "weights/best.safetensors"
    ended = limited(tmp_path, "predict", best, data / "images", *ALL, "--score", "0", "--out", "found")
    assert ended.code == 0, ended.said
    assert_found(tmp_path / "found", 3)
    assert limited(tmp_path, "val", best, data).code == 0


@pytest.mark.parametrize("name", ["a\\nb", "a\\e[2Jb", "x" * 256, "\u00fc" * 128, "a\\ud800b"])
def test_names_of_classes_that_can_not_be_written_are_refused(tmp_path: Path, name: str) -> None:
    data = shapes(tmp_path / "d", classes=f'["{name}", square]')
    for words in (("data", "convert", data, "--to", "voc", "--out", "copy"), ("train", data, *TRAIN)):
        ended = limited(tmp_path, *words, "--on-fault", "stop")
        assert ended.code == 3, ended.said
    assert not (tmp_path / "runs").exists()
