"""`rcnn predict --shard I/N`, `--list` and `rcnn merge`."""

import io
import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from rcnn.detector import Detector
from rcnn.shards import predict

from .conftest import Run, read_json

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def rows_of(file: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_shards_together_have_the_boxes_of_a_plain_prediction(run: Run, images: Path, weights: Path) -> None:
    (images / "below").mkdir()
    (images / "5.jpg").rename(images / "below/1.jpg")
    (images / "bad.jpg").write_bytes(b"no image")
    run.ok("predict", weights, images, "--format", "json", "--out", "plain", "--top", 5)
    outputs = [
        run.ok("predict", weights, images, "--shard", f"{index}/2", "--out", "out", "--top", 5).out for index in (1, 2)
    ]
    assert sum("of them unreadable" in output for output in outputs) == 1
    assert "7 images, 1 of them unreadable, written to out/results.jsonl" in run.ok("merge", "out").out
    rows = rows_of("out/results.jsonl")
    assert [row["name"] for row in rows] == [*(f"{index}.jpg" for index in range(5)), "bad.jpg", "below/1.jpg"]
    plain = {row["path"]: row["detections"] for row in read_json("plain/results.json")}
    for row in rows:
        if row["name"] == "bad.jpg":
            assert "bad.jpg: this is not an image" in str(row["error"])
            continue
        found = plain[row["path"]]
        assert np.round(row["boxes"], 2).tolist() == [one["box"] for one in found]
        assert (row["names"], row["labels"]) == ([one["name"] for one in found], [one["label"] for one in found])
        assert [round(score, 5) for score in row["scores"]] == [one["score"] for one in found]  # type: ignore[attr-defined]


def test_a_list_is_a_source_with_and_without_shards(
    run: Run, images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [images / f"{index}.jpg" for index in (3, 0, 4)]
    Path("list.txt").write_text("\n".join(map(str, names)) + "\n\n")
    document = run.json("predict", weights, "--list", "list.txt", "--format", "json")
    assert [row["path"] for row in document] == list(map(str, names))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(map(str, names)).encode())))
    run.ok("predict", weights, "--list", "-", "--shard", "1/1", "--format", "parquet", "--out", "out")
    run.ok("merge", "out", "--out", "all.parquet")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table("all.parquet")
    assert table["name"].to_pylist() == sorted(map(str, names))
    assert all(map(len, table["boxes"].to_pylist()))


@pytest.mark.parametrize("number", CODES)
def test_a_signal_keeps_what_is_done_and_names_the_command_to_continue(
    run: Run, images: Path, weights: Path, number: signal.Signals
) -> None:
    original, calls = Detector.detect, itertools.count(1)

    def stop(self: Detector, *arguments: object, **options: object) -> object:
        if next(calls) == 4:
            signal.raise_signal(number)
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    words = ("predict", str(weights), str(images), "--shard", "1/1", "--out", "out")
    with patch.object(Detector, "detect", stop):
        outcome = run.fails(CODES[number], f"Continue with: {shlex.join(['rcnn', *words, '--resume'])}", *words)
    assert "out/1-of-1: 3 images" in outcome.out
    run.fails(1, "1 of 1 shards are missing or not complete: 1/1", "merge", "out")
    assert "written to out/results.jsonl" in run.ok("merge", "out", "--partial").out
    outcome = run.ok(*words, "--resume")
    assert "shard 1/1 is complete: 6 images, in out/1-of-1" in outcome.out
    run.ok("merge", "out", "--out", "all.jsonl")
    assert len(rows_of("all.jsonl")) == 6


def test_a_full_disk_names_the_command_to_continue(run: Run, images: Path, weights: Path) -> None:
    full = patch.object(predict, "atomic_write", side_effect=OSError(28, "No space left on device", "out/part"))
    with full:
        message = "out/part: No space left on device. Free space first. Finished images are kept. Continue with: rcnn"
        run.fails(1, message, "predict", weights, images, "--shard", "1/1", "--out", "out")
    run.ok("predict", weights, images, "--shard", "1/1", "--out", "out", "--resume")


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (2, "the shards are counted from 1/4 to 4/4", "{images} --shard 5/4"),
        (2, "the shards are counted from 1/4 to 4/4", "{images} --shard 0/4"),
        (2, "give the shard and their number, as in 3/8", "{images} --shard 3"),
        (2, "give one folder of images, or --list FILE", "{images} {images} --shard 1/4"),
        (2, "give one folder of images, or --list FILE", "--shard 1/4"),
        (2, "give one folder of images, or --list FILE", "{images} --list x --shard 1/4"),
        (2, "--list: give either a list of images or SOURCE", "{images} --list x"),
        (3, "x: the list of images can't be read: No such file", "--list x"),
        (3, "x: the list of images can't be read: No such file", "--list x --shard 1/4"),
        (3, "not a folder", "{images}/0.jpg --shard 1/4"),
        (3, "addresses of this kind are not opened", "ftp://server/x --shard 1/4"),
        (2, "unknown `drawn`; the formats of shards are jsonl, parquet", "{images} --shard 1/4 --format drawn"),
        (2, "--split is not for --shard", "{images} --shard 1/4 --split val"),
        (2, "--json is not for --shard", "{images} --shard 1/4 --json"),
        (2, "add --shard I/N", "{images} --resume"),
        (3, "empty, line 2: not a path", "--list empty --shard 1/1"),
        (3, "urls, line 1: ftp:...: addresses of this kind", "--list urls --shard 1/1"),
        (3, "chained, line 1: simplecache:...: addresses with `::`", "--list chained"),
        (3, "has no image", "--list none --shard 1/1"),
        (3, "none: the list of images is empty", "--list none"),
    ],
)
def test_wrong_words_are_refused(run: Run, images: Path, weights: Path, code: int, message: str, words: str) -> None:
    Path("empty").write_bytes(b"a.jpg\n\0\n")
    Path("urls").write_text("ftp://example.org/a.jpg\n")
    Path("chained").write_text("simplecache::s3://bucket/a.jpg\n")
    Path("none").touch()
    run.fails(code, message, "predict", weights, *words.format(images=images).split(), "--out", "out")


def test_shards_are_refused_under_torchrun(
    run: Run, images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    run.fails(2, "per shard without torchrun", "predict", weights, images, "--shard", "1/1")


@pytest.mark.more
def test_every_picture_is_there_once_after_twenty_kills_of_the_command(tmp_path: Path, weights: Path) -> None:
    """Real processes, killed at random moments of their run."""
    rng, draws = np.random.default_rng(0), Random(0)
    names = sorted(f"{number % 3}/{number:04}.png" for number in range(2_000))
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    program = (
        "import rcnn.shards.predict as predict; predict.MAX_PART_PICTURES = 7; from rcnn.cli.app import main; main()"
    )
    words = [sys.executable, "-c", program, "predict", str(weights), "photos", "--shard", "1/1", "--out", "out"]
    shard, kills = tmp_path / "out/1-of-1", 0
    while kills < 20:
        before = len(list(shard.glob("part-*")))
        with subprocess.Popen([*words, "--resume"], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            while len(list(shard.glob("part-*"))) <= before:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(draws.random() / 2)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        kills += 1
    subprocess.run([*words, "--resume"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    merge = [sys.executable, "-m", "rcnn", "merge", "out"]
    subprocess.run(merge, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert [row["name"] for row in rows_of(str(tmp_path / "out/results.jsonl"))] == names
