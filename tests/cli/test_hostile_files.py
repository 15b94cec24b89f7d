"""Reading a file executes nothing in it: pickles that would write a file, in every command that reads one."""

import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from .conftest import SMALL, Run

COMMANDS = {
    "inspect {file}": 4,
    "import {file} --arch fasterrcnn_resnet50_fpn --out a.safetensors": 4,
    "import {file} --arch faster_rcnn_R_50_FPN_3x --out a.safetensors": 4,
    "import {file} --arch paper-zf --out a.safetensors": 4,
    "train {data} --model tiny-fpn --init {file}": 4,
    "predict {file} {data}": 4,
    "propose {file} {data}": 4,
    "val {file} {data}": 4,
    "export {file}": 4,
    "anchors {data} --model {file}": 4,
    "predict {weights} {file}": 3,
    "predict {weights} {data} --proposals {file}": 3,
    "val {weights} {data} --proposals {file}": 3,
    "data check {file}": 3,
}
"""Command -> exit code."""


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A path that exists if something was executed."""
    return tmp_path / "was-run"


HOSTILE = ("new.pth", "new.bin", "new.safetensors", "old.pt", "plain.pth", "d2.pkl", "arrays.npz", "array.npy")


@pytest.fixture(params=[*HOSTILE, "named.safetensors"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, ran: Path) -> Path:
    """A file of each form that writes a file when it is unpickled without restrictions."""
    path, evil = tmp_path / request.param, Evil(ran)
    objects = np.array([evil], dtype=object)
    if path.suffix == ".npz":
        np.savez(path, **{"conv1.weight": objects, "0": objects}, allow_pickle=True)
        np.load(path, allow_pickle=True)["0"]
    elif path.suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
        np.load(path, allow_pickle=True)
    elif path.stem in ("new", "old"):
        saved = path.with_suffix(".saved")
        torch.save({"model": {"x": evil}}, saved, _use_new_zipfile_serialization=path.stem == "new")
        torch.load(saved, weights_only=False)
        saved.rename(path)
    else:
        path.write_bytes(pickle.dumps({"model": evil}))
        pickle.loads(path.read_bytes())
    ran.unlink()  # unrestricted unpickling does write it
    return path


def test_nothing_in_a_file_is_executed(run: Run, data: Path, weights: Path, hostile: Path, ran: Path) -> None:
    for command, code in COMMANDS.items():
        words = [word.format(file=hostile, data=data, weights=weights) for word in command.split()]
        if words[0] == "train":
            words += SMALL[:-2]  # without train.init, which --init sets
        outcome = run.fails(code, hostile.name, *words)
        assert not ran.exists(), f"{command} ran {hostile.name}"
        assert "unexpected" not in outcome.err


def test_a_postscript_picture_starts_no_program(
    run: Run, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Path
) -> None:
    """Pillow would pass it to Ghostscript, here a program that writes a file and never returns."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {ran}\nsleep 600\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    picture = data / "JPEGImages/0.jpg"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n")
    commands: list[list[object]] = [
        ["data", "check", data],
        ["data", "stats", data, "--on-fault", "stop"],
        ["data", "show", data, "--count", 6, "--on-fault", "stop"],
        ["data", "convert", data, "--to", "coco", "--out", "copy", "--on-fault", "stop"],
        ["train", data, *SMALL, "--on-fault", "stop"],
        ["val", weights, data, "--split", "train", "--on-fault", "stop"],
        ["predict", weights, picture],
        ["propose", weights, picture],
        ["explain", weights, picture],
    ]
    for words in commands:
        outcome = run(*words)
        assert not ran.exists(), f"{words} started Ghostscript"
        assert outcome.code == 3, f"{words}: {outcome.err}"
        assert "0.jpg: this is EPS: convert it to PNG or JPEG" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("command", "source"),
    [
        *product(("predict", "propose", "explain"), ("film.mp4", "0", "gone.jpg")),
        *product(("val", "why"), ("nowhere",)),
    ],
)
def test_a_bad_source_is_reported_before_weights_are_loaded(
    run: Run, tmp_path: Path, command: str, source: str
) -> None:
    (tmp_path / "film.mp4").write_bytes(bytes(100))
    outcome = run.fails(3, source.rpartition("/")[2], command, "gone.safetensors", source)
    assert "gone.safetensors" not in outcome.err


def test_escape_sequences_in_names_never_reach_the_terminal(run: Run, data: Path) -> None:
    """Nor do marks that change the direction of text, or line ends that would fake a line of output."""
    names = ("\x1b[31m\x1b]0;title\x07", "a\u202ecod.jpg", "b\nno faults", "caf\udce9", "\x9b1m")
    for number, name in enumerate(names):
        (data / f"JPEGImages/{number}.jpg").rename(data / f"JPEGImages/{name}.jpg")
        (data / f"Annotations/{number}.xml").rename(data / f"Annotations/{name}.xml")
    (data / "ImageSets/Main/train.txt").unlink()
    (data / "ImageSets/Main/val.txt").unlink()
    (data / "Annotations/5.xml").write_text("no xml")
    (data / "Annotations/a\u202ecod.jpg.xml").write_text("no xml")
    for words in ([], ["--json"]):
        outcome = run("data", "check", data, *words)
        assert outcome.code == 3
        output = outcome.out + outcome.err
        assert output.encode()
        assert not {letter for letter in output if letter < " " or "\x7f" <= letter < "\xa0"} - {"\n"}
        assert "\u202e" not in output
        assert "\nno faults" not in output
        assert "is not UTF-8; rename it" in output
