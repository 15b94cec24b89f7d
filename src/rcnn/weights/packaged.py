"""Detectors that are included in the package, with their cards and licences in `packaged/`."""

from pathlib import Path

from rcnn.errors import WeightsError

_FOLDER = Path(__file__).with_suffix("")

PACKAGED: dict[str, Path] = {"blood-cells": _FOLDER / "blood-cells.safetensors"}
"""Name -> file of weights."""


def packaged_path(name: str) -> Path:
    """Return the file of a detector that is included in the package.

    Args:
        name: a key of `PACKAGED`.

    Raises:
        WeightsError: the file is missing from this installation.
    """
    path = PACKAGED[name]
    if not path.is_file():
        raise WeightsError(f"`{name}` is not in this installation: {path} is missing; install the package again")
    return path
