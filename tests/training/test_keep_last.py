"""The paper's recipe for VOC 2007: train on trainval, score on test, and choose nothing by the scores."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rcnn
from rcnn.errors import Interrupted, SettingsError
from rcnn.evaluate import evaluate
from rcnn.metrics.table import Metrics
from rcnn.metrics.voc import voc_ap
from rcnn.training.recorders import Recorder
from rcnn.training.run import Run
from rcnn.training.train import train
from rcnn.weights.file import load_weights
from rcnn.weights.metadata import read_detector
from tests.data import sets
from tests.training.pieces import FEW_PROPOSALS, SMALL, assert_equal, rows

pytestmark = pytest.mark.usefixtures("no_pictures")
RECIPE = [
    *("data.train=trainval", "data.val=test", "train.keep=last", "val.voc_ap=11-point", "data.workers=0"),
    *(*SMALL, *FEW_PROPOSALS, "preprocess.multiple=32"),
]
BEST = [word for word in RECIPE if word != "train.keep=last"]
OPTIONS: dict[str, Any] = {"model": "tiny-fpn", "epochs": 3, "batch": 2, "init": "none", "device": "cpu", "quiet": True}


def voc(root: Path, test: Sequence[str]) -> Path:
    """Write a folder like VOC 2007, with the lists train, val, trainval and test."""
    corners = [(3, 4, 30, 32), (20, 8, 55, 36), (5, 5, 50, 20), (30, 2, 58, 38), (8, 6, 40, 30), (2, 10, 25, 38)]
    images = {stem: [("cat" if stem in "ace" else "dog", box)] for stem, box in zip("abcdef", corners, strict=True)}
    lists = {"train": ["a", "b"], "val": ["c", "d"], "trainval": ["a", "b", "c", "d"], "test": test}
    return sets.voc(root, images, lists)


@contextmanager
def worse_and_worse() -> Iterator[None]:
    """Make the scores of a training fall: AP 1, 1/2, 1/3, ...."""
    scored = 0

    def score(*arguments: Any, **options: Any) -> Metrics:
        nonlocal scored
        scored += 1
        metrics = evaluate(*arguments, **options)
        return replace(metrics, coco=replace(metrics.coco, ap=1 / scored))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rcnn.training.trainer.evaluate", score)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc(tmp_path_factory.mktemp("data") / "voc", test=["e", "f"])


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted."""
    return train(data, overrides=RECIPE, runs=tmp_path_factory.mktemp("whole"), **OPTIONS)


def assert_same(first: Path, second: Path) -> None:
    assert_equal(load_weights(first)[0], load_weights(second)[0])


@pytest.mark.parametrize(("overrides", "file", "epoch"), [(RECIPE, "last", 3), (BEST, "best", 1)])
def test_the_last_weights_are_reported_whatever_they_score(
    overrides: list[str], file: str, epoch: int, data: Path, tmp_path: Path
) -> None:
    with worse_and_worse():
        run = train(data, overrides=overrides, runs=tmp_path, **OPTIONS)
    assert [row["ap"] for row in run.rows] == [1, 1 / 2, 1 / 3]
    assert run.best == run.folder / "weights" / f"{file}.safetensors"
    assert load_weights(run.best)[1]["summary"]["epoch"] == epoch
    assert {path.stem for path in (run.folder / "weights").iterdir()} == {"last", file}
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert f"{file} epoch {epoch}: AP" in log
    assert ("chosen on the list test" in log) == (file == "best")
    assert f"rcnn predict {run.folder} {data} --split test" in log


def test_the_run_its_folder_and_its_scores_are_those_of_the_last_weights(whole: Run, data: Path) -> None:
    assert_same(whole.best, whole.last)
    for detector in (whole.detector, rcnn.load(whole.folder, device="cpu")):
        scores = rcnn.val(detector, data, split="test")
        for one, other in zip(scores.predictions, whole.metrics.predictions, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
    assert whole.metrics.ap == pytest.approx(whole.rows[-1]["ap"])


def test_nothing_in_the_weights_depends_on_the_test_list(whole: Run, tmp_path: Path) -> None:
    other = train(voc(tmp_path / "voc", test=["f"]), overrides=RECIPE, runs=tmp_path, **OPTIONS)
    assert [path.name for path in (whole.folder / "weights").iterdir()] == ["last.safetensors"]
    assert_same(whole.last, other.last)
    assert read_detector(whole.last)[1].threshold == read_detector(other.last)[1].threshold == 0.5


def test_eleven_points_are_in_the_rows_and_the_table(whole: Run) -> None:
    metrics = whole.metrics
    points = voc_ap(metrics.truths, metrics.predictions, 2, eleven_point=True)
    assert whole.rows[-1]["voc07_ap50"] == metrics.voc_map50 == pytest.approx(points.mean())
    with (whole.folder / "results.csv").open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    assert "voc07_ap50" in columns
    assert "voc_ap50" not in columns
    assert "VOC07 AP50 (11-point)" in (whole.folder / "log.txt").read_text(encoding="utf-8")


def test_a_resumed_run_ends_with_the_same_weights_and_rows(whole: Run, data: Path, tmp_path: Path) -> None:
    class Press(Recorder):
        def step(self, numbers: Any) -> None:
            if numbers["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(data, overrides=RECIPE, runs=tmp_path, recorders=[Press()], **OPTIONS)
    run = train(resume=tmp_path / "voc-1", quiet=True)
    assert_same(run.last, whole.last)
    assert rows(run.folder) == rows(whole.folder)
    assert run.best == run.last


def test_later_stages_of_the_alternating_scheme_start_from_the_last_weights(data: Path, tmp_path: Path) -> None:
    with worse_and_worse():
        run = train(data, overrides=[*RECIPE, "train.scheme=alternating"], runs=tmp_path, **{**OPTIONS, "epochs": 2})
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.safetensors")}
    assert not any(name.endswith("best.safetensors") for name in files)
    assert {f"stages/{stage}/last.safetensors" for stage in (1, 2, 3)} <= files
    second, last = (read_detector(path)[0] for path in (run.folder / "stages/2/last.safetensors", run.last))
    backbone = [name for name in last if name.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(last[name], second[name]) for name in backbone)
    assert load_weights(run.folder / "stages/1/last.safetensors")[1]["summary"]["epoch"] == 2


def test_patience_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"patience=3 stops a run by its scores .*keep=last .*: leave one"):
        train(data, overrides=RECIPE, runs=tmp_path / "runs", patience=3, **OPTIONS)
    assert not (tmp_path / "runs").exists()
