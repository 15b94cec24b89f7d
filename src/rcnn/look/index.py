"""Labels that were read once, kept in a cache folder: a large data set is there at once the next time.

It is read anew when a file below its folder, its settings or the classes are others. What is kept and can't be read is
read anew as well.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.data.dataset import Dataset, Fault, Record
from rcnn.weights.file import atomic_write

FORMAT = 1
LEAST = 2000
"""Images from which on it takes longer to read labels than to look whether they are the same."""

MOST_FILES = 1_000_000
"""Files of a folder that are looked at; of more, nothing is kept."""

MOST_KEPT = 8
"""Data sets that are kept, the last ones."""


def indexed(
    folder: Path, data: Path, root: Path, words: Sequence[str], read: Callable[[], list[Dataset]]
) -> list[Dataset]:
    """The lists of a data set, from the cache or as `read` reads them.

    Args:
        folder: of the cache.
        data: what was given.
        root: folder below which the files of the data lie.
        words: whatever else decides what is read.
        read: reads the lists.
    """
    file = folder / f"{hashlib.sha256(os.path.abspath(data).encode(errors='surrogateescape')).hexdigest()}.npz"
    state = _state(root, words)
    if state:
        with suppress(Exception):  # none is kept, or it is damaged
            return _read(file, state)
    sets = read()
    home = f"{os.path.abspath(root)}{os.sep}"
    inside = all(os.path.abspath(record.path).startswith(home) for one in sets for record in one.records)
    if state and inside and sum(map(len, sets)) >= LEAST:
        with suppress(OSError, ValueError):  # no cache, no harm
            _write(file, state, sets)
    return sets


def _state(root: Path, words: Sequence[str]) -> str:
    """A hash of the names, sizes and times of all files below a folder; empty if there are too many."""
    summed = hashlib.sha256(repr((FORMAT, *words)).encode(errors="surrogateescape"))
    try:
        for number, entry in enumerate(_files(str(root))):
            if number >= MOST_FILES:
                return ""
            facts = entry.stat()
            summed.update(f"{entry.path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    except OSError:
        return ""
    return summed.hexdigest()


def _files(folder: str, deep: int = 0) -> Iterator[os.DirEntry[str]]:
    """The files below a folder, always in the same order."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            if deep < 20:  # links may go round
                yield from _files(entry.path, deep + 1)
        else:
            yield entry


def _write(file: Path, state: str, sets: Sequence[Dataset]) -> None:
    arrays: dict[str, np.ndarray] = {}
    told: list[dict[str, Any]] = []
    for place, one in enumerate(sets):
        records = one.records
        arrays[f"size-{place}"] = np.array([record.size for record in records], np.int64).reshape(-1, 2)
        arrays[f"ends-{place}"] = np.cumsum([len(record.labels) for record in records])
        for name in ("boxes", "labels", "ignore"):
            arrays[f"{name}-{place}"] = np.concatenate([getattr(record, name) for record in records])
        told.append(
            {
                "root": str(one.root),
                "about": [one.format, one.split, one.names, one.category_ids, one.notes],
                "faults": [astuple(fault) for fault in one.faults],
                "records": [[str(record.path), record.name, record.id] for record in records],
            }
        )
    content = json.dumps({"state": state, "sets": told}).encode()
    packed = io.BytesIO()
    np.savez(packed, told=np.frombuffer(content, np.uint8), **arrays)  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(file, packed.getvalue(), shared=True)
    kept = sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    for old in kept[:-MOST_KEPT]:
        old.unlink(missing_ok=True)


def _read(file: Path, state: str) -> list[Dataset]:
    """The lists as they were kept in this state.

    Raises:
        Exception: none are.
    """
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        told = json.loads(arrays["told"].tobytes())
        if told["state"] != state:
            raise ValueError("the data are others")
        return [
            _dataset(one, {key: arrays[f"{key}-{place}"] for key in KEYS}) for place, one in enumerate(told["sets"])
        ]


KEYS = ("size", "ends", "boxes", "labels", "ignore")
"""Arrays of a list."""


def _dataset(told: dict[str, Any], arrays: dict[str, np.ndarray]) -> Dataset:
    form, split, names, category_ids, notes = told["about"]
    ends, boxes, labels, ignore = (arrays[key] for key in KEYS[1:])
    ends = ends.tolist()
    columns = zip(told["records"], arrays["size"].tolist(), (0, *ends), ends, strict=False)
    records = tuple(
        Record(Path(path), name, key, (height, width), boxes[start:end], labels[start:end], ignore[start:end])
        for (path, name, key), (height, width), start, end in columns
    )
    return Dataset(
        Path(told["root"]),
        form,
        split,
        tuple(names),
        tuple(category_ids),
        records,
        tuple(Fault(*fault) for fault in told["faults"]),
        tuple(notes),
    )
