"""Reading a file runs nothing that is in it: pickles that would write a file, given to every command that reads one."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from .conftest import SMALL, Outcome

Run = Callable[..., Outcome]
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
    """What is there when anything was run."""
    return tmp_path / "was-run"


@pytest.fixture(params=["new.pth", "old.pt", "plain.pth", "d2.pkl", "arrays.npz", "array.npy", "named.safetensors"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, ran: Path) -> Path:
    """A file of each form, whose content does what it does when it is unpickled without care."""
    path, evil = tmp_path / request.param, Evil(ran)
    objects = np.array([evil], dtype=object)
    if path.suffix == ".npz":
        np.savez(path, **{"conv1.weight": objects, "0": objects}, allow_pickle=True)
        np.load(path, allow_pickle=True)["0"]
    elif path.suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
        np.load(path, allow_pickle=True)
    elif path.stem in ("new", "old"):
        torch.save({"model": {"x": evil}}, path, _use_new_zipfile_serialization=path.stem == "new")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps({"model": evil}))
        pickle.loads(path.read_bytes())
    ran.unlink()  # it is as hostile as it should be
    return path


def test_nothing_in_a_file_is_run(run: Run, data: Path, weights: Path, hostile: Path, ran: Path) -> None:
    for command, code in COMMANDS.items():
        words = [word.format(file=hostile, data=data, weights=weights) for word in command.split()]
        if words[0] == "train":
            words += SMALL[:-2]  # less train.init, which --init is
        outcome = run(*words)
        assert not ran.exists(), f"{command} ran {hostile.name}"
        assert outcome.code == code, f"{command}: {outcome.err}"
        assert hostile.name in outcome.err
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err


def test_a_picture_that_is_postscript_starts_no_program(
    run: Run, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Path
) -> None:
    """Pillow would give it to Ghostscript, here one that leaves a mark and never returns."""
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
        assert not ran.exists(), f"{words} started it"
        assert outcome.code == 3, f"{words}: {outcome.err}"
        assert "0.jpg: this is EPS: convert it to PNG or JPEG" in outcome.out + outcome.err


@pytest.mark.parametrize("source", ["https://example.org/a.jpg", "film.mp4", "0", "gone.jpg"])
@pytest.mark.parametrize("command", ["predict", "propose", "explain"])
def test_a_source_that_is_no_image_is_told_before_weights_are_loaded(
    run: Run, tmp_path: Path, command: str, source: str
) -> None:
    (tmp_path / "film.mp4").write_bytes(bytes(100))
    outcome = run(command, "gone.safetensors", source)
    assert outcome.code == 3
    assert source.rpartition("/")[2] in outcome.err
    assert "gone.safetensors" not in outcome.err


@pytest.mark.parametrize("command", ["val", "why"])
def test_data_that_is_missing_is_told_before_weights_are_loaded(run: Run, command: str) -> None:
    outcome = run(command, "gone.safetensors", "nowhere")
    assert (outcome.code, "gone.safetensors" in outcome.err) == (3, False)


def test_escape_sequences_in_names_never_reach_the_terminal(run: Run, data: Path) -> None:
    """Nor do marks that turn the direction of writing, or line ends that would fake a line of their own."""
    for number, name in enumerate(
        ("\x1b[31m\x1b]0;title\x07", "a\u202ecod.jpg", "b\nno faults", "caf\udce9", "\x9b1m")
    ):
        (data / f"JPEGImages/{number}.jpg").rename(data / f"JPEGImages/{name}.jpg")
        (data / f"Annotations/{number}.xml").rename(data / f"Annotations/{name}.xml")
    (data / "ImageSets/Main/train.txt").unlink()
    (data / "ImageSets/Main/val.txt").unlink()
    (data / "Annotations/5.xml").write_text("no xml")
    (data / "Annotations/a\u202ecod.jpg.xml").write_text("no xml")
    for words in ([], ["--json"]):
        outcome = run("data", "check", data, *words)
        assert outcome.code == 3
        said = outcome.out + outcome.err
        assert said.encode()
        assert not {letter for letter in said if letter < " " or "\x7f" <= letter < "\xa0"} - {"\n"}
        assert "\u202e" not in said
        assert "\nno faults" not in said
        assert "is not UTF-8; rename it" in said
