"""Fast R-CNN trained on external proposals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnn.config import read
from rcnn.data.formats.find import open_splits
from rcnn.data.proposals.external import ImageProposals, ranked
from rcnn.data.proposals.read import read_proposals
from rcnn.data.proposals.search import search_files
from rcnn.errors import DataError, SettingsError
from rcnn.presets import settings_of
from rcnn.training.configure import choose_settings
from rcnn.training.distributed import Distributed
from rcnn.training.proposals import load_proposals, shared_proposals
from rcnn.training.run import Run
from rcnn.training.train import train
from rcnn.weights.file import load_weights
from rcnn.weights.metadata import read_detector
from tests.training.pieces import OPTIONS, SMALL, assert_same, killed, write_random_proposals

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
FEW = [*SMALL, "roi.levels=[2,3,4,5]", "roi.canonical_size=12", "rpn.post_train=12", "rpn.post_test=8"]
OVERRIDES = [*FEW, "augment.crop=0.5", "train.scheme=fast-rcnn"]
WINDOWS = ["train.scheme=fast-rcnn", "train.proposals=sliding-windows"]


@pytest.fixture(scope="module")
def file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_proposals(data, tmp_path_factory.mktemp("proposals") / "given.json")


@pytest.fixture(scope="module")
def whole(data: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted."""
    overrides = [*OVERRIDES, f"train.proposals={file}"]
    return train(data, overrides=overrides, runs=tmp_path_factory.mktemp("whole"), **OPTIONS)


def test_it_learns_from_the_given_proposals(whole: Run) -> None:
    assert {"train_roi_class", "train_roi_box", "val_roi_class", "ap"} <= whole.rows[0].keys()
    assert not any("rpn" in key for key in whole.rows[0])
    # The objects are among the best 8 proposals of every image, so their recall is full.
    assert [row["proposal_ar300"] for row in whole.rows] == [1.0, 1.0]
    assert whole.metrics.proposals.ar.tolist() == [1.0] * len(whole.metrics.proposals.tops)
    assert whole.rows[1]["train_loss"] < whole.rows[0]["train_loss"]


def test_the_run_stores_the_best_proposals_of_each_list(whole: Run, data: Path, file: Path) -> None:
    splits = open_splits(data, settings_of("tiny-fpn").data)
    records = [record for split in splits for record in split.records]
    expected = iter(read_proposals(file, records))
    for name, count, split in (("train", 12, splits[0]), ("val", 8, splits[1])):
        found = load_proposals(whole.folder / "proposals" / f"{name}.safetensors")
        assert len(found) == len(split)
        for stored in found:
            original = next(expected)
            np.testing.assert_allclose(stored.boxes, original.boxes[:count], rtol=1e-6)
            np.testing.assert_allclose(stored.scores, original.scores[:count], rtol=1e-6)


def test_the_rpn_keeps_its_initial_weights(data: Path, file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**OPTIONS, "epochs": 1, "overrides": [*OVERRIDES, f"train.proposals={file}"]}
    first = train(data, runs=tmp_path, **options)
    again = train(data, runs=tmp_path, init=str(first.last), **options)
    before, after = (load_weights(run.last)[0] for run in (first, again))
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"backbone", "fast_rcnn"}
    assert any(name.startswith("rpn.") for name in after)


def test_the_weights_store_the_name_of_the_proposals_without_its_folder(whole: Run) -> None:
    assert read_detector(whole.best)[1].settings.train.proposals == "given.json"


def test_a_killed_run_resumes_to_the_bit_without_the_file(
    whole: Run, data: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "given.json"
    copy.write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    with killed(step=4, saved=3):
        train(data, overrides=[*OVERRIDES, "train.proposals=given.json"], runs=tmp_path, **OPTIONS)
    assert [path.stem for path in (tmp_path / "shapes-1" / "checkpoints").iterdir()] == ["step-3"]
    assert read(tmp_path / "shapes-1" / "config.yaml").train.proposals == str(copy)
    monkeypatch.chdir("/")
    copy.unlink()
    assert_same(train(resume=tmp_path / "shapes-1", quiet=True), whole)


def test_all_faults_of_the_proposals_are_reported_before_the_run_starts(data: Path, file: Path, tmp_path: Path) -> None:
    proposals = json.loads(file.read_text())
    first, second, *_ = proposals
    proposals[first][3][2] = 97.5
    proposals[second][1][0] = float("nan")
    proposals["images/train/missing.jpg"] = [[0, 0, 5, 5]]
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(proposals))
    with pytest.raises(DataError) as error:
        train(data, overrides=[*OVERRIDES, f"train.proposals={bad}"], runs=tmp_path / "runs", **OPTIONS)
    lines = str(error.value).splitlines()
    assert lines[0] == "3 faults in the proposals:"
    assert lines[1].startswith(f"{bad}: image `{first}`, row 4: the box (")
    assert lines[1].endswith("is outside the image of 96 x 64 pixels")
    assert lines[2].startswith(f"{bad}: image `{second}`, row 2: the box (nan, ")
    assert lines[3].startswith(f"{bad}: image `images/train/missing.jpg`, row 1: the data has no such image")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.scheme=fast-rcnn"], "train.scheme=fast-rcnn needs train.proposals"),
        (["train.proposals=x.json"], "only train.scheme=fast-rcnn reads train.proposals=x.json"),
        (["train.scheme=fast-rcnn", "train.proposals=x.json", "roi.head=none"], "needs a second stage"),
        (["train.proposals=sliding-windows"], "only train.scheme=fast-rcnn reads train.proposals=sliding-windows"),
        ([*WINDOWS, "roi.head=none"], "needs a second stage"),
        ([*WINDOWS, "train.tile=64"], "works on proposals of whole images, not of windows"),
    ],
)
def test_contradicting_settings_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_settings("x", None, "tiny-fpn", settings, {})


def test_processes_share_a_search(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process searches its share of the images, waits for the others, and reads all results."""
    settings, searched = settings_of("tiny-fpn"), []
    dataset, _ = open_splits(data, settings.data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def search(image: np.ndarray, mode: str) -> ImageProposals:
        searched.append(image.mean())
        return ranked(np.array([[0.0, 0, 9, len(searched)]]))

    class Third(Distributed):
        def gather(self, thing: Any) -> list[Any]:
            assert len(searched) == 2  # images 2 and 5 of 6; now the other processes search theirs
            list(search_files([record.path for record in dataset.records], "selective-search", settings.data))
            return [thing] * self.world

    monkeypatch.setattr("rcnn.data.proposals.search.selective_search", search)
    proposals = shared_proposals("selective-search", dataset, settings, Third(torch.device("cpu"), 2, 3))
    assert len(proposals) == len(dataset) == len(searched) == 6
    assert {int(proposals[2].boxes[0, 3]), int(proposals[5].boxes[0, 3])} == {1, 2}
