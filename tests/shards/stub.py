"""A detector without a network, and what it writes."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.images.sources import NamedImage
from rcnn.result import Result
from rcnn.shards.rows import FORMATS, Row

NAMES = ("cat", "dog")


class StubDetector:
    """Finds as many boxes as the file name has digits, without opening the file; `bad` ones can't be read."""

    def __init__(self, value: float = 0.0) -> None:
        self.names, self.threshold, self.settings, self.runtime = NAMES, 0.5, Settings(), SimpleNamespace()
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.model.weight, value)
        torch.nn.init.zeros_(self.model.bias)

    def stream(
        self, images: Iterable[NamedImage], *, score: float, batch: int, skip: Callable[[ImageError], None]
    ) -> Iterator[Result]:
        for image in images:
            if "bad" in image.name:
                skip(ImageError(f"{image.image}: this is not an image"))
            else:
                yield made_up(image)


EMPTY = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64))


def made_up(image: NamedImage) -> Result:
    count = sum(map(str.isdigit, os.path.basename(image.name)))
    if not count:
        return Result(*EMPTY, NAMES, str(image.image), (60, 80), origin=image)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4) / np.float32(3)
    scores, labels = np.linspace(1, 0.5, count, dtype=np.float32), np.arange(count) % 2
    return Result(boxes, scores, labels, NAMES, str(image.image), (60, 80), origin=image)


def detector(value: float = 0.0) -> Any:
    return StubDetector(value)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def rows_of(folder: Path) -> list[Row]:
    """The rows of the listed parts of a shard, in the order of the manifest."""
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    files = [folder / entry["part"] for entry in entries if "part" in entry]
    return [row for file in files for row in FORMATS[file.suffix[1:]].decode(file)]


def names_of(folder: Path) -> list[str]:
    return sorted(row["name"] for row in rows_of(folder))


def in_fork(do: Callable[[], object]) -> int:
    """Return the exit code of a forked child, or the negative number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
