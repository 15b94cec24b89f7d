import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rcnn
from rcnn.config import to_yaml
from rcnn.data.loading.loader import Loader
from rcnn.presets import settings_of
from tests.training.pieces import without_pictures

from .conftest import SMALL, Run


def test_dry_run_shows_the_plan_and_does_not_train(run: Run, data: Path) -> None:
    outcome = run.ok("train", data, "--dry-run", *SMALL, "anchors.fit=auto", "--epochs", 3, "--batch", 2)
    for text in (
        "anchors.fit=auto: 4 objects are too few",
        "4 images, 4 boxes, 2 classes: circle, square",
        *("epochs: 3", "60 x 80", "64 x 85", "64 x 96", "2 steps per epoch, 6 in total"),
    ):
        assert text in outcome.out
    assert not Path("runs").exists()


def test_dry_run_shows_the_epochs_in_place_of_auto(run: Run, data: Path) -> None:
    document = run.json("train", data, "--dry-run", *SMALL, "--epochs", "auto")
    assert document["settings"]["train"]["epochs"] == 100
    assert "train.epochs=auto: 100 epochs for 4 images" in document["notes"]
    run.fails(2, "neither a number of epochs nor auto", "train", data, "--dry-run", "--epochs", "many")


def test_dry_run_as_json(run: Run, data: Path) -> None:
    options = ("anchors.fit=auto", "--lr", "1e-3", "--workers", 2, "seed=3")
    document = run.json("train", data, "--dry-run", *SMALL, *options)
    settings = document["settings"]
    assert (settings["train"]["lr"], settings["train"]["seed"], settings["data"]["workers"]) == (1e-3, 3, 2)
    assert document["sizes"] == [{"file": "60 x 80", "images": 4, "resized": "64 x 85", "padded": "64 x 96"}]
    assert document["parameters"] > 0
    assert document["notes"] == ["anchors.fit=auto: 4 objects are too few to fit anchors to (fewer than 50)"]


def test_a_run_ends_with_weights_that_val_accepts(run: Run, data: Path) -> None:
    document = run.json("train", data, "--epochs", 1, "--batch", 2, "--out", "runs", "--name", "try", *SMALL)
    assert (document["folder"], len(document["epochs"])) == ("runs/try-1", 1)
    run.ok("val", document["best"], data)
    last = Path("runs/try-1/log.txt").read_text().splitlines()[-1]
    _, program, *following = shlex.split(last[last.index("next: ") :])
    assert program == "rcnn"
    assert following[2] == "shapes"  # a path below the current folder
    run.ok(*following)
    repeated = run.json("train", "--config", "runs/try-1/config.yaml", "--dry-run")
    assert repeated["settings"]["train"]["batch"] == 2
    assert len(run.json("train", "--resume", "runs/try-1", "--epochs", 2)["epochs"]) == 2


@without_pictures()
def test_a_detector_is_fine_tuned(run: Run, data: Path, weights: Path) -> None:
    document = run.json("train", data, "--from", weights, "--epochs", 1, "--batch", 2, *SMALL[-1:])
    log = Path(document["folder"], "log.txt").read_text()
    assert f"all weights from {weights}" in log
    assert "resized to 64 pixels (the longer side at most 96)" in log
    settings = run.json("train", "--config", Path(document["folder"], "config.yaml"), "--dry-run")["settings"]
    train = settings["train"]
    assert (train["init"], train["epochs"], settings["model"]["channels"]) == (str(weights), 1, 8)


@without_pictures()
def test_a_run_is_resumed_with_another_number_of_loader_processes(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other setting can be changed."""
    words = ("--epochs", 2, "--batch", 2, *SMALL[:-1], "--workers", 1)
    folder, workers, build = run.json("train", data, *words)["folder"], set[int](), Loader.__init__

    def build_and_record(self: Loader, dataset: Any, settings: Any, **options: Any) -> None:
        workers.add(settings.data.workers)
        build(self, dataset, settings, **options)

    monkeypatch.setattr(Loader, "__init__", build_and_record)
    resume = ("train", "--resume", folder, "--workers", 0)
    run.ok(*resume)
    assert workers == {0}
    run.fails(2, "leave out DATA and other settings (but --epochs and --workers)", *resume, "--batch", 4)


def test_dry_run_of_a_resumed_run_shows_its_own_settings(run: Run, data: Path, tmp_path: Path) -> None:
    settings = settings_of("mobilenet-fpn", [*SMALL, "train.batch=2", f"data.path={data}"])
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    document = run.json("train", "--resume", tmp_path, "--dry-run")
    assert document["settings"]["train"]["batch"] == 2
    assert document["train"]["images"] == 4


def test_a_truncated_image_is_left_out_or_stops_the_training(run: Run, data: Path) -> None:
    file = data / "JPEGImages/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    outcome = run("train", data, *SMALL, "--dry-run", "--json")
    assert outcome.json()["train"]["images"] == 3
    assert f"1 damaged image of `train` left out (--on-fault stop stops instead): {file}: " in outcome.err
    run.fails(3, "1.jpg", "train", data, *SMALL, "--on-fault", "stop")
    assert not Path("runs").exists()


def test_all_faults_are_reported_before_training_starts(run: Run, data: Path, tmp_path: Path) -> None:
    (data / "JPEGImages/1.jpg").unlink()
    (data / "Annotations/2.xml").write_text("<annotation>")
    outcome = run.fails(3, "train.txt:2", "train", data, *SMALL)
    assert "2.xml" in outcome.err
    assert not list(tmp_path.glob("runs/train/*/checkpoints/*"))
    assert run.json("train", data, *SMALL, "--on-fault", "skip", "--dry-run")["train"]["images"] == 2


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="no file system can be mounted here",
)
def test_a_shared_memory_that_is_too_small_is_reported(data: Path, tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    train = [sys.executable, "-m", "rcnn", "train", str(data), *SMALL[:-1], "--workers", "2", "--out", str(tmp_path)]
    words = ["unshare", "-m", "sh", "-c", mount, "sh", *train]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1, ended.stderr
    for text in ("need more room in /dev/shm", "--workers 0", "Resume with: rcnn train --resume"):
        assert text in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr


def test_a_loader_process_that_is_killed_leaves_the_resume_command(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: True)  # whatever other tests import
    monkeypatch.setattr("rcnn.data.loading.loader._Reader.load", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("rcnn.training.start.draw_start", lambda *_: None)
    outcome = run.fails(1, "a loader process (data.workers) was lost", "train", data, *SMALL[:-1], "--workers", 2)
    assert "--workers 0 (data.workers=0) loads without them. Resume with: rcnn train --resume runs/train" in outcome.err


COMBINATIONS: list[tuple[list[str], dict[str, Any], str]] = [
    (["{data}", "--resume", "{run}"], {"data": "{data}", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--config", "c"], {"config": "c", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--model", "paper-zf"], {"model": "paper-zf", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--from", "x"], {"start_from": "x", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "train.lr=1"], {"overrides": ["train.lr=1"], "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--lr", "1"], {"lr": 1, "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--imgsz", "64"], {"imgsz": 64, "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--name", "x"], {"name": "x", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{run}", "--out", "{data}"], {"runs": "{data}", "resume": "{run}"}, "leave out DATA"),
    (["--resume", "{data}"], {"resume": "{data}"}, "no run folder (there is no config.yaml in it)"),
    (["{data}", "--from", "x", "--config", "c"], {"start_from": "x", "config": "c"}, "leave --config, --model and"),
    (["{data}", "--from", "x", "--model", "zf"], {"start_from": "x", "model": "zf"}, "leave --config, --model and"),
    (["{data}", "--from", "x", "--init", "none"], {"start_from": "x", "init": "none"}, "leave --config, --model and"),
    (["{data}", "--config", "c", "--model", "zf"], {"config": "c", "model": "zf"}, "leave --model out"),
]


@pytest.mark.parametrize(("words", "arguments", "message"), COMBINATIONS)
def test_python_refuses_the_combinations_that_the_command_refuses(
    run: Run, data: Path, tmp_path: Path, words: list[str], arguments: dict[str, Any], message: str
) -> None:
    paths = {"data": data, "run": tmp_path / "run-1"}
    paths["run"].mkdir()
    (paths["run"] / "config.yaml").write_text("")
    outcome = run.fails(2, message, "train", *(word.format(**paths) for word in words))
    arguments = {name: value.format(**paths) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(rcnn.SettingsError) as refused:
        rcnn.train(**arguments)
    assert message in str(refused.value)
    assert " ".join(str(refused.value).split()) in " ".join(outcome.err.split())
