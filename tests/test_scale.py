"""The recipes of docs/scale.md have one row for every picture, and the boxes of `rcnn predict`, to the last bit."""

import json
import os
import runpy
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import rcnn
from rcnn.detector import Detector
from rcnn.presets import build, settings_of
from tests.test_detector import SMALL

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PICTURES = 90
COLUMNS = ("boxes", "scores", "labels", "names")
SECONDS, SECONDS_TO_END = 900, 20
MARK = "RCNN_TEST_FOLDER"
"""Name of a variable in the environment of all processes that a test starts."""

RAY_IS_INSTALLED = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

Rows = dict[str, dict[str, Any]]
"""Path of a picture below the folder -> its row."""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the scripts set when they are imported, so that it is restored."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector of random weights, and pictures of which one is damaged and one is not a picture."""
    folder = tmp_path_factory.mktemp("scale")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = settings_of("mobilenet-fpn", SMALL)
        network = build(settings, 2)
    Detector(network, settings, ("cat", "dog"), threshold=0.0, device="cpu").save(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        path = folder / f"photos/{number % 3}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    damaged = folder / "photos/1/01.png"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    (folder / "photos/0/00.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(place: Path) -> Rows:
    """What `rcnn predict` finds in one thread."""
    words = ["predict", "model.safetensors", "photos", "--shard", "1/1", "--out", "plain"]
    ended(place, [sys.executable, "-m", "rcnn", *words])
    return by_name(lines_of(place / "plain/1-of-1"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [line for part in folder.glob("part-*.jsonl") for line in part.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def by_name(rows: list[dict[str, Any]]) -> Rows:
    """The rows of all pictures by name, each of which must be there once."""
    named = {row["path"].rpartition("photos/")[2]: row for row in rows}
    assert len(named) == len(rows) == PICTURES
    return named


def assert_same(rows: Rows, expected: Rows) -> None:
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert (row["error"] is None) == (expected[name]["error"] is None) == (name not in ("0/00.png", "1/01.png"))
        for column in COLUMNS:
            assert row[column] == expected[name][column], f"{name}: {column}"
    assert sum(len(row["boxes"]) for row in rows.values()) > PICTURES


def ended(folder: Path, words: list[str], **environment: str) -> str:
    """Run a program that must succeed in a folder, and return what it wrote. Nothing that it starts may outlive it.

    Args:
        folder: the current folder of the program.
        words: the command line.
        **environment: variables; an empty one is removed.
    """
    mark = f"{MARK}={folder}"
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, MARK: str(folder)} | environment
    with (folder / "output").open("w+") as output:
        try:
            present = {name: value for name, value in (os.environ | variables).items() if value}
            options = {"cwd": folder, "env": present, "stdout": output, "stderr": output}
            code = subprocess.run(words, timeout=SECONDS, **options).returncode  # type: ignore[call-overload]
        finally:
            left, end = marked(mark), time.monotonic() + SECONDS_TO_END
            while left and time.monotonic() < end:
                time.sleep(0.1)
                left = marked(mark)
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        output.seek(0)
        said = output.read()
    assert code == 0, said
    assert not left, f"processes were left: {left}\n{said}"
    return said


def marked(mark: str) -> list[int]:
    """Return the processes with a variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def rows_of_parquet(folder: Path) -> Rows:
    """Read all files as one table, which needs the same types in each."""
    return by_name(pyarrow.parquet.read_table(folder).to_pylist())


@pytest.mark.slow
def test_slurm_tasks_predict_their_shards_and_continue_them(place: Path, expected: Rows) -> None:
    program = place / "bin/rcnn"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rcnn "$@"\n')
    program.chmod(0o755)
    script = ["bash", str(EXAMPLES / "slurm.sh"), "model.safetensors", "photos", "slurm"]
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    for task in ("1", "2", "1"):
        said = ended(place, [*script, "2"], PATH=path, SLURM_ARRAY_TASK_ID=task, SLURM_CPUS_PER_TASK="1")
        assert f"shard {task}/2 is complete" in said
    rows = [row for shard in ("1-of-2", "2-of-2") for row in lines_of(place / "slurm" / shard)]
    assert_same(by_name(rows), expected)


def test_the_slurm_script_refuses_missing_arguments() -> None:
    words = ["bash", str(EXAMPLES / "slurm.sh"), "model", "photos", "out"]
    for more in ([], ["100"]):  # without N, and without an array
        done = subprocess.run([*words, *more], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        assert (done.returncode, done.stderr.startswith("usage: sbatch --array=1-N")) == (2, True)


@pytest.mark.slow
def test_dask_processes_have_the_boxes_of_predict(place: Path, expected: Rows) -> None:
    script = str(EXAMPLES / "dask_dataframe.py")
    words = [sys.executable, script, "model.safetensors", "photos", "dask", "--workers", "2", "--part", "25"]
    ended(place, words)
    assert_same(rows_of_parquet(place / "dask"), expected)


def test_spark_gets_frames_of_the_columns_that_it_declares(place: Path) -> None:
    recipe = runpy.run_path(str(EXAMPLES / "spark.py"))
    paths = sorted(str(path) for path in (place / "photos").rglob("*.png"))
    given = pandas.DataFrame({"path": paths, "content": [Path(path).read_bytes() for path in paths]})
    frames = [*recipe["predict"](iter([given[:40], given[40:40], given[40:]]), str(place / "model.safetensors"))]
    assert [len(frame) for frame in frames] == [40, 0, 50]
    declared = [column.split()[0] for column in recipe["COLUMNS"].split(", ")]
    assert all(list(frame.columns) == declared for frame in frames)
    detector = rcnn.load(place / "model.safetensors", device="cpu")
    expected = [row_of(detector, path) for path in paths]
    table = pyarrow.Table.from_pandas(pandas.concat(frames))  # as Spark does
    assert_same(by_name(table.to_pylist()), by_name(expected))


def row_of(detector: rcnn.Detector, path: str) -> dict[str, Any]:
    errors = list[rcnn.ImageError]()
    results = [*detector.stream([path], skip=errors.append)]
    columns = results[0].to_columns() if results else {column: [] for column in COLUMNS}
    return {"path": path, **columns, "error": str(errors[0]) if errors else None}


@RAY_IS_INSTALLED
def test_ray_tables_have_the_same_types_whatever_was_found(place: Path) -> None:
    recipe = runpy.run_path(str(EXAMPLES / "ray_data.py"))
    predictor = recipe["Predictor"](place / "model.safetensors", device="cpu")
    contents = [(place / "photos/2/02.png").read_bytes(), b"damaged"]
    for chosen in (contents, contents[1:], contents[:1], []):
        table = predictor({"path": [""] * len(chosen), "bytes": chosen})
        assert table.schema == recipe["SCHEMA"]
        assert table["error"].is_null().to_pylist() == [content != b"damaged" for content in chosen]


@pytest.mark.parametrize("name", ["dask_dataframe", pytest.param("ray_data", marks=RAY_IS_INSTALLED)])
def test_rows_of_two_runs_are_not_mixed(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "taken").mkdir(exist_ok=True)
    words = [name, str(place / "model.safetensors"), str(place / "photos"), str(place / "taken")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "taken exists" in capsys.readouterr().err


RAY = """
import os, runpy, signal, sys

recipe = runpy.run_path(sys.argv[1])
import ray

ray.init(
    num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, _node_ip_address="127.0.0.1",
    _temp_dir=sys.argv[2],
)
context = ray.data.DataContext.get_current()
context.read_op_min_num_blocks, context.target_min_block_size = 9, 1  # else one task would read all
context.wait_for_min_actors_s = 600  # else the first actor might predict all
pids, killed = os.path.abspath("pids"), os.path.abspath("killed")


class Killed(recipe["Predictor"]):
    calls = 0

    def __call__(self, columns):
        made = super().__call__(columns)
        self.calls += 1
        with open(pids, "a") as file:
            file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
        if self.calls == 2:
            try:
                os.close(os.open(killed, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return made
            os.kill(os.getpid(), signal.SIGKILL)
        return made


recipe["predict"].__globals__.update(Predictor=Killed, IN_MEMORY=4)
recipe["predict"](os.path.abspath("model.safetensors"), os.path.abspath("photos"), os.path.abspath("ray"), workers=2)
ray.shutdown()
"""
"""Runs the recipe with two actors, one of which is killed when it has predicted its second batch."""


@pytest.mark.more
@RAY_IS_INSTALLED
def test_ray_loses_and_doubles_no_picture_when_an_actor_is_killed(place: Path, expected: Rows) -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as sockets:  # their paths may have 107 characters at most
        words = [sys.executable, "-c", RAY, str(EXAMPLES / "ray_data.py"), sockets]
        ended(place, words, OMP_NUM_THREADS="", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert_same(rows_of_parquet(place / "ray"), expected)
    assert (place / "killed").exists()
    workers = [line.split() for line in (place / "pids").read_text().splitlines()]
    assert len({pid for pid, _ in workers}) >= 3
    assert {threads for _, threads in workers} == {"1"}
