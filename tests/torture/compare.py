"""What a run folder must have in common with that of a run that nothing happened to."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rcnn.config import dump, read
from rcnn.weights.file import load_weights
from tests.training.pieces import TIMES, rows

PICTURES = (".png", ".jpg", ".webp")
SAME_BYTES = (*PICTURES, ".txt")
UNLIKE = ("log.txt",)
"""Files with times and speeds."""
MAY_DIFFER = {*TIMES, "sha256", "logs", "checkpoint_minutes", "timeout", "workers"}
"""Keys of metadata and settings: times, digests, lengths of logs, and what differs between trials."""


def differences(found: Path, expected: Path) -> Iterator[str]:
    """Yield a line for each difference: other files (left over, or missing), other bits, rows or pictures."""
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (found, expected)]
    yield from (f"{name} is left over" for name in sorted(names[0] - names[1]))
    yield from (f"{name} is missing" for name in sorted(names[1] - names[0]))
    for name in sorted(names[0] & names[1]):
        mine, theirs = found / name, expected / name
        if mine.suffix == ".safetensors":
            yield from (f"{name}: {text}" for text in weights(mine, theirs))
        elif mine.suffix in SAME_BYTES and mine.name not in UNLIKE and mine.read_bytes() != theirs.read_bytes():
            yield f"{name}: other bytes{'' if mine.suffix not in PICTURES or sound(mine) else ', damaged'}"
        elif mine.suffix == ".html" and not mine.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            yield f"{name}: not complete"
    settings = [dict(flat(dump(read(run / "config.yaml")))) for run in (found, expected)]
    if settings[0] != settings[1]:
        yield "config.yaml: other settings"
    if rows(found) != rows(expected):
        yield "metrics.jsonl: other rows"
    if table(found) != table(expected):
        yield "results.csv: other rows"


def weights(mine: Path, theirs: Path) -> Iterator[str]:
    """Yield what differs between two files of weights or checkpoints, besides times."""
    (found, about), (expected, about_expected) = load_weights(mine), load_weights(theirs)
    if found.keys() != expected.keys():
        yield "other tensors"
        return
    for name, tensor in expected.items():
        if tensor.dtype != found[name].dtype or not torch.equal(bits(found[name]), bits(tensor)):
            yield f"other bits in {name}"
            return
    mine_flat, theirs_flat = dict(flat(about)), dict(flat(about_expected))
    for name in sorted(mine_flat.keys() | theirs_flat.keys()):
        if mine_flat.get(name) != theirs_flat.get(name):
            yield f"{name}: {mine_flat.get(name)} instead of {theirs_flat.get(name)}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of metadata or settings by name, without those that may differ."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in MAY_DIFFER:
                yield from flat(part, f"{name}.{key}")
    else:
        yield name, value


def table(run: Path) -> list[dict[str, str]]:
    """Return the rows of results.csv, without times."""
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def sound(picture: Path) -> bool:
    """Return True if a picture can be read to its end."""
    try:
        with Image.open(picture) as image:
            image.load()
    except OSError:
        return False
    return True
