import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.config import override, read, to_yaml
from rcnn.data.dataset import Dataset
from rcnn.errors import DataError, Interrupted, SettingsError, TrainingError
from rcnn.locks import lock
from rcnn.metrics.table import Metrics
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.report.page import write_report
from rcnn.report.subject import read_subject
from rcnn.training.checkpoint import latest
from rcnn.training.configure import choose_settings
from rcnn.training.ownership import only_training
from rcnn.training.recorders import About, Recorder
from rcnn.training.run import Run
from rcnn.training.run_folder import RunFolder
from rcnn.training.start import prepare_run
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from rcnn.weights.file import load_weights
from rcnn.weights.metadata import read_detector
from tests.training.pieces import ALONE, FEW_PROPOSALS, SMALL, assert_same, shapes, without_pictures

pytestmark = pytest.mark.usefixtures("one_thread")
OVERRIDES = [*SMALL, *FEW_PROPOSALS, "roi.dropout=0.2"]
OPTIONS: dict[str, Any] = {"epochs": 2, "batch": 2, "lr": 0.02, "init": "none", "device": "cpu", "quiet": True}
STEPS = 4
"""Steps per epoch."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("data"), 2 * STEPS, 3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted."""
    return train(data, overrides=OVERRIDES, runs=tmp_path_factory.mktemp("whole"), **OPTIONS)


@pytest.fixture(autouse=True)
def no_pictures(whole: Run) -> Iterator[None]:
    """Draw pictures only for the run `whole`."""
    with without_pictures():
        yield


def test_a_json_that_lists_its_images_in_another_order_gives_the_same_weights(
    whole: Run, data: Path, tmp_path: Path
) -> None:
    turned = Path(shutil.copytree(data, tmp_path / "shapes"))
    path = turned / "annotations" / "instances_train.json"
    tree = json.loads(path.read_text())
    tree["images"].reverse()
    path.write_text(json.dumps(tree))
    assert_same(train(turned, overrides=OVERRIDES, runs=tmp_path, **OPTIONS), whole)


def test_few_calls_lie_between_a_training_and_its_loss(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        ours = [frame.name for frame in traceback.extract_stack() if "/src/rcnn/" in frame.filename]
        raise SettingsError(" ".join(ours))

    monkeypatch.setattr(FasterRCNN, "loss", stop)
    with pytest.raises(SettingsError) as caught:
        train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert str(caught.value) == "train fit run_stage run_epoch run_steps step backward forward"


def test_the_run_folder_is_complete(whole: Run, data: Path) -> None:
    assert whole.folder.name == "shapes-1"
    names = {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*") if path.is_file()}
    plots = ("labels", "history", "curves", "confusion", "proposals")
    assert names == {
        *(".rcnn", "config.yaml", "environment.json", "faults.txt", "train.txt", "val.txt", "classes.txt"),
        *("metrics.jsonl", "results.csv", "log.txt", "weights/best.safetensors", "weights/last.safetensors"),
        f"checkpoints/step-{2 * STEPS}.safetensors",
        *(f"plots/{name}.png" for name in plots),
        *("plots/train-batch-1.jpg", "plots/train-batch-2.jpg", "plots/val.jpg"),
        *("report.html", "report/scores.json"),
        *(f"report/{picture.file}" for picture in read_subject(whole.folder).scores.pictures),
    }
    assert [row["epoch"] for row in whole.rows] == [1, 2]
    assert {"train_rpn_box", "val_rpn_box", "val_loss", "ap", "ap50", "lr", "seconds"} <= whole.rows[0].keys()
    log = (whole.folder / "log.txt").read_text()
    assert f"rcnn predict {whole.folder} {data} --split val" in log
    assert "square" in log
    assert read(whole.folder / "config.yaml").data.path == str(data)


def test_best_is_the_first_epoch_of_the_highest_ap(whole: Run) -> None:
    aps = [row["ap"] for row in whole.rows]
    summary = load_weights(whole.best)[1]["summary"]
    assert summary["epoch"] == 1 + aps.index(max(aps))
    assert load_weights(whole.last)[1]["summary"]["epoch"] == 2
    assert whole.metrics.ap == pytest.approx(max(aps))


def test_the_average_is_saved_instead_of_the_last_step(whole: Run) -> None:
    path = latest(whole.folder / "checkpoints")
    assert path is not None
    state, kept = load_weights(path)[0], read_detector(whole.last)[0]
    assert all(torch.equal(tensor, state[f"ema/{name}"]) for name, tensor in kept.items())
    assert not all(torch.equal(tensor, state[f"model/{name}"]) for name, tensor in kept.items())


def test_a_written_config_repeats_the_run(whole: Run, tmp_path: Path) -> None:
    assert_same(train(config=whole.folder / "config.yaml", runs=tmp_path, quiet=True), whole)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch._dynamo, rcnn.training.start as start, rcnn.training.train as training
import rcnn.training.recorders.standard as recorders  # all that is imported once for all children
from rcnn.training.trainer import Trainer

take = Trainer.step
recorders.plot_history = start.draw_start = lambda *_: None
for killed, saved, folder, arguments in json.loads(sys.argv[1]):
    def step(trainer, items, number, requests):
        if number + 1 == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(trainer, items, number, requests)
    child = os.fork()
    if child == 0:
        Trainer.step = step
        Trainer.is_late = lambda trainer: trainer.state.progress.step + 1 == saved
        training.train(**arguments)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with open("kept", "a") as file:
        print(*[path.stem for path in Path(folder, "checkpoints").glob("*.safetensors")], file=file)
"""
"""Trains with each of a list of arguments in a child, which saves a checkpoint after a step and is killed later.

The names of the checkpoints are written to a file: a pipe would stay open as long as loader processes outlive a child.
"""


@pytest.fixture(scope="module")
def killed_twice(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return number of loader processes -> folder of a run that was killed twice."""
    folder = tmp_path_factory.mktemp("killed")
    runs = {workers: folder / str(workers) / "shapes-1" for workers in (0, 2)}
    kills = []
    for workers, run in runs.items():
        begun = {"data": str(data), "overrides": OVERRIDES, "runs": str(run.parent), "workers": workers, **OPTIONS}
        kills += [
            (3, 0, str(run), begun),  # before any checkpoint but the first
            (7, 6, str(run), {"resume": str(run), "quiet": True}),  # after a checkpoint in the second epoch
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", KILLED, json.dumps(kills)]
    subprocess.run(words, cwd=folder, env=environment, timeout=240, check=True)
    assert (folder / "kept").read_text().splitlines() == ["step-0", "step-6"] * 2
    return runs


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twice_resumes_to_the_bit(whole: Run, killed_twice: dict[int, Path], workers: int) -> None:
    folder = killed_twice[workers]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half": true}\n')
    assert_same(train(resume=folder, quiet=True), whole)


@pytest.mark.parametrize("written", [0, 1, 4])
def test_resuming_a_run_without_a_checkpoint_says_how_to_start_it_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    left = iter([None] * written)

    def replace(self: Path, target: Path) -> Path:
        next(left)  # like a kill: neither this file nor later ones are written
        return Path(os.rename(self, target) or target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(StopIteration):
            train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    folder = tmp_path / "shapes-1"
    expected = ["config.yaml", "environment.json", "faults.txt", "train.txt"][:written]
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".json", ".txt")) == expected
    again = f"--config {folder / 'config.yaml'}" if written else "DATA"
    with pytest.raises(SettingsError, match=re.escape(f"Start it again: rcnn train {again}")):
        train(resume=folder)
    assert not written or read(folder / "config.yaml").data.path == str(data)


def test_a_finished_run_can_be_resumed_and_does_nothing_new(whole: Run) -> None:
    last = whole.rows[-1]
    again = train(resume=whole.folder, quiet=True)
    assert_same(again, whole)
    assert list(again.rows[-1]) == list(last)  # columns keep their order
    assert again.rows[-1]["images_per_second"] is None
    assert last["images_per_second"] > 0


def test_a_run_lengthened_before_its_first_step_equals_a_run_of_that_length(
    whole: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        with pytest.raises(Interrupted, match="--resume"):
            train(data, overrides=OVERRIDES, runs=tmp_path, **{**OPTIONS, "epochs": 1})
    folder = tmp_path / "shapes-1"
    assert_same(train(resume=folder, epochs=2, quiet=True), whole)
    assert read(folder / "config.yaml") == read(whole.folder / "config.yaml")
    assert read(folder / "config-epochs-1.yaml").train.epochs == 1


def test_a_finished_run_can_be_lengthened_and_logs_its_new_schedule(whole: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "copy"))
    with pytest.raises(SettingsError, match="has already begun epoch 2 of 2; give more than 2"):
        train(resume=folder, epochs=1)
    longer = train(resume=folder, epochs=3, quiet=True)
    assert [row["epoch"] for row in longer.rows] == [1, 2, 3]
    assert [row["ap"] for row in longer.rows[:2]] == [row["ap"] for row in whole.rows]
    assert [read(folder / f"config{end}.yaml").train.epochs for end in ("", "-epochs-2")] == [3, 2]
    log = (folder / "log.txt").read_text()
    assert "3 epochs instead of 2 (the old settings are in config-epochs-2.yaml)" in log
    assert "the cosine schedule is computed anew, and the learning rate continues at 0.00063 after step 8" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"patience": 1}}, "was stopped after 2 epochs, because the last 1 brought no better score"),
        ({"train": {"scheme": "alternating"}}, "is a run of 4 stages .train.scheme=alternating., each of 2 epochs"),
    ],
)
def test_a_run_that_cannot_be_lengthened_is_refused(
    whole: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "copy"))
    (folder / "config.yaml").write_text(to_yaml(override(read(folder / "config.yaml"), change)))
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "ap": 0.2}\n{"epoch": 2, "ap": 0.1}\n')
    with pytest.raises(SettingsError, match=f"--epochs 9: .*{message}.*--init .*copy --epochs N"):
        train(resume=folder, epochs=9)


def test_ctrl_c_finishes_the_step_saves_and_names_the_command_to_resume(
    whole: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(trainer: Trainer) -> bool:
        if trainer.state.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    is_late = Trainer.is_late
    monkeypatch.setattr(Trainer, "is_late", press)
    monkeypatch.setattr("rcnn.training.recorders.report_page.write_report", write_report)
    with pytest.raises(Interrupted, match=r"rcnn train --resume .*shapes-1"):
        train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert "<dd>0 of 2</dd>" in (tmp_path / "shapes-1" / "report.html").read_text(encoding="utf-8")
    assert [path.stem for path in (tmp_path / "shapes-1" / "checkpoints").iterdir()] == ["step-3"]
    monkeypatch.setattr(Trainer, "is_late", is_late)
    assert_same(train(resume=tmp_path / "shapes-1", quiet=True), whole)


def test_a_full_disk_is_reported_and_the_old_checkpoint_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full(file: int) -> None:
        if ".step-4." in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*--resume .*step-0"):
        train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert [path.name for path in (tmp_path / "shapes-1" / "checkpoints").iterdir()] == ["step-0.safetensors"]


@pytest.mark.parametrize("fault", ["read-only", "no folder", "no images"])
def test_files_that_go_during_a_training_are_named_with_the_command_to_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    images, open_file = shutil.copytree(data, tmp_path / "shapes"), Path.open
    run = tmp_path / "shapes-1"

    def go(_: Trainer) -> bool:
        if fault == "no images":
            shutil.rmtree(images / "images", ignore_errors=True)
        elif fault == "no folder":
            shutil.rmtree(run)
        return True

    def read_only(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "r" and "step-1" in path.name and fault == "read-only":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return open_file(path, mode, *arguments, **options)

    monkeypatch.setattr(Trainer, "is_late", go)
    monkeypatch.setattr(Path, "open", read_only)
    error, message = {
        "read-only": (TrainingError, rf"Read-only file system: .*Resume with: rcnn train --resume {run} "),
        "no folder": (TrainingError, rf"No such file or directory: '{run}.*Start again"),
        "no images": (DataError, rf"train_0000\d.jpg: .*Resume with: rcnn train --resume {run} "),
    }[fault]
    with pytest.raises(error, match=rf"(?s){message}"):
        train(images, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)


class StartsAnother(Recorder):
    """Starts a training of the same run and one of other data in another thread."""

    def __init__(self, data: Path) -> None:
        self.data, self.errors = data, list[BaseException | None]()

    def start(self, about: About) -> None:
        with ThreadPoolExecutor(1) as pool:
            second = (pool.submit(train, resume=about.folder), pool.submit(train, self.data, **OPTIONS))
            self.errors += [future.exception() for future in second]


def test_a_second_training_in_the_same_process_is_refused(data: Path, tmp_path: Path) -> None:
    """Both would draw from torch's global generator."""
    recorder = StartsAnother(data)
    options = {**OPTIONS, "epochs": 1, "runs": tmp_path, "overrides": OVERRIDES}
    assert train(data, recorders=[recorder], **options).rows
    assert [type(error) for error in recorder.errors] == [SettingsError] * 2
    assert all("another training is running in this process" in str(error) for error in recorder.errors)
    with pytest.raises(TrainingError):
        train(data, **{**options, "lr": 1e12, "overrides": [*OVERRIDES, "train.clip=null"]})
    with only_training():  # also after a failure
        pass


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step .*train_0000\d\.jpg.*step-0\.safetensors"):
        train(data, overrides=[*OVERRIDES, "train.clip=null"], runs=tmp_path, **{**OPTIONS, "lr": 1e12})


def test_patience_stops_early(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, validate = iter((0.3, 0.4, 0.4, 0.2, 0.9)), Trainer.validate

    def with_next_score(*arguments: Any) -> Metrics:
        """Set the AP, since that of a real network differs between CPUs."""
        metrics = validate(*arguments)
        return replace(metrics, coco=replace(metrics.coco, ap=next(scores)))

    monkeypatch.setattr(Trainer, "validate", with_next_score)
    run = train(data, overrides=OVERRIDES, runs=tmp_path, patience=2, **{**OPTIONS, "epochs": 9})
    assert [row["ap"] for row in run.rows] == [0.3, 0.4, 0.4, 0.2]
    assert [read_detector(file)[1].summary["epoch"] for file in (run.best, run.last)] == [2, 4]


def test_training_works_outside_the_main_thread(data: Path, tmp_path: Path) -> None:
    done: list[Run] = []
    options = {**OPTIONS, "epochs": 1}
    thread = threading.Thread(target=lambda: done.append(train(data, overrides=OVERRIDES, runs=tmp_path, **options)))
    thread.start()
    thread.join()
    assert len(done[0].rows) == 1


def test_faulty_data_leaves_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(tmp_path / "nothing", runs=tmp_path / "runs", **OPTIONS)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("cells.v2", "cells.v2", "cells.v2"),
        ("cells.v2/data.yaml", "cells.v2", "cells.v2"),
        ("cells/annotations", "cells", "cells"),
        ("cells/annotations/val.json", "cells", "cells"),
        ("VOCdevkit", "VOCdevkit/VOC2007", "VOCdevkit"),
    ],
)
def test_a_run_is_named_after_the_folder_of_its_data(tmp_path: Path, path: str, root: str, name: str) -> None:
    settings = choose_settings(tmp_path / path, overrides=["train.init=none"])
    dataset = Dataset(tmp_path / root, "voc", "train", ("thing",), (1,), ())
    _, _, folder = prepare_run(settings, (dataset, dataset), ALONE, None, partial(RunFolder.create, tmp_path / "runs"))
    assert folder.path.name == f"{name}-1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to train on"),
        ({"data": "x", "epoch": 3}, r"did you mean `train.epochs`"),
        ({"data": "x", "callbacks": [print]}, r"did you mean `recorders=\[...\]` of `rcnn.train`"),
        ({"data": "x", "imgsz": (480, 640)}, "imgsz=.480, 640.`: give one whole number"),
        ({"resume": "x"}, "x"),
        ({"data": ""}, "the path of the data is empty"),
        ({"data": "x", "config": ""}, "the path of the settings is empty"),
        ({"data": "x", "start_from": ""}, "the path of the detector is empty"),
        ({"resume": ""}, "the path of the run is empty"),
    ],
)
def test_wrong_arguments_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        train(**options)


def test_options_can_have_the_names_of_other_programs(tmp_path: Path) -> None:
    options = {"imgsz": 224, "lr0": 0.1, "batch_size": 2, "num_workers": 1, "holdout": 0.2, "epochs": 5}
    settings = choose_settings(tmp_path, options=options)
    assert (settings.preprocess.short, settings.preprocess.long) == (224, 384)
    assert (settings.train.lr, settings.train.batch, settings.train.epochs) == (0.1, 2, 5)
    assert (settings.data.workers, settings.data.holdout) == (1, 0.2)


def test_a_batch_that_the_processes_cannot_share_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SettingsError, match=r"train.batch=2 can't be shared by 3 processes evenly"):
        train(data, overrides=OVERRIDES, **OPTIONS)


def test_a_run_that_is_being_trained_is_not_resumed(whole: Run) -> None:
    with lock(whole.folder), pytest.raises(SettingsError, match="is being trained in this process already"):
        train(resume=whole.folder, quiet=True)
