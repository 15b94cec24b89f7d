"""Files of weights: tensors as safetensors, everything else as JSON in the header. No pickle.

A file is written so that a reader sees the old file or the new one, never a part of it, and so that damage is detected
on reading.
"""

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rcnn.config.files import MB, check_regular
from rcnn.errors import WeightsError

FORMAT = 1
ENTRY = "rcnn"
MAX_BYTES, MAX_FOREIGN_BYTES = 16_000 * MB, 3_500 * MB
"""Maximum size in bytes of our own files, checkpoints included, and of files of unknown origin."""

Check = Callable[[Mapping[str, Any], Mapping[str, Tensor]], None]
"""Function of (metadata, name -> tensor on the `meta` device) that may raise an error before any tensor is read."""

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""Names in the header of safetensors -> dtypes."""

_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_MAX_HEADER_BYTES = 100_000_000
"""Bytes; the format's own limit. A larger number is that of another kind of file."""
MAX_HEADER_BYTES, MAX_TENSORS = 20 * MB, 50_000
"""Maximum size of the header in bytes, and number of tensors. A checkpoint of the largest preset has 1,710 tensors."""
_MAX_LINE_LETTERS = 300
"""Maximum length of another library's error message, which may contain text of the file."""

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
"""First bytes of files that are mistaken for weights, text in lower case, and the kinds of these files."""


def kept(folder: Path) -> Path:
    """Return the weights that a training keeps in a folder: the best ones, or the last ones with `train.keep=last`."""
    best = folder / "best.safetensors"
    return best if best.is_file() else folder / "last.safetensors"


def weights_of_run(path: Path) -> Path:
    """Return the weights of a run folder, as `kept` chooses them; any other path is returned unchanged."""
    weights = kept(path / "weights")
    return weights if weights.is_file() else path


def atomic_write(path: str | Path, data: bytes | Iterable[bytes | memoryview], *, shared: bool = False) -> None:
    """Replace `path` by `data` in one step: a reader, even after a power failure, finds the old file or the new one.

    Args:
        path: the file.
        data: its new content, as one object or in parts.
        shared: whether others may write the same file at the same time. If so, the temporary file of a killed writer
            remains; otherwise the next write replaces it.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # write and fsync know only the descriptor
            error.filename = str(path)
        raise
    if os.name == "posix":  # on other systems a folder can't be opened, and a rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, shared: bool = False
) -> None:
    """Write tensors and JSON metadata to `path` (.safetensors) atomically; the same content gives the same bytes.

    Args:
        path: the file; its folder must exist.
        tensors: name -> tensor of any device, dtype and memory format.
        metadata: any JSON, except the keys `format` and `sha256`, which are added here.
        shared: as for `atomic_write`.

    Raises:
        OSError: as `atomic_write`.
    """
    plain = {name: tensors[name].detach().cpu().contiguous() for name in tensors}
    entry = {**metadata, "format": FORMAT}
    entry["sha256"] = _digest(plain, entry)
    names = sorted(plain, key=lambda name: (-plain[name].itemsize, name))  # so that each is aligned to its element size
    header: dict[str, Any] = {"__metadata__": {ENTRY: _json(entry)}}
    end = 0
    for name in names:
        tensor, start, end = plain[name], end, end + plain[name].nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Tensors are written without a copy; safetensors' own `save` copies them all three times.
    parts = chain((len(text).to_bytes(8, "little") + text,), (_bytes(plain[name]) for name in names))
    atomic_write(path, parts, shared=shared)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: the file can't be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same_file(path: Path, digest: str, digest_of: Callable[[Path], str] = file_digest) -> None:
    """Check that a file is the one that an object was pickled with.

    Args:
        path: the file.
        digest: its digest then.
        digest_of: computes it.

    Raises:
        WeightsError: the file is missing, or its content has another digest.
    """
    try:
        found = digest_of(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: can't be read ({error.strerror or error}). The detector was pickled as the path of this file: "
            "copy the file to the same path on every machine"
        ) from None
    if found != digest:
        raise WeightsError(
            f"{path}: is not the file that the detector was pickled with: its digest begins with {found[:12]}, not "
            f"with {digest[:12]}. Copy the same file to this path on every machine"
        )


@contextmanager
def reading(path: str | Path, max_bytes: int, kind: str = "") -> Iterator[None]:
    """Turn any error while a file is read into a sentence about the file.

    Args:
        path: the file.
        max_bytes: its maximum size.
        kind: continues `is damaged, or`, as in `is damaged, or no .npz file`.

    Raises:
        WeightsError: the file is missing, too large, damaged, or describes more than there is memory for.
    """
    opened = False
    try:
        check_regular(path, max_bytes)
        opened = True
        yield
    except WeightsError:
        raise
    except MemoryError:
        raise WeightsError(f"{path} is damaged: it describes more than there is memory for") from None
    except Exception as error:  # parsers of damaged files raise any error, also an OSError without a file name
        if isinstance(error, OSError) and (error.filename or not opened):
            raise WeightsError(f"{path}: can't be read: {error.strerror or error}") from None
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            raise WeightsError(f"{path} is damaged: it describes more than there is memory for") from None
        raise WeightsError(
            f"{_name(path)} is damaged{kind and f', or {kind}'}: {first_line(error)}. Copy or download it again"
        ) from None


def check_archive(path: str | Path) -> None:
    """Check that the parts of a zip archive are not too large when they are unpacked.

    Raises:
        OSError: they are too large.
        zipfile.BadZipFile: the file is not a zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_FOREIGN_BYTES:
        raise OSError(f"it unpacks to {size / MB:,.0f} MB, and the maximum is {MAX_FOREIGN_BYTES // MB:,} MB")


def load_weights(
    path: str | Path, check: Check | None = None, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and metadata written by `save_weights`.

    Args:
        path: the file.
        check: receives the metadata and the shapes of the tensors before these are read.
        mapped: map the file into memory, so that processes share its pages. A change to a tensor does not reach the
            file. A process is killed if it uses a tensor of a file that was shortened.

    Raises:
        WeightsError: the file is missing, damaged, of another kind or of a later version, or `check` raised it.
    """
    described, header, start = _read_header(path, MAX_BYTES)
    if ENTRY not in header:
        raise WeightsError(
            f"{_name(path)} is a safetensors file, but not of an rcnn detector (its header has no `{ENTRY}` entry). "
            "Weights of a backbone can start a training: rcnn train DATA --init FILE"
        )
    try:
        entry = read_json(header[ENTRY])
        version, digest = entry["format"], entry.pop("sha256")
        _json(entry)  # fails for numbers that JSON can't represent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{_name(path)} is damaged: its `{ENTRY}` entry is not the JSON that was written") from None
    if version != FORMAT:
        raise WeightsError(f"{_name(path)} has format {version}, this version of rcnn reads {FORMAT}; update rcnn")
    if check is not None:
        metadata = {key: value for key, value in entry.items() if key != "format"}
        check(metadata, {name: tensor for name, (tensor, _) in described.items()})
    tensors = _map(path, described) if mapped else _read(path, described, start, MAX_BYTES)
    if _digest(tensors, entry) != digest:
        raise WeightsError(f"{_name(path)} is damaged: its content does not have the checksum that it was written with")
    del entry["format"]
    return tensors, entry


def is_detector(path: str | Path) -> bool:
    """Return whether a .safetensors file is one of our detectors.

    Raises:
        WeightsError: as for `read_safetensors`.
    """
    return ENTRY in _read_header(path, MAX_BYTES)[1]


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and raw header metadata of any safetensors file.

    Raises:
        WeightsError: the file is missing, unreadable, damaged or of another kind.
    """
    described, header, start = _read_header(path, MAX_FOREIGN_BYTES)
    return _read(path, described, start, MAX_FOREIGN_BYTES), header


def _read_header(path: str | Path, max_bytes: int) -> tuple[dict[str, tuple[Tensor, int]], dict[str, str], int]:
    """Return name -> (tensor on the `meta` device, its offset), raw metadata, and where the bytes of tensors begin."""
    with reading(path, max_bytes, "no safetensors file"):
        with Path(path).open("rb") as file:
            start = file.read(24)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(_MAX_HEADER_BYTES, os.path.getsize(path) - 8):
                kinds = (kind for prefix, kind in _KINDS if start.lower().startswith(prefix.lower()))
                # A shorter header is that of a damaged safetensors file, whatever its first bytes.
                if length > _MAX_HEADER_BYTES and (kind := next(kinds, None)):
                    raise WeightsError(f"{_name(path)} is {kind}; expected are weights as safetensors")
                raise ValueError("the length of its header is wrong")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header has over {MAX_HEADER_BYTES // MB} MB")
            file.seek(8)
            text = file.read(length)
        if text.count(b"data_offsets") > MAX_TENSORS:  # each costs time and memory, even if it is empty
            raise ValueError(f"it has over {MAX_TENSORS:,} tensors")
        header = json.loads(text, object_pairs_hook=_without_duplicates)
        with safe_open(path, "pt"):  # refuses shapes, types and offsets that contradict each other or the file
            pass
        metadata = header.pop("__metadata__", None) or {}
        described = {
            name: (torch.empty(row["shape"], dtype=_TYPES[row["dtype"]], device="meta"), row["data_offsets"][0])
            for name, row in header.items()
        }
        return described, metadata, 8 + length


def _read(
    path: str | Path, described: Mapping[str, tuple[Tensor, int]], start: int, max_bytes: int
) -> dict[str, Tensor]:
    """Read the tensors that a header describes."""
    with reading(path, max_bytes), Path(path).open("rb") as file:
        tensors = {}
        for name, (like, offset) in described.items():
            tensor = tensors[name] = torch.empty(like.shape, dtype=like.dtype)
            file.seek(start + offset)
            if file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise ValueError(f"the tensor `{name}` ends early")
        return tensors


def _map(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a file as private copies-on-write of its pages."""
    with reading(path, MAX_BYTES), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


def read_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is malformed, or has a NaN or Infinity, which Python accepts by default.
        RecursionError: the text is nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number in JSON")

    return json.loads(text, parse_constant=refuse)


def to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to float16.

    Raises:
        WeightsError: a number is too large for float16; the message names its tensor.
    """
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, half in halves.items():
        if half.is_floating_point() and bool((half.isinf() & tensors[name].isfinite()).any()):
            largest = float(tensors[name].abs().max())
            raise WeightsError(f"`{name}` has numbers up to {largest:g}, float16 ends at 65,504; save it in float32")
    return halves


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened if it is long, or its type if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0][:_MAX_LINE_LETTERS]


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, and refuse a repeated name, since readers differ in which value they use."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return entries


def _name(path: str | Path) -> str:
    return f"{path} ({Path(path).stat().st_size:,} bytes)"


def _json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all tensors, and of the metadata."""
    digest = hashlib.sha256(_json(entry).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without a copy."""
    flat = tensor.reshape(-1) if tensor.numel() else tensor.new_empty(0)  # whose stride is never 0
    return flat.view(torch.uint8).numpy().data
