"""What an exported file says about itself: our entry, and plain ones that other programs read."""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from rcnn.config import MAX_SIDE, explain, shorten, validate
from rcnn.errors import SettingsError, WeightsError
from rcnn.images.batch import Size
from rcnn.weights.metadata import Described, Metadata, entry_of

ENTRY = "rcnn"
"""Name of our entry, JSON."""
DIGEST = "rcnn_weights"
"""Name of the entry with the digest of the weights, which ONNX and OpenVINO do not check."""
INTERFACE = 1
"""Version of the inputs and outputs of the graph (see `rcnn.runtime.graph`)."""
FOREIGN = "holds a graph, but not a detector of this version of rcnn"

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class FileMetadata(Metadata):
    """Our entry in an exported file: that of a detector, and what the export settled.

    Attributes:
        size: (height, width) of all images, padding included; None: any multiples of `preprocess.multiple`.
        parity: how the file was compared with the detector that it was made from.
    """

    size: tuple[Side, Side] | None = None
    parity: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        multiple = self.settings.preprocess.multiple
        if self.size is not None and any(side % multiple for side in self.size):
            raise ValueError(f"size: the sides are multiples of {multiple} (got {self.size[0]} x {self.size[1]})")
        return self


def entries(detector: Described, size: Size | None = None, parity: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The entries that an export writes, as name -> text.

    Args:
        detector: that is exported.
        size: (height, width) that the graph is fixed to; None: it is not.
        parity: the outcome of the comparison with the detector.

    Returns:
        Ours under `ENTRY`; for other programs `names` (JSON, index -> name), `imgsz` (JSON, [height, width], or for a
        graph of any size the shorter side and the longer at most), `stride` (sides are multiples of it) and `task`.
    """
    preprocess = detector.settings.preprocess
    ours = {**entry_of(detector), "interface": INTERFACE, "size": size, "parity": parity or {}}
    return {
        ENTRY: json.dumps(ours, sort_keys=True, allow_nan=False),
        "names": json.dumps(dict(enumerate(detector.names))),
        "imgsz": json.dumps(size or (preprocess.short, preprocess.long)),
        "stride": str(preprocess.multiple),
        "task": "detect",
    }


def digest(parts: Iterable[bytes]) -> str:
    """The entry of `DIGEST`: BLAKE2b of the weights, in the order of the file."""
    sum_of_parts = blake2b(digest_size=16)
    for part in parts:
        sum_of_parts.update(part)
    return sum_of_parts.hexdigest()


def check_digest(found: Mapping[str, str], parts: Iterable[bytes], path: str | Path) -> None:
    """Compare weights with the digest that was written with them, if one was.

    Raises:
        WeightsError: they differ.
    """
    if DIGEST in found and found[DIGEST] != digest(parts):
        raise WeightsError(f"{path} is damaged: its weights are not those that were written; export the detector again")


def read_entries(found: Mapping[str, str], path: str | Path, program: str = "") -> FileMetadata:
    """Read our entry among those of a file.

    Args:
        found: name -> text.
        path: the file, for messages.
        program: what wrote the file, if it says so.

    Raises:
        WeightsError: there is none, it is damaged, of another version, or holds what no detector has.
    """
    if ENTRY not in found:
        by = f" (written by {shorten(program)})" if program else ""
        raise WeightsError(
            f"{path}: is a file of another program{by}: it has no `{ENTRY}` entry. Run here are files that were "
            "exported here: rcnn export MODEL --format onnx|openvino"
        )
    try:
        entry = json.loads(found[ENTRY], parse_constant=_refuse)
        version = entry["interface"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WeightsError(f"{path} is damaged: its `{ENTRY}` entry is not the JSON that was written") from None
    if version != INTERFACE:
        raise WeightsError(
            f"{path}: its graph has inputs and outputs of version {shorten(str(version))}, this version of rcnn runs "
            f"{INTERFACE}; export the detector again, or take the rcnn that it was exported with"
        )
    try:
        return FileMetadata.model_validate({**entry, "settings": validate(entry["settings"])})
    except ValidationError as error:
        raise WeightsError(f"{path}: {FOREIGN}: {explain(error)}") from None
    except (KeyError, TypeError, SettingsError) as error:
        raise WeightsError(f"{path}: {FOREIGN}: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
