import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rcnn.config import Settings, override, read
from rcnn.data.dataset import Dataset, Fault, Record
from rcnn.errors import DataError, SettingsError
from rcnn.training.recorders.standard import CsvTable, JsonLines
from rcnn.training.run_folder import RunFolder
from rcnn.training.train import train
from tests.training.pieces import about


def dataset(root: Path, *names: str) -> Dataset:
    no_objects = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    records = tuple(Record(root / name, name, name, (4, 4), *no_objects) for name in names)
    return Dataset(root, "voc", "train", ("a",), (1,), records, (Fault("x.xml:3", "a box of no size", "mendable"),))


def test_run_folders_are_numbered_above_the_highest(tmp_path: Path) -> None:
    for name in ("exp-1", "exp-7", "exp-old", "other-9"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert RunFolder.create(tmp_path / "runs", "exp").path.name == "exp-8"
    assert RunFolder.create(tmp_path / "runs", "new").path.name == "new-1"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "exp")


def test_the_folder_describes_settings_machine_and_data(folder: RunFolder, tmp_path: Path) -> None:
    settings = override(Settings(), ["train.lr=0.003"])
    folder.describe(settings, dataset(tmp_path, "a.png", "b.png"), dataset(tmp_path, "c.png"))
    assert read(folder.config) == settings
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"python", "packages", "threads", "command"} <= environment.keys()
    assert (folder.path / "faults.txt").read_text() == "x.xml:3: a box of no size\n"
    assert (folder.path / "train.txt").read_text() == "a.png\nb.png\n"
    assert (folder.path / "val.txt").read_text() == "c.png\n"


def test_changed_images_or_classes_are_refused(folder: RunFolder, tmp_path: Path) -> None:
    train, val = dataset(tmp_path, "a.png", "b.png"), dataset(tmp_path, "c.png")
    folder.describe(Settings(), train, val)
    folder.see_same_data(train, val)
    for pair in ((dataset(tmp_path, "a.png"), val), (train, dataset(tmp_path, "c.png", "d.png"))):
        with pytest.raises(DataError, match=r"differ from those in .*\.txt, with which the run started.*--init .*last"):
            folder.see_same_data(*pair)
    with pytest.raises(DataError, match=r"differ from those in .*classes\.txt"):
        folder.see_same_data(replace(train, names=("other",)), val)


def test_rows_become_json_lines_and_a_table(folder: RunFolder) -> None:
    lines, table = JsonLines(folder.metrics), CsvTable(folder.table)
    for row in ({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "ap": None}, {"epoch": 3, "loss": 0.1, "ap": 1}):
        lines.epoch(row)
        table.epoch(row)
    assert folder.rows()[1:] == [{"epoch": 2, "loss": 0.25, "ap": None}, {"epoch": 3, "loss": 0.1, "ap": 1}]
    with (folder.path / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["ap"] for row in found] == ["", "", "1"]
    assert [row["loss"] for row in found] == ["0.5", "0.25", "0.1"]


def test_logs_are_cut_back_to_a_checkpoint(folder: RunFolder) -> None:
    lines, table = JsonLines(folder.metrics), CsvTable(folder.table)
    for recorder in (lines, table):
        recorder.epoch({"epoch": 1})
    folder.log("first")
    lengths = folder.log_lengths()
    for recorder in (lines, table):
        recorder.epoch({"epoch": 2})
    folder.log("second")
    folder.cut_logs(lengths)
    CsvTable(folder.table).start(about(folder.path, rows=tuple(folder.rows())))
    assert folder.rows() == [{"epoch": 1}]
    assert (folder.path / "log.txt").read_text() == "first\n"
    assert (folder.path / "results.csv").read_text() == "epoch\n1\n"


@pytest.mark.parametrize("name", ["/abs", "a/b", "../a", ".", "a\x1b[2J", "x" * 101])
def test_a_name_that_is_not_a_folders_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"--name .*no `/`"):
        train(name=name)


def test_a_name_may_contain_characters_of_a_glob_pattern(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, "[a]*").path.name == "[a]*-1"
    assert RunFolder.create(tmp_path, "[a]*").path.name == "[a]*-2"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"epoch": [1]}', '{"epoch": NaN}', '{"epoch": 1e999}', "\udcff", "[" * 10**5, "9" * 5000]
)
def test_rows_that_no_run_writes_are_reported(folder: RunFolder, text: str) -> None:
    folder.metrics.write_text(f'{{"epoch": 1}}\n{text}\n', errors="surrogateescape")
    with pytest.raises(DataError, match=r"metrics\.jsonl:\d: this is not a row that a run writes"):
        folder.rows()


def test_logs_outside_the_folder_and_shorter_ones_are_not_cut(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    folder.log("first")
    folder.cut_logs({"../mine.txt": 0, "log.txt": 10**12, "metrics.jsonl": 0})
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (folder.path / "log.txt").read_text() == "first\n"


def test_lists_of_names_may_have_any_encoding(folder: RunFolder, tmp_path: Path) -> None:
    train_set, val_set = dataset(tmp_path, os.fsdecode(b"\xe9.png")), dataset(tmp_path, "c.png")
    folder.describe(Settings(), train_set, val_set)
    folder.see_same_data(train_set, val_set)
    (folder.path / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"differ from those in .*val\.txt"):
        folder.see_same_data(train_set, val_set)
