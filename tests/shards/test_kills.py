"""A shard that is killed at any moment, and continued, has every picture exactly once."""

import io
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rcnn.errors import ImageError
from rcnn.images.sources import NamedImage
from rcnn.shards import predict
from rcnn.shards.merge import merge_shards
from rcnn.shards.predict import predict_shard
from rcnn.shards.rows import FORMATS, row_of_error

from .stub import detector, in_fork, make_files, names_of

CALLS = {"open", "write", "writelines", "flush", "fsync", "close", "replace", "rename", "truncate", "unlink", "mkdir"}
"""Functions that change files."""
KILLS = 20
EMPTY = row_of_error(NamedImage(None), ImageError(""))


def kill_at(number: int) -> None:
    """Kill this process at the `number`th begin or end of a function that changes files."""
    events = iter(range(1, 1_000_000))

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("c_call", "c_return") or argument.__name__ not in CALLS:
            return
        on_files = argument.__module__ in ("posix", "_io") or isinstance(argument.__self__, io.IOBase)
        if on_files and next(events) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(hook)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_every_picture_is_there_once_after_twenty_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Some starts are killed before they finish a part, others after several."""
    [*FORMATS[form].encode([EMPTY])]  # imports packages, whose files would count in the children
    monkeypatch.setattr(predict, "MAX_PART_PICTURES", 3)
    names = sorted(f"{number % 3}/{number:03}{'bad' * (number % 7 == 0)}.jpg" for number in range(300))
    make_files(tmp_path / "photos", *names)

    def start() -> None:
        predict_shard(detector(), tmp_path / "photos", tmp_path / "out", format=form, resume=True)

    def killed(number: int) -> None:
        kill_at(number)
        start()

    draws = random.Random(0)
    numbers = [*range(4, 4 * KILLS // 2 + 1, 4), *(draws.randrange(40, 150) for _ in range(KILLS // 2))]
    assert [in_fork(lambda number=number: killed(number)) for number in numbers] == [-signal.SIGKILL] * KILLS
    begun = names_of(tmp_path / "out/1-of-1")
    assert len(begun) == len({*begun}) > 0
    assert in_fork(start) == 0
    assert names_of(tmp_path / "out/1-of-1") == names
    merged = merge_shards(tmp_path / "out")
    assert (merged.pictures, merged.errors) == (300, 43)
    left = {path.suffix for path in (tmp_path / "out/1-of-1").iterdir()}
    assert left == {".jsonl", f".{form}"}
    assert not [path for path in (tmp_path / "out/1-of-1").iterdir() if path.name.startswith(".")]
