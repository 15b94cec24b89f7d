import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rcnn
from rcnn.data.loading.loader import Loader
from tests.training.pieces import without_pictures

from .conftest import SMALL, Outcome

Run = Callable[..., Outcome]


def test_dry_run_shows_what_would_be_run_and_trains_nothing(run: Run, data: Path, tmp_path: Path) -> None:
    outcome = run("train", data, "--dry-run", *SMALL, "anchors.fit=auto", "--epochs", 3, "--batch", 2)
    assert outcome.code == 0, outcome.err
    assert "anchors.fit=auto: 4 objects are too few" in outcome.out
    for text in ("epochs: 3", "4 images, 4 boxes, 2 classes: circle, square", "60 x 80", "64 x 85", "64 x 96"):
        assert text in outcome.out
    assert "2 steps per epoch, 6 in total" in outcome.out
    assert not (tmp_path / "runs").exists()


def test_dry_run_as_json(run: Run, data: Path) -> None:
    words = ("train", data, "--dry-run", "--json", *SMALL, "anchors.fit=auto")
    document = run(*words, "--lr", "1e-3", "--workers", 2, "seed=3").json()
    assert document["settings"]["train"]["lr"] == 1e-3
    assert document["settings"]["train"]["seed"] == 3
    assert document["settings"]["data"]["workers"] == 2
    assert document["sizes"] == [{"file": "60 x 80", "images": 4, "resized": "64 x 85", "padded": "64 x 96"}]
    assert document["parameters"] > 0
    assert document["notes"] == ["anchors.fit=auto: 4 objects are too few to fit anchors to (fewer than 50)"]


def test_a_run_ends_with_weights_that_val_takes(run: Run, data: Path, tmp_path: Path) -> None:
    words = ["train", data, "--epochs", 1, "--batch", 2, "--out", tmp_path / "runs", "--name", "try", *SMALL]
    document = run(*words, "--json").json()
    assert Path(document["folder"]) == tmp_path / "runs/try-1"
    assert len(document["epochs"]) == 1
    assert run("val", document["best"], data).code == 0
    last = (tmp_path / "runs/try-1/log.txt").read_text().splitlines()[-1]
    _, program, *following = shlex.split(last[last.index("next: ") :])
    assert program == "rcnn"
    assert following[2] == "shapes"  # it is below the current folder
    assert run(*following, "--out", tmp_path / "seen").code == 0
    again = run("train", "--config", tmp_path / "runs/try-1/config.yaml", "--dry-run", "--json").json()
    assert again["settings"]["train"]["batch"] == 2
    resumed = run("train", "--resume", tmp_path / "runs/try-1", "--epochs", 2, "--json")
    assert resumed.code == 0, resumed.err
    assert len(resumed.json()["epochs"]) == 2


@without_pictures()
def test_a_detector_is_fine_tuned(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    words = ["train", data, "--from", weights, "--epochs", 1, "--batch", 2, "--out", tmp_path / "runs", *SMALL[-1:]]
    document = run(*words, "--json").json()
    log = (Path(document["folder"]) / "log.txt").read_text()
    assert f"all weights from {weights}" in log
    assert "resized to 64 pixels (the longer side at most 96)" in log
    again = run("train", "--config", Path(document["folder"]) / "config.yaml", "--dry-run", "--json").json()["settings"]
    assert (again["train"]["init"], again["train"]["epochs"], again["model"]["channels"]) == (str(weights), 1, 8)


@without_pictures()
def test_a_run_is_resumed_with_another_number_of_loader_processes(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But with no other setting changed."""
    words = ["train", data, "--epochs", 2, "--batch", 2, "--out", tmp_path / "runs", *SMALL[:-1], "--workers", 1]
    folder = Path(run(*words, "--json").json()["folder"])
    given: list[int] = []
    build = Loader.__init__

    def noted(self: Loader, dataset: Any, settings: Any, **options: Any) -> None:
        given.append(settings.data.workers)
        build(self, dataset, settings, **options)

    monkeypatch.setattr(Loader, "__init__", noted)
    resumed = run("train", "--resume", folder, "--workers", 0)
    assert resumed.code == 0, resumed.err
    assert set(given) == {0}
    refused = run("train", "--resume", folder, "--workers", 0, "--batch", 4)
    assert (refused.code, "leave out DATA and other settings (but --epochs and --workers)" in refused.err) == (2, True)


def test_dry_run_of_a_resumed_run_shows_its_own_settings(run: Run, data: Path, tmp_path: Path) -> None:
    from rcnn.config import to_yaml
    from rcnn.presets import settings_of

    settings = settings_of("mobilenet-fpn", [*SMALL, "train.batch=2", f"data.path={data}"])
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    document = run("train", "--resume", tmp_path, "--dry-run", "--json").json()
    assert document["settings"]["train"]["batch"] == 2
    assert document["train"]["images"] == 4


def test_a_file_that_is_cut_off_is_left_out_and_named_or_stops(run: Run, data: Path, tmp_path: Path) -> None:
    file = data / "JPEGImages/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    outcome = run("train", data, *SMALL, "--dry-run", "--json")
    assert outcome.json()["train"]["images"] == 3
    assert f"1 damaged image of `train` left out (--on-fault stop stops instead): {file}: " in outcome.err
    stopped = run("train", data, *SMALL, "--out", tmp_path / "runs", "--on-fault", "stop")
    assert (stopped.code, (tmp_path / "runs").exists()) == (3, False)
    assert "1.jpg" in stopped.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{data}", "train.lrr=1"], 2, "did you mean `train.lr`?"),
        (["{data}", "trian.lr=1"], 2, "did you mean `train`?"),
        (["{data}", "train.lr=fast"], 2, "`train.lr`"),
        (["{data}x", "roi.levels=[2,3]"], 2, "roi.levels names [2], but the backbone's levels are [3, 4, 5, 6]"),
        (["{data}x", "anchors.sizes=[[16],[32]]"], 2, "give one tuple of sizes per level"),
        (["{data}x", "anchors.sizes=[[16],[32],[64],[128,256]]"], 2, "equally many sizes on every level"),
        (["{data}", "--epochs", "0"], 2, "`train.epochs`"),
        (["{data}", "--imgsz", "99999"], 2, "`preprocess.short`"),
        (["{data}", "callbacks=x"], 2, "did you mean `recorders=[...]` of `rcnn.train`?"),
        (["{data}", "--model", "mobilnet-fpn"], 2, "did you mean `mobilenet-fpn`?"),
        (["{data}", "{data}"], 2, "one DATA is expected, found 2"),
        ([], 2, "nothing to train on"),
        (["--resume", "{data}"], 2, "no run folder"),
        (["{data}", "--resume", "{data}"], 2, "leave out DATA and other settings"),
        (["{data}", "--config", "c.yaml", "--model", "zf"], 2, "leave --model out"),
        (["{data}", "--config", "c.yaml"], 2, "c.yaml"),
        (["{data}", "--from", "blood-cells", "--model", "zf"], 2, "leave --config, --model and --init out"),
        (["{data}", "--from", "blood-cell"], 4, "did you mean `blood-cells`?"),
        (["{data}", "--from", "best.onnx"], 4, "an exported file can't be trained"),
        (["{data}", "--from", "blood-cells", "preprocess.in_channels=4"], 2, "mean has 3 numbers for 4 channels"),
        (["--resume", "{data}", "--from", "blood-cells"], 2, "leave out DATA and other settings"),
        (["{data}x", "--dry-run"], 3, "no such file or folder"),
        (["{data}/ImageSets", "--dry-run"], 3, "no data set is recognised here"),
        (["{data}", "--dry-run", "train.scheme=fast-rcnn", "train.proposals=gone.json"], 3, "gone.json"),
        (["{data}", "--init", "nowhere.safetensors"], 4, "nowhere.safetensors"),
    ],
)
def test_bad_input_is_told(
    run: Run, data: Path, words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    outcome = run("train", *(word.format(data=data) for word in words))
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_faults_are_all_told_before_training_starts(run: Run, data: Path, tmp_path: Path) -> None:
    (data / "JPEGImages/1.jpg").unlink()
    (data / "Annotations/2.xml").write_text("<annotation>")
    outcome = run("train", data, *SMALL)
    assert outcome.code == 3
    assert "train.txt:2" in outcome.err
    assert "2.xml" in outcome.err
    assert not list(tmp_path.glob("runs/train/*/checkpoints/*"))
    skipped = run("train", data, *SMALL, "--on-fault", "skip", "--dry-run", "--json")
    assert skipped.json()["train"]["images"] == 2


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="no file system can be mounted here",
)
def test_a_shared_memory_that_is_too_small_is_named(data: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rcnn", "train", str(data), *SMALL[:-1], "--workers", "2", "--out", str(tmp_path)]
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "need more room in /dev/shm" in ended.stderr
    assert "--workers 0" in ended.stderr
    assert "Resume with: rcnn train --resume" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr


def test_a_loader_process_that_is_killed_leaves_the_resume_command(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: True)  # whatever other tests have loaded
    monkeypatch.setattr("rcnn.data.loading.loader._Reader.load", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("rcnn.training.start.draw_start", lambda *_: None)
    outcome = run("train", data, *SMALL[:-1], "--workers", 2)
    assert outcome.code == 1
    assert "a loader process (data.workers) was lost" in outcome.err
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
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "config.yaml").write_text("")
    places = {"data": data, "run": tmp_path / "run-1"}
    outcome = run("train", *(word.format(**places) for word in words))
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    given = {name: value.format(**places) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(rcnn.SettingsError) as refused:
        rcnn.train(**given)
    assert message in str(refused.value)
    assert " ".join(str(refused.value).split()) in " ".join(outcome.err.split())
