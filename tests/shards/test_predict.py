"""A shard is predicted once, in parts, whatever happens."""

import errno
import json
import os
import signal
import subprocess
import sys
from cProfile import Profile
from pathlib import Path
from unittest.mock import patch

import pytest

from rcnn.config import override
from rcnn.errors import DataError, ImageError, SettingsError
from rcnn.images.sources import NamedImage
from rcnn.locks import lock
from rcnn.shards import predict
from rcnn.shards.names import ShardIndex, digest
from rcnn.shards.predict import predict_shard
from rcnn.shards.rows import row_of

from .stub import StubDetector, detector, in_fork, made_up, make_files, names_of, rows_of

NAMES = sorted(["a/1.jpg", "b/1.jpg", "a/22.jpg", "a/deep/333.png", "bad.jpg", "4.jpg", "5.jpg", "6.jpg"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_files(tmp_path / "photos", *NAMES, "notes.txt")
    return tmp_path / "photos"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_PART_PICTURES", 3)


formats = pytest.mark.parametrize("form", ["jsonl", "parquet"])


@formats
@pytest.mark.usefixtures("small_parts")
def test_every_picture_is_a_row_of_one_shard(folder: Path, tmp_path: Path, form: str) -> None:
    states = []
    for index in (1, 2, 3):
        done = predict_shard(detector(), folder, tmp_path / "out", f"{index}/3", format=form, report=states.append)
        assert done.pictures == done.added == len(rows_of(done.folder))
    shards = [names_of(tmp_path / f"out/{index}-of-3") for index in (1, 2, 3)]
    assert sorted(name for names in shards for name in names) == NAMES
    assert shards[0] == [name for name in NAMES if ShardIndex(1, 3).holds(digest(name))]
    for row in (row for index in (1, 2, 3) for row in rows_of(tmp_path / f"out/{index}-of-3")):
        path = folder / row["name"]
        if row["name"] == "bad.jpg":
            assert row["error"] == f"{path}: this is not an image"
            assert (row["height"], row["boxes"]) == (None, [])
        else:
            assert row == row_of(made_up(NamedImage(path, row["name"])))
    assert [path.name for path in sorted((tmp_path / "out/1-of-3").iterdir())][:1] == ["manifest.jsonl"]
    assert sum(state.errors for state in states) >= 1


def test_names_in_a_list_are_whole_paths_and_repeated_ones_count_once(tmp_path: Path) -> None:
    paths = ["x/a/1.jpg", "x/b/1.jpg", "/y/1.jpg", "x/a/1.jpg"] * 1000
    done = predict_shard(detector(), iter(paths), tmp_path / "out")
    assert names_of(done.folder) == sorted({*paths})


def test_a_part_ends_after_its_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_PART_SECONDS", 0.0)
    states: list[predict.ShardProgress] = []
    predict_shard(detector(), folder, tmp_path / "out", report=states.append)
    assert [state.pictures for state in states] == list(range(1, len(NAMES) + 1))


@pytest.mark.usefixtures("small_parts")
def test_a_resumed_shard_predicts_what_is_new(folder: Path, tmp_path: Path) -> None:
    first = predict_shard(detector(), folder, tmp_path / "out", resume=True)
    make_files(folder, "new.jpg")
    assert predict_shard(detector(), folder, tmp_path / "out", resume=True).added == 1
    last = predict_shard(detector(), folder, tmp_path / "out", resume=True)
    assert (last.added, last.pictures, last.errors) == (0, first.pictures + 1, 1)
    assert names_of(first.folder) == sorted([*NAMES, "new.jpg"])
    with pytest.raises(SettingsError, match=r"holds this shard already: add --resume"):
        predict_shard(detector(), folder, tmp_path / "out")


def test_work_and_memory_per_picture_do_not_grow_with_their_number(tmp_path: Path) -> None:
    """Function calls, with made-up names, from the list to the written parts."""
    calls = []
    for number in (1_000, 100_000):
        profile = Profile()
        names = (f"photos/{name:09}/x.jpg" for name in range(number))
        done = profile.runcall(predict_shard, detector(), names, tmp_path / str(number))
        assert done.pictures == number
        calls.append(sum(entry.callcount for entry in profile.getstats()) / number)
    assert calls[1] < 1.05 * calls[0]


def test_our_own_results_in_the_folder_are_left_out(folder: Path) -> None:
    for shard in ("1/2", "2/2"):
        predict_shard(detector(), folder, folder / "out", shard)
    make_files(folder / "out", "drawn.jpg")
    assert predict_shard(detector(), folder, folder / "out", "1/2", resume=True).added == 0


def test_a_deep_folder_does_not_take_a_file_handle_per_level(tmp_path: Path) -> None:
    name = "/".join(["d"] * 300) + "/1.jpg"
    make_files(tmp_path / "photos", name)

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        predict_shard(detector(), tmp_path / "photos", tmp_path / "out")

    assert in_fork(limited) == 0
    assert names_of(tmp_path / "out/1-of-1") == [name]


def test_damage_that_ends_the_stream_is_the_error_of_its_picture(folder: Path, tmp_path: Path) -> None:
    """As in a tile of a large picture, which is read after the stream has begun with the picture."""
    original = StubDetector.stream

    def stream(self, images, **options):  # type: ignore[no-untyped-def]
        for result in original(self, images, **options):
            if "22" in result.origin.name:
                raise ImageError("a/22.jpg: the image can't be read: a tile is damaged")
            yield result

    with patch.object(StubDetector, "stream", stream):
        done = predict_shard(detector(), folder, tmp_path / "out")
    assert done.errors == 2
    assert names_of(done.folder) == NAMES


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("failing", [1, 2, 3, 4, 7])
def test_a_full_disk_keeps_the_finished_parts(folder: Path, tmp_path: Path, failing: int) -> None:
    """It is full at one of the syncs: of the manifest, then of a part, its folder and its line in the manifest."""
    original, calls = os.fsync, iter(range(1, 1000))

    def full(descriptor: int) -> None:
        if next(calls) >= failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with patch.object(os, "fsync", full), pytest.raises(OSError, match="No space left"):
        predict_shard(detector(), folder, tmp_path / "out")
    shard = tmp_path / "out/1-of-1"
    if failing > 2:
        assert len(names_of(shard)) % 3 == 0
    done = predict_shard(detector(), folder, tmp_path / "out", resume=True)
    assert names_of(shard) == NAMES
    assert done.added == len(NAMES) - (3 if failing == 7 else 0)
    assert not [path.name for path in shard.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_done_is_kept_at_a_signal(
    folder: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StubDetector.stream

    def stream(self, images, **options):  # type: ignore[no-untyped-def]
        for count, result in enumerate(original(self, images, **options)):
            if count == 2:
                os.kill(os.getpid(), number)
            yield result

    from rcnn.signals import termination_interrupts

    monkeypatch.setattr(predict, "MAX_PART_PICTURES", 100)
    with patch.object(StubDetector, "stream", stream), pytest.raises(KeyboardInterrupt), termination_interrupts():
        predict_shard(detector(), folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out/1-of-1")) == 2
    assert predict_shard(detector(), folder, tmp_path / "out", resume=True).added == len(NAMES) - 2
    assert names_of(tmp_path / "out/1-of-1") == NAMES


def test_a_signal_while_a_part_is_written_waits_for_it(folder: Path, tmp_path: Path) -> None:
    original = predict.atomic_write

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)  # type: ignore[arg-type]

    with patch.object(predict, "atomic_write", interrupted), pytest.raises(KeyboardInterrupt):
        predict_shard(detector(), folder, tmp_path / "out")
    assert names_of(tmp_path / "out/1-of-1") == NAMES


def test_another_model_or_other_settings_are_refused_and_both_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_shard(detector(), folder, out, "1/2", model="first.safetensors")
    for shard in ("1/2", "2/2"):  # the shard itself, and another one of the same job
        with pytest.raises(SettingsError, match=r"begun with the model first.safetensors .* is not second"):
            predict_shard(detector(1.0), folder, out, shard, resume=True, model="second.safetensors")
        with pytest.raises(SettingsError, match=r"begun with score=0.5, top=None, not score=0.25, top=3;"):
            predict_shard(detector(), folder, out, shard, resume=True, score=0.25, top=3)
        other = detector()
        other.settings = override(other.settings, ["predict.scales=[1,2]"])
        with pytest.raises(SettingsError, match=r"predict.scales=\[1.0\], not predict.scales=\[1.0, 2.0\]"):
            predict_shard(other, folder, out, shard, resume=True)
        with pytest.raises(SettingsError, match="begun with format=jsonl, not format=parquet"):
            predict_shard(detector(), folder, out, shard, resume=True, format="parquet")
        with pytest.raises(SettingsError, match="begun with source=a folder, not source=a list"):
            predict_shard(detector(), ["a.jpg"], out, shard, resume=True)
    with pytest.raises(SettingsError, match=r"begun with the pictures of .*photos, not .*deep"):
        predict_shard(detector(), folder / "a/deep", out, "1/2", resume=True)
    with pytest.raises(SettingsError, match=r"holds shards of 2, such as 1/2, and this is 1/3: give --shard I/2"):
        predict_shard(detector(), folder, out, "1/3", resume=True)
    assert names_of(out / "1-of-2") == [name for name in NAMES if ShardIndex(1, 2).holds(digest(name))]


def test_wrong_arguments_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for shard in ("0/2", "3/2", ShardIndex(5, 4)):
        with pytest.raises(SettingsError, match="shard"):
            predict_shard(detector(), folder, out, shard)
    with pytest.raises(SettingsError, match="unknown `xml`; the formats of shards are jsonl, parquet"):
        predict_shard(detector(), folder, out, format="xml")
    with pytest.raises(SettingsError, match="unknown `horse`; there are cat, dog"):
        predict_shard(detector(), folder, out, classes=["horse"])
    with pytest.raises(SettingsError, match="top=0"):
        predict_shard(detector(), folder, out, top=0)
    with pytest.raises(ImageError, match="not a folder"):
        predict_shard(detector(), folder / "4.jpg", out)
    with pytest.raises(SettingsError, match="holds something other than shards"):
        predict_shard(detector(), folder, folder)
    assert not out.exists()
    with pytest.raises(ImageError, match="has no image"):
        predict_shard(detector(), [], out)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SettingsError, match="without torchrun"):
        predict_shard(detector(), folder, tmp_path / "other")


def test_a_second_job_on_a_shard_is_refused_and_a_dead_one_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    shard = tmp_path / "out/1-of-2"
    shard.mkdir(parents=True)
    hold = "import sys; from pathlib import Path; from rcnn.locks import lock\n" + (
        "with lock(Path(sys.argv[1]), 'predicted'): print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(shard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SettingsError, match=rf"1-of-2 is being predicted already, by process {process.pid} on"):
            predict_shard(detector(), folder, tmp_path / "out", "1/2", resume=True)
        predict_shard(detector(), folder, tmp_path / "out", "2/2")  # another shard is free
        process.kill()
        process.wait()
        predict_shard(detector(), folder, tmp_path / "out", "1/2", resume=True)
    with lock(shard), pytest.raises(SettingsError, match="in this process already"):
        predict_shard(detector(), folder, tmp_path / "out", "1/2", resume=True)


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_manifest_or_part_is_named(folder: Path, tmp_path: Path) -> None:
    shard = predict_shard(detector(), folder, tmp_path / "out").folder
    manifest, part = shard / "manifest.jsonl", shard / "part-000002.jsonl"
    lines, content = manifest.read_bytes().splitlines(keepends=True), part.read_bytes()

    def resume() -> int:
        return predict_shard(detector(), folder, tmp_path / "out", resume=True).added

    assert len(lines) == 5
    manifest.write_bytes(b"".join(lines) + b'{"part":"part-0000')  # of a killed process
    assert resume() == 0
    for number, line in {1: b"{}\n", 2: b"x\n", 3: b'{"part":"../x"}\n'}.items():
        manifest.write_bytes(b"".join([*lines[: number - 1], line, *lines[number:]]))
        with pytest.raises(DataError, match=rf"manifest.jsonl, line {number}: damaged"):
            resume()
    manifest.write_bytes(b"")
    with pytest.raises(DataError, match=r"manifest.jsonl is empty"):
        resume()
    manifest.write_bytes(lines[0].replace(b'"rcnn":1', b'"rcnn":2') + b"".join(lines[1:]))
    with pytest.raises(DataError, match="another version"):
        resume()
    manifest.write_bytes(b"".join(lines))
    part.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"part-000002.jsonl has [\d,]+ bytes instead of"):
        resume()
    part.unlink()
    with pytest.raises(DataError, match=r"part-000002.jsonl is missing"):
        resume()
    part.write_bytes(content)
    assert resume() == 0
    assert [json.loads(line) for line in lines][-1] == {"complete": True}
