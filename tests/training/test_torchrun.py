"""Real processes under torchrun: results equal to those of one process, no warnings, and killed runs that resume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.detector import Detector
from rcnn.presets import build, settings_of
from rcnn.training.train import train
from rcnn.weights.file import load_weights
from rcnn.weights.metadata import read_detector
from tests.training.pieces import FEW_PROPOSALS, SMALL, assert_equal, rows, shapes, write_random_proposals

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, signal, sys
import torch.distributed as dist
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from tests.training.pieces import without_pictures

dist.init_process_group("gloo")  # one for all runs: torch can't create another right after the first
dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
take = Trainer.step
for arguments in json.loads(sys.argv[1]):
    killed = arguments.pop("killed", None)
    def step(trainer, items, number, requests):
        if number == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(trainer, items, number, requests)
    Trainer.step = step
    if killed:
        Trainer.is_late = lambda self: self.distributed.writer and self.state.progress.step + 2 == killed
    with without_pictures():
        train(**arguments)
"""
"""Trains with each of a list of arguments. `killed` is the step that kills the process, after a checkpoint."""
OVERRIDES = [
    *(*SMALL, *FEW_PROPOSALS, "model.norm=frozen", "roi.levels=[2,3,4,5]", "roi.canonical_size=12"),
    *("train.optimizer=sgd", "train.amp=float32", "train.lr_batch=4"),
]
ONE_STAGE = ["rpn.classify=classes", "roi.head=none"]
RUNS = {
    "joint": [],
    "accumulated": ["train.accumulate=2"],
    "joint-full": ["train.scheme=joint-full", "train.target_gradient=true"],
    "alternating": ["train.scheme=alternating"],
    "fast-rcnn": ["train.scheme=fast-rcnn", "train.proposals=FILE", "roi.levels=[3,4]", "roi.canonical_level=3"],
    "cross-entropy": ONE_STAGE,
    "focal": [*ONE_STAGE, "rpn.loss=focal"],
}
OPTIONS: dict[str, Any] = {"epochs": 1, "batch": 4, "lr": 0.05, "ema": None, "device": "cpu", "quiet": True}
PROCESSES = 2
RESUMED: dict[str, Any] = {
    "model": "tiny-fpn",
    "overrides": [*SMALL, "roi.dropout=0.2"],
    **{**OPTIONS, "init": "none", "epochs": 2, "batch": 2, "lr": 0.02, "ema": 0.9},
}
"""Also with state that each process has for itself: trained batch norm, dropout, AdamW."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a detector to start from, and proposals."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_random_proposals(shapes(folder, 8, 3), folder / "given.json")
    settings = settings_of("tiny-fpn", OVERRIDES)
    torch.manual_seed(0)
    names = ("disc", "square", "triangle")
    Detector(build(settings, len(names)), settings, names, device="cpu").save(folder / "start.safetensors")
    return folder


def arguments(folder: Path, name: str, runs: str) -> dict[str, Any]:
    """Return the arguments of `train` for one of `RUNS` or for the run that is killed."""
    common = {"data": str(folder / "shapes"), "runs": str(folder / runs), "name": name}
    if name not in RUNS:
        return {**RESUMED, **common}
    overrides = [*OVERRIDES, *(change.replace("FILE", str(folder / "given.json")) for change in RUNS[name])]
    batch = 2 if name == "accumulated" else OPTIONS["batch"]
    start = str(folder / "start.safetensors")
    return {**OPTIONS, **common, "batch": batch, "model": "tiny-fpn", "overrides": overrides, "init": start}


def torchrun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    module = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}")
    command = [sys.executable, *module, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.run(command, cwd=folder, env=environment, timeout=240, capture_output=True, text=True)


@pytest.fixture(scope="module")
def several(folder: Path) -> Path:
    """Return the folder of all runs, each of two processes; the run named `killed` was killed and resumed."""
    whole = [arguments(folder, name, "several") for name in (*RUNS, "undisturbed")]
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    runs = [*whole, {**arguments(folder, "killed", "several"), "killed": 6}]
    ended = torchrun(folder, "program.py", json.dumps(runs))
    killed = folder / "several" / "killed-1"
    assert "SIGKILL" in ended.stderr, ended.stderr
    assert [path.stem for path in (killed / "checkpoints").glob("*.safetensors")] == ["step-5"]
    again = torchrun(folder, "-m", "rcnn", "train", "--resume", str(killed))
    assert again.returncode == 0, again.stderr
    assert "Warning" not in ended.stderr + again.stderr
    return folder / "several"


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_compute_the_same_as_one(folder: Path, several: Path, name: str) -> None:
    """Compare losses, scores and weights, with frozen batch norm and no dropout, which each process computes alone."""
    one = train(**arguments(folder, name, "one"))
    two = several / f"{name}-1"
    assert len(rows(two)) == len(one.rows)
    for found, expected in zip(rows(two), rows(one.folder), strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), key
    start = read_detector(folder / "start.safetensors")[0]
    theirs, ours = (load_weights(path / "weights" / "last.safetensors")[0] for path in (two, one.folder))
    for key, tensor in ours.items():
        began = start[key] if key in start and start[key].shape == tensor.shape else torch.zeros(())
        moved = (tensor - began).abs().max()
        assert (theirs[key] - tensor).abs().max() <= 1e-3 * moved, key


def test_killed_processes_resume_to_the_bit(several: Path) -> None:
    found, expected = several / "killed-1", several / "undisturbed-1"
    assert rows(found) == rows(expected)
    for kind in ("weights/best", "weights/last", "checkpoints/step-8"):
        assert_equal(*(load_weights(path / f"{kind}.safetensors")[0] for path in (found, expected)))
