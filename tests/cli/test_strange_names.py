"""Images and classes with names that are hard to write: every command refuses them or writes its files."""

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

REFUSED = [b"caf\xe9.png", b"a\xed\xa0\x80b.png", b"a\nb.png", b"a\x1b[2Jb.png"]
"""Latin-1, half of a surrogate pair, a line end, an escape sequence."""
ACCEPTED = [b"x" * 251 + b".png", b"y" * 251 + b".tif", "\u00fc".encode() * 125 + b".tif"]
ACCEPTED += ["a\u200fb.png".encode(), "a\u202eb.png".encode()]
"""255 bytes, the maximum, so that `.tif.png` does not fit; 254 bytes of letters of two bytes; marks that change the
direction of text."""
TRAIN = ("--model", "tiny-fpn", "--epochs", "1", "--batch", "2", "--device", "cpu", *SMALL)
ALL = ("--format", "drawn,json,coco,voc,yolo")


def limited(folder: Path, *words: object) -> Ended:
    """Run a command, whose output must be plain text without a traceback."""
    ended = run_limited(folder, words)
    assert ended.code is not None, ended.output
    for text in ("Traceback", "UnicodeEncodeError", "unexpected"):
        assert text not in ended.output
    assert not UNPRINTABLE.search(ended.output), ended.output
    return ended


def run_ok(folder: Path, *words: object) -> None:
    ended = limited(folder, *words)
    assert ended.code == 0, ended.output


def shapes(root: Path, names: Sequence[bytes] = (), classes: str = "[circle, square]") -> Path:
    """A YOLO data set of three images with plain names, and others."""
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
    """Results of `count` images exist in every format."""
    for inner, ending in (("drawn", "*.png"), ("voc", "*.xml"), ("yolo/labels", "*.txt")):
        assert len(list((folder / inner).glob(ending))) == count
    for name in ("results", "coco"):
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("blank_figures")
def test_images_with_unwritable_names_are_refused_or_left_out(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path / "d", REFUSED)
    work: list[tuple[object, ...]] = [
        ("train", data, *TRAIN),
        ("data", "convert", data, "--to", "coco", "--out", "copy"),
        ("predict", weights, data / "images", *ALL, "--score", "0", "--out", "found"),
    ]
    for words in (*work, ("val", weights, data)):
        ended = limited(tmp_path, *words, "--on-fault", "stop")
        assert ended.code == 3, ended.output
        assert "rename" in ended.output
    for words in work:
        run_ok(tmp_path, *words, "--on-fault", "skip")
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 3
    assert_found(tmp_path / "found", 3)
    assert next((tmp_path / "runs/train").iterdir()).joinpath("weights/best.safetensors").is_file()


def test_images_with_writable_names_are_accepted(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path / "d", ACCEPTED)
    for form in ("voc", "coco", "yolo"):
        run_ok(tmp_path, "data", "convert", data, "--to", form, "--out", form)
        assert sum(path.suffix in (".png", ".tif") for path in (tmp_path / form).rglob("*")) == 3 + len(ACCEPTED)
    # Results of two images whose names differ only in the suffix must not overwrite each other.
    (data / "images" / ("x" * 251 + ".jpg")).write_bytes((data / "images/0.png").read_bytes())
    run_ok(tmp_path, "predict", weights, data / "images", *ALL, "--score", "0", "--out", "found")
    drawn = tmp_path / "found/drawn"
    (drawn / ("x" * 251 + ".jpg")).rename(drawn / "moved.png")
    assert_found(tmp_path / "found", 4 + len(ACCEPTED))


@pytest.mark.usefixtures("blank_figures")
def test_a_run_on_such_names_ends_and_is_resumed(tmp_path: Path) -> None:
    run_ok(tmp_path, "train", shapes(tmp_path / "d", ACCEPTED), *TRAIN)
    (folder,) = (tmp_path / "runs/train").iterdir()
    run_ok(tmp_path, "train", "--resume", folder)


def test_classes_with_writable_names_are_accepted(tmp_path: Path) -> None:
    names = ["a\\u200fb", "a\\u202eb", "x" * 255, "\u00fc" * 127]
    data = shapes(tmp_path / "d", classes='["' + '", "'.join(names) + '"]')
    for form in ("voc", "coco", "yolo"):
        run_ok(tmp_path, "data", "convert", data, "--to", form, "--out", form)
    run_ok(tmp_path, "train", data, *TRAIN)
    best = next((tmp_path / "runs/train").iterdir()) / "weights/best.safetensors"
    run_ok(tmp_path, "predict", best, data / "images", *ALL, "--score", "0", "--out", "found")
    assert_found(tmp_path / "found", 3)
    run_ok(tmp_path, "val", best, data)


@pytest.mark.parametrize("name", ["a\\nb", "a\\e[2Jb", "x" * 256, "\u00fc" * 128, "a\\ud800b"])
def test_classes_with_unwritable_names_are_refused(tmp_path: Path, name: str) -> None:
    data = shapes(tmp_path / "d", classes=f'["{name}", square]')
    for words in (("data", "convert", data, "--to", "voc", "--out", "copy"), ("train", data, *TRAIN)):
        ended = limited(tmp_path, *words, "--on-fault", "stop")
        assert ended.code == 3, ended.output
    assert not (tmp_path / "runs").exists()
