"""Trainings that torchrun restarts, here in one process: which run they continue, and which they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn import locks
from rcnn.config import override
from rcnn.errors import SettingsError
from rcnn.training.configure import choose_settings
from rcnn.training.elastic import RECORDS, Elastic
from rcnn.training.run import Run
from rcnn.training.run_folder import RunFolder
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from tests.test_locks import held_by_another_process
from tests.training.pieces import ALONE, FEW_PROPOSALS, OPTIONS, SMALL, Killed, assert_same, killed

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SETTINGS = choose_settings("data", overrides=["train.init=none"])
Start = Callable[..., Run]


@pytest.fixture
def start(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A function that trains in the environment of torchrun, after so many restarts."""

    def start(restarts: int = 0, run_id: str = "job-1", **changes: Any) -> Run:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
        arguments = {"name": "try", "runs": tmp_path / "runs", "overrides": [*SMALL, *FEW_PROPOSALS], "init": "none"}
        if changes.get("resume"):
            return train(resume=changes["resume"])
        return train(data, **OPTIONS | arguments | changes)

    return start


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to, without torchrun."""
    runs = tmp_path_factory.mktemp("whole")
    return train(data, runs=runs, overrides=[*SMALL, *FEW_PROPOSALS], init="none", **OPTIONS)


def die(*_: object) -> None:
    raise Killed


def test_a_restart_continues_the_run_in_its_folder(
    start: Start, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First before there is a checkpoint, then after one, then when all but the end is done."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_checkpoint", die)
        with pytest.raises(Killed):
            start()
    with killed(step=5, saved=2):
        start(1)
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.training.train.announce_end", die)
        with pytest.raises(Killed):
            start(2)
    assert_same(start(3), whole)
    assert [path.name for path in (tmp_path / "runs").glob("[!.]*")] == ["try-1"]
    log = (tmp_path / "runs" / "try-1" / "log.txt").read_text()
    assert log.count("images to train on") == 1
    assert "resuming" in log


def test_the_same_command_continues_a_run_until_it_is_finished(start: Start, tmp_path: Path) -> None:
    """A scheduler that starts a job again starts it with the same id."""
    with killed(step=5, saved=2):
        start()
    start()
    start(1)  # process 0 had finished the run, and another one was lost before it ended
    start()
    assert sorted(path.name for path in (tmp_path / "runs").glob("[!.]*")) == ["try-1", "try-2"]


def test_resume_takes_precedence(start: Start, tmp_path: Path) -> None:
    with killed(step=5, saved=2):
        start(run_id="first")
    run = start(run_id="none", resume=tmp_path / "runs" / "try-1")
    assert run.folder.name == "try-1"
    assert len(list((tmp_path / "runs" / RECORDS).iterdir())) == 1


def test_another_run_of_the_same_id_is_refused(start: Start, tmp_path: Path) -> None:
    with killed(step=5, saved=2):
        start()
    other = tmp_path / "other"
    other.mkdir()
    folder = tmp_path / "runs" / "try-1"
    for changes, message in (
        ({"lr": 0.5}, r"train\.lr=0\.02, here 0\.5"),
        ({"name": "b"}, "--name try, here --name b"),
        ({"seed": 7, "epochs": 3}, r"train\.epochs=2, here 3; train\.seed=0, here 7"),
    ):
        with pytest.raises(SettingsError, match=rf"run id job-1 belongs to {folder}.*{message}.*--rdzv-id"):
            start(**changes)
    start(1, workers=0)
    start(lr=0.5)  # the run of the id is finished


def test_a_second_training_of_the_same_id_waits_and_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed(step=5, saved=2):
        start()
    monkeypatch.setattr(locks, "RESTART_SECONDS", 0.5)
    with (
        held_by_another_process(tmp_path / "runs" / "try-1") as process,
        pytest.raises(SettingsError, match=f"is being trained already, by process {process.pid}"),
    ):
        start()


def test_a_run_whose_folder_is_missing_is_refused(start: Start, tmp_path: Path) -> None:
    with killed(step=5, saved=2):
        start()
    (tmp_path / "runs" / "try-1").rename(tmp_path / "moved")
    with pytest.raises(SettingsError, match=r"try-1 .*json\), which does not exist any more.*delete .*json to start"):
        start(1)


def test_torchrun_needs_an_id_if_it_may_restart(start: Start, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--rdzv-id NAME"):
        start(run_id="none")
    assert not (tmp_path / "runs").exists()
    runs = Path("runs")
    assert Elastic.of({}, runs) is None
    assert Elastic.of({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "0"}, runs) is None
    with pytest.raises(SettingsError):
        Elastic.of({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, runs)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"{}",
        b'{"id": "job-1", "folder": "..", "name": null, "settings": {}, "finished": false}',
        b'{"id": "job-1", "folder": "../../a-1", "name": null, "settings": {}, "finished": false}',
        b'{"id": "job-1", "folder": "a-1", "name": null, "settings": {"train": {"lr": -1}}, "finished": false}',
        b'{"id": "job-1", "folder": "a-1", "name": null, "settings": {"unknown": 1}, "finished": true}',
    ],
)
def test_a_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    elastic = Elastic("job-1", 0, tmp_path)
    elastic.write(RunFolder(tmp_path / "a-1"), SETTINGS, None)
    elastic.file.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{elastic.file}: .* job-1 .* Delete it to start a new run"):
        elastic.find(SETTINGS, None, ALONE)


@given(st.text().filter(lambda text: "\0" not in text))
def test_any_id_makes_a_file_in_the_folder_of_records(run_id: str) -> None:
    file = Elastic(run_id, 0, Path("runs")).file
    assert file.parent == Path("runs") / RECORDS
    assert len(file.name) < 50


def test_settings_of_this_start_replace_those_that_may_change(tmp_path: Path) -> None:
    elastic = Elastic("job-1", 1, tmp_path)
    folder = RunFolder.create(tmp_path, "a")
    elastic.write(folder, SETTINGS, None)
    changed = override(SETTINGS, {"data": {"workers": 3}, "train": {"timeout": 7}})
    found = elastic.find(changed, None, ALONE)
    assert found is not None
    assert found.path == folder.path
    assert json.loads(elastic.file.read_text())["settings"]["train"]["timeout"] == SETTINGS.train.timeout
