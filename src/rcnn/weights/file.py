"""One file of weights: tensors as safetensors, everything else as JSON in its header. No pickle.

Written so that a reader sees the old file or the new one, never half of one, and so that damage is noticed on reading.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT = 1
ENTRY = "rcnn"


class WeightsError(ValueError):
    """A file of weights is missing, damaged, foreign or does not fit. The message names the file."""


def atomic_write(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: whoever reads, and whenever the power goes, finds the old file or the new.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder can't be opened, and a rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata to `path` (.safetensors) atomically; the same content gives the same bytes.

    Args:
        path: the file; its folder exists.
        tensors: name -> tensor of any device, dtype and memory format.
        metadata: anything that JSON holds, except the keys `format` and `sha256`, which are added here.

    Raises:
        OSError: as `atomic_write`.
    """
    plain = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)
    }
    entry = {**metadata, "format": FORMAT}
    entry["sha256"] = _digest(plain, entry)
    atomic_write(path, safetensors.torch.save(plain, {ENTRY: _json(entry)}))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata that `save_weights` wrote.

    Raises:
        WeightsError: the file is missing, damaged, of another kind or of a later version.
    """
    tensors, header = read_safetensors(path)
    if ENTRY not in header:
        raise WeightsError(
            f"{_name(path)} is a safetensors file, but not of an rcnn detector (its header has no `{ENTRY}` entry). "
            "Weights of a backbone can start a training: rcnn train DATA --init FILE"
        )
    try:
        entry = json.loads(header[ENTRY])
        version, digest = entry["format"], entry.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{_name(path)} is damaged: its `{ENTRY}` entry is not the JSON that was written") from None
    if version != FORMAT:
        raise WeightsError(f"{_name(path)} has format {version}, this version of rcnn reads {FORMAT}; update rcnn")
    if _digest(tensors, entry) != digest:
        raise WeightsError(f"{_name(path)} is damaged: its content does not have the checksum that it was written with")
    del entry["format"]
    return tensors, entry


def is_detector(path: str | Path) -> bool:
    """Whether a .safetensors file is one of our detectors, rather than weights of something else.

    Raises:
        WeightsError: as `read_safetensors`.
    """
    return ENTRY in read_safetensors(path)[1]


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and raw header metadata of any safetensors file.

    Raises:
        WeightsError: the file is missing, unreadable, damaged or of another kind.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as error:
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":  # only now: a header's length may look like these
            raise WeightsError(f"{_name(path)} is a PyTorch pickle (.pth), expected safetensors") from None
        raise WeightsError(f"{_name(path)} is damaged: {error}. Copy or download it again") from None
    length = int.from_bytes(data[:8], "little")
    return tensors, json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _name(path: str | Path) -> str:
    return f"{path} ({Path(path).stat().st_size:,} bytes)"


def _json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of all tensors, and of the metadata."""
    digest = hashlib.sha256(_json(entry).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
