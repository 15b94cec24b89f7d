"""One file of weights: tensors as safetensors, everything else as JSON in its header. No pickle.

Written so that a reader sees the old file or the new one, never half of one, and so that damage is noticed on reading.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rcnn.errors import WeightsError

FORMAT = 1
ENTRY = "rcnn"

_LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""

_KINDS = (
    (b"PK\x03\x04", "a zip archive or a PyTorch pickle (.pth)"),
    (b"\x80", "a pickle, such as an old PyTorch file (.pth) or a detectron2 one (.pkl)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<!doctype", "a web page, perhaps in place of the file that was to be downloaded"),
    (b"<html", "a web page, perhaps in place of the file that was to be downloaded"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file"),
)
"""How files begin that are taken for weights, in lower case where they are text, and what they are."""


def atomic_write(path: str | Path, data: bytes, *, shared: bool = False) -> None:
    """Replace `path` by `data` in one step: a reader, even after a power failure, finds the old file or the new one.

    Args:
        path: the file.
        data: its new content.
        shared: whether others may write the same file at the same time. The temporary file of a killed writer then
            remains; otherwise the next write removes it.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write or a sync knows only its descriptor
            error.filename = str(path)
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
    """Read tensors (on the CPU) and metadata written by `save_weights`.

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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{_name(path)} is damaged: its `{ENTRY}` entry is not the JSON that was written") from None
    if version != FORMAT:
        raise WeightsError(f"{_name(path)} has format {version}, this version of rcnn reads {FORMAT}; update rcnn")
    if _digest(tensors, entry) != digest:
        raise WeightsError(f"{_name(path)} is damaged: its content does not have the checksum that it was written with")
    del entry["format"]
    return tensors, entry


def is_detector(path: str | Path) -> bool:
    """Tell whether a .safetensors file is one of our detectors.

    Raises:
        WeightsError: as `read_safetensors`.
    """
    return ENTRY in read_safetensors(path)[1]


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and raw header metadata of any safetensors file.

    Raises:
        WeightsError: the file is missing, unreadable, damaged or of another kind.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if kind := _kind(data):
            raise WeightsError(f"{_name(path)} is {kind}; expected are weights as safetensors") from None
        raise WeightsError(
            f"{_name(path)} is damaged, or no safetensors file: {error}. Copy or download it again"
        ) from None
    return tensors, header.get("__metadata__") or {}


def to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16.

    Raises:
        WeightsError: a number is too large for float16; its tensor is named.
    """
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, half in halves.items():
        if half.is_floating_point() and bool((half.isinf() & tensors[name].isfinite()).any()):
            largest = float(tensors[name].abs().max())
            raise WeightsError(f"`{name}` has numbers up to {largest:g}, float16 ends at 65,504; save it in float32")
    return halves


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _kind(data: bytes) -> str | None:
    """Tell from its first bytes what a file is that is not safetensors; None if unknown."""
    if int.from_bytes(data[:8], "little") <= _LONGEST_HEADER:  # a damaged safetensors file, whatever its first bytes
        return None
    return next((kind for start, kind in _KINDS if data[:24].lower().startswith(start.lower())), None)


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; a repeated name is refused, since readers differ in which value they take."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return entries


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
