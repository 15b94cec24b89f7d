"""A cache of labels, so that a large data set opens quickly the next time.

The data set is read again if a file below its folder, its settings or the classes have changed, or if the cached file
is damaged.
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

from rcnn.data.dataset import Dataset, Fault, Record, Records
from rcnn.weights.file import atomic_write

FORMAT = 1
MIN_IMAGES = 2000
"""Number of images above which reading labels takes longer than checking whether they have changed."""

MAX_FILES = 1_000_000
"""Number of files in a folder above which nothing is cached."""

MAX_CACHED = 8
"""Number of data sets that are cached, the last ones."""


def indexed(
    folder: Path, data: Path, root: Path, words: Sequence[str], read: Callable[[], list[Dataset]]
) -> list[Dataset]:
    """Return the lists of a data set, from the cache or from `read`.

    Args:
        folder: of the cache.
        data: path of the data set.
        root: folder with all files of the data.
        words: all other values on which the lists depend.
        read: reads the lists.
    """
    file = folder / f"{hashlib.sha256(os.path.abspath(data).encode(errors='surrogateescape')).hexdigest()}.npz"
    state = _state(root, words)
    if state:
        with suppress(Exception):  # it is not cached, or damaged
            return _read(file, state)
    sets = read()
    home = f"{os.path.abspath(root)}{os.sep}"
    inside = all(os.path.abspath(record.path).startswith(home) for dataset in sets for record in dataset.records)
    if state and inside and sum(map(len, sets)) >= MIN_IMAGES:
        with suppress(OSError, ValueError):  # the cache is not essential
            _write(file, state, sets)
    return sets


def _state(root: Path, words: Sequence[str]) -> str:
    """Return a hash of the names, sizes and times of all files below a folder; empty if there are too many."""
    summed = hashlib.sha256(repr((FORMAT, *words)).encode(errors="surrogateescape"))
    try:
        for number, entry in enumerate(_files(str(root))):
            if number >= MAX_FILES:
                return ""
            facts = entry.stat()
            summed.update(f"{entry.path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    except OSError:
        return ""
    return summed.hexdigest()


def _files(folder: str, depth: int = 0) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder, in a fixed order."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            if depth < 20:  # symbolic links may form a circle
                yield from _files(entry.path, depth + 1)
        else:
            yield entry


def _write(file: Path, state: str, sets: Sequence[Dataset]) -> None:
    arrays: dict[str, np.ndarray] = {}
    trees: list[dict[str, Any]] = []
    for number, dataset in enumerate(sets):
        records = dataset.records
        arrays[f"size-{number}"] = np.array([record.size for record in records], np.int64).reshape(-1, 2)
        arrays[f"ends-{number}"] = np.cumsum([len(record.labels) for record in records])
        for name in ("boxes", "labels", "ignore"):
            arrays[f"{name}-{number}"] = np.concatenate([getattr(record, name) for record in records])
        trees.append(
            {
                "root": str(dataset.root),
                "about": [dataset.format, dataset.split, dataset.names, dataset.category_ids, dataset.notes],
                "faults": [astuple(fault) for fault in dataset.faults],
                "records": [[str(record.path), record.name, record.id] for record in records],
            }
        )
    content = json.dumps({"state": state, "sets": trees}).encode()
    packed = io.BytesIO()
    np.savez(packed, told=np.frombuffer(content, np.uint8), **arrays)  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(file, packed.getvalue(), shared=True)
    for old in sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)[:-MAX_CACHED]:
        old.unlink(missing_ok=True)


def _read(file: Path, state: str) -> list[Dataset]:
    """Return the lists that were cached in this state.

    Raises:
        Exception: there are none, or the file is damaged.
    """
    sets = []
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
        document = json.loads(arrays["told"].tobytes())
        if document["state"] != state:
            raise ValueError("the data have changed")
        for number, tree in enumerate(document["sets"]):
            form, split, names, category_ids, notes = tree["about"]
            sizes, ends, boxes, labels, ignore = (
                arrays[f"{key}-{number}"] for key in ("size", "ends", "boxes", "labels", "ignore")
            )
            columns = zip(tree["records"], sizes.tolist(), (0, *ends.tolist()), ends.tolist(), strict=False)
            records = Records(
                Record(Path(path), name, key, (height, width), boxes[start:end], labels[start:end], ignore[start:end])
                for (path, name, key), (height, width), start, end in columns
            )
            faults = tuple(Fault(*fault) for fault in tree["faults"])
            about = (Path(tree["root"]), form, split, tuple(names), tuple(category_ids))
            sets.append(Dataset(*about, records, faults, tuple(notes)))
    return sets
