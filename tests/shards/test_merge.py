"""The parts of all shards become one file, in order of names."""

import json
from pathlib import Path

import pytest

from rcnn.errors import DataError, PredictionError, SettingsError
from rcnn.locks import lock
from rcnn.shards import merge, predict
from rcnn.shards.merge import merge_shards
from rcnn.shards.names import ShardIndex
from rcnn.shards.predict import predict_shard
from rcnn.shards.rows import FORMATS
from tests.limits import MB, in_child

from .stub import detector, make_files, rows_of

NUMBER = 60


@pytest.fixture(params=["jsonl", "parquet"])
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Three shards of thirty parts together."""
    monkeypatch.setattr(predict, "MAX_PART_PICTURES", 2)
    make_files(tmp_path / "photos", *(f"{number % 7}/{number}.jpg" for number in range(NUMBER)), "bad.jpg")
    for index in (1, 2, 3):
        predict_shard(detector(), tmp_path / "photos", tmp_path / "out", f"{index}/3", format=request.param)
    return tmp_path / "out"


@pytest.mark.parametrize("fan_in", [2, 5, 64])
def test_all_rows_are_merged_in_order_of_names(out: Path, monkeypatch: pytest.MonkeyPatch, fan_in: int) -> None:
    monkeypatch.setattr(merge, "FAN_IN", fan_in)
    merged = merge_shards(out)
    assert (merged.pictures, merged.errors, merged.missing) == (NUMBER + 1, 1, ())
    rows = [*FORMATS[merged.file.suffix[1:]].decode(merged.file)]
    expected = [row for index in (1, 2, 3) for row in rows_of(out / f"{index}-of-3")]
    assert rows == sorted(expected, key=lambda row: row["name"])
    assert sorted(path.name for path in out.iterdir()) == [".rcnn", "1-of-3", "2-of-3", "3-of-3", merged.file.name]
    with pytest.raises(SettingsError, match="already exists"):
        merge_shards(out)


def test_missing_shards_are_named(out: Path) -> None:
    (out / "2-of-3").rename(out.parent / "elsewhere")
    manifest = out / "3-of-3/manifest.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(PredictionError, match=r"2 of 3 shards are missing or not complete: 2/3, 3/3\. Run them"):
        merge_shards(out)
    merged = merge_shards(out, partial=True)
    assert merged.missing == (ShardIndex(2, 3), ShardIndex(3, 3))
    assert merged.pictures == len(rows_of(out / "1-of-3")) + len(rows_of(out / "3-of-3"))
    assert merge.named_shards([ShardIndex(index, 99) for index in range(1, 50)]).endswith("20/99 and 29 more")


def test_what_can_not_be_merged_is_refused(out: Path, tmp_path: Path) -> None:
    suffix = "".join(Path(next((out / "1-of-3").glob("part-*"))).suffixes)
    with pytest.raises(SettingsError, match="holds no shards"):
        merge_shards(tmp_path / "photos")
    with pytest.raises(SettingsError, match=rf"must end in {suffix}"):
        merge_shards(out, tmp_path / "all.txt")
    with lock(out), pytest.raises(SettingsError, match="in this process already"):
        merge_shards(out)
    manifest = out / "3-of-3/manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    other = {**json.loads(lines[0]), "digest": "x", "model": "other.safetensors"}
    manifest.write_bytes(b"".join([json.dumps(other).encode() + b"\n", *lines[1:]]))
    with pytest.raises(SettingsError, match=r"model  \(digest .* is not other.safetensors"):
        merge_shards(out)
    manifest.write_bytes(b"".join(lines))
    part = next((out / "1-of-3").glob("part-*"))
    content = part.read_bytes()
    part.write_bytes(b"x" * len(content))
    with pytest.raises(DataError, match=part.name):
        merge_shards(out)
    part.write_bytes(content + b"x")
    with pytest.raises(DataError, match=f"{part.name} has"):
        merge_shards(out)
    assert not list(out.glob("*results*"))
    (out / "1-of-4").mkdir()
    with pytest.raises(SettingsError, match="holds shards of 3 and of 4"):
        merge_shards(out)


def test_memory_does_not_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    names = (f"photos/{name:09}{'1' * 100}.jpg" for name in range(4_000))
    predict_shard(detector(), names, tmp_path)
    assert sum(part.stat().st_size for part in (tmp_path / "1-of-1").glob("part-*")) > 30 * MB
    in_child(lambda: merge_shards(tmp_path), seconds=60, resident=10 * MB)
