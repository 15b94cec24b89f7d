"""Open the file of a detector with the runtime for its suffix."""

from pathlib import Path

import torch
from torch import nn

from rcnn.errors import SettingsError, WeightsError
from rcnn.runtime.eager import Eager, choose_device
from rcnn.runtime.graph import Contents, GraphRuntime
from rcnn.runtime.onnx import OnnxRuntime
from rcnn.runtime.openvino import OpenVinoRuntime
from rcnn.runtime.protocol import Runtime
from rcnn.weights.metadata import Metadata

RUNTIMES: dict[str, type[GraphRuntime]] = {".onnx": OnnxRuntime, ".xml": OpenVinoRuntime}
"""Suffix -> class that runs such files. To add a runtime, add it here."""


def is_exported(path: str | Path) -> bool:
    """Return whether the path has the suffix of an exported file."""
    return Path(path).suffix.lower() in RUNTIMES


def runtime_of(path: str | Path) -> type[GraphRuntime]:
    """Return the class that runs an exported file."""
    return RUNTIMES[Path(path).suffix.lower()]


def open_file(
    path: str | Path,
    device: str | torch.device = "auto",
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
) -> tuple[Runtime, Metadata]:
    """Return the runtime of a detector's file, ready to run, and the metadata of the file.

    Args and errors are those of `Detector.load`.
    """
    if not is_exported(path):
        return Eager.load(path, choose_device(device), backbone=backbone, head=head)
    if str(device) not in ("auto", "cpu"):
        raise SettingsError(f"train.device: {path} is an exported file, which runs on the CPU here; got `{device}`")
    runtime = runtime_of(path)(path)
    return runtime, runtime.metadata


def contents(path: str | Path) -> Contents:
    """Return facts about an exported file; nothing is run.

    Raises:
        WeightsError, UnavailableError: as for `GraphRuntime.checked`.
    """
    return runtime_of(path).checked(Path(path))[0]


def files_of(path: Path) -> list[Path]:
    """Return an exported file and the files that belong to it."""
    return [path, *(path.with_suffix(suffix) for suffix in runtime_of(path).companions)]


def refuse_exported(path: str | Path) -> None:
    """Check that a training does not start from an exported file.

    Raises:
        WeightsError: it does.
    """
    if is_exported(path):
        raise WeightsError(
            f"{path}: an exported file can't be trained; start from the .safetensors file that it was exported from"
        )
