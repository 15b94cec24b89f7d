"""The table of runtimes for exported files, by the suffix of the file."""

from pathlib import Path

from rcnn.errors import SettingsError, WeightsError
from rcnn.runtime.graph import Contents, GraphRuntime
from rcnn.runtime.onnx import OnnxRuntime
from rcnn.runtime.openvino import OpenVinoRuntime

RUNTIMES: dict[str, type[GraphRuntime]] = {".onnx": OnnxRuntime, ".xml": OpenVinoRuntime}
"""Suffix -> what runs such files. To add a runtime, add it here."""


def is_exported(path: str | Path) -> bool:
    """Return whether the path has the suffix of an exported file."""
    return Path(path).suffix.lower() in RUNTIMES


def runtime_of(path: str | Path) -> type[GraphRuntime]:
    """Return the class that runs an exported file."""
    return RUNTIMES[Path(path).suffix.lower()]


def open_file(path: str | Path, device: object = "auto") -> GraphRuntime:
    """Return the runtime of an exported file, ready to run.

    Raises:
        WeightsError, UnavailableError, SettingsError: as for `GraphRuntime`.
        SettingsError: the device is not the CPU.
    """
    if str(device) not in ("auto", "cpu"):
        raise SettingsError(f"train.device: {path} is an exported file, which runs on the CPU here; got `{device}`")
    return runtime_of(path)(path)


def contents(path: str | Path) -> Contents:
    """Return facts about an exported file; nothing is run.

    Raises:
        WeightsError, UnavailableError: as for `GraphRuntime.read`.
    """
    return runtime_of(path).read(Path(path))[0]


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
