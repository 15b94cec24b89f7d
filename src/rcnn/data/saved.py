"""Save data sets in files of flat arrays, which several processes can map into memory."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcnn.data.dataset import Dataset, Fault, Records
from rcnn.images.storage import stored
from rcnn.weights.file import load_weights, save_weights

KIND = "data set"


def save_datasets(file: Path, datasets: Sequence[Dataset], **metadata: Any) -> None:
    """Write data sets, and metadata of any JSON, to a file.

    Raises:
        OSError: as `atomic_write`.
    """
    arrays = {f"{number}.{name}": array for number, dataset in enumerate(datasets) for name, array in _arrays(dataset)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_weights(file, tensors, {"kind": KIND, "datasets": len(datasets), **metadata}, shared=True)


def load_datasets(
    file: Path, check: Callable[[Mapping[str, Any]], None] | None = None, *, mapped: bool = False
) -> list[Dataset]:
    """Read the data sets in a file.

    Args:
        file: the file.
        check: receives the metadata before anything else is read.
        mapped: as for `load_weights`.

    Raises:
        Exception: the file is missing or damaged, or `check` raised it. The arrays of a damaged file are not used.
    """

    def first(metadata: Mapping[str, Any], _: object) -> None:
        if metadata["kind"] != KIND:
            raise ValueError(f"this is a file of another kind, {metadata['kind']}")
        if check is not None:
            check(metadata)

    tensors, metadata = load_weights(file, first, mapped=mapped)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return [_dataset(arrays, f"{number}.") for number in range(metadata["datasets"])]


def _arrays(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """Return the arrays of a data set, the text of everything but its records among them."""
    about = {
        "root": str(dataset.root),
        "format": dataset.format,
        "split": dataset.split,
        "names": dataset.names,
        "category_ids": dataset.category_ids,
        "faults": [astuple(fault) for fault in dataset.faults],
        "notes": dataset.notes,
    }
    text = np.frombuffer(bytearray(json.dumps(about).encode()), np.uint8)
    return [("about", text), *dataset.records.arrays().items()]


def _dataset(arrays: Mapping[str, np.ndarray], prefix: str) -> Dataset:
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    about = json.loads(own.pop("about").tobytes())
    names, category_ids = tuple(map(str, about["names"])), tuple(map(int, about["category_ids"]))
    records = Records.from_arrays(own)
    if records.labels.max(initial=-1) >= len(names) or len(names) != len(category_ids):
        raise ValueError("labels and classes contradict each other")
    faults = tuple(Fault(*fault) for fault in about["faults"])
    root, notes = stored(about["root"]), tuple(map(str, about["notes"]))
    return Dataset(root, str(about["format"]), str(about["split"]), names, category_ids, records, faults, notes)
