"""Exported files by their suffix."""

from pathlib import Path

from rcnn.errors import SettingsError
from rcnn.runtime import onnx, openvino
from rcnn.runtime.graph import Contents, GraphRuntime

SUFFIXES = (".onnx", ".xml")


def is_exported(path: str | Path) -> bool:
    """Is this the name of an exported file?"""
    return Path(path).suffix.lower() in SUFFIXES


def open_file(path: str | Path, device: object = "auto") -> GraphRuntime:
    """The runtime of an exported file.

    Raises:
        WeightsError: the file is missing, damaged, of another program or version, or can't be run.
        UnavailableError: a WeightsError: what runs it is not installed.
        SettingsError: a device other than the CPU is asked for, or a precision that there is not.
    """
    if str(device) not in ("auto", "cpu"):
        raise SettingsError(f"train.device: {path} is an exported file, which runs on the CPU here; got `{device}`")
    path = Path(path)
    return onnx.OnnxRuntime(path) if path.suffix.lower() == ".onnx" else openvino.OpenVinoRuntime(path)


def contents(path: str | Path) -> Contents:
    """What an exported file holds and says about itself; nothing is run.

    Raises:
        WeightsError: the file is missing, damaged, of another program or of another version.
        UnavailableError: a WeightsError: what reads it is not installed.
    """
    path = Path(path)
    return (onnx.read if path.suffix.lower() == ".onnx" else openvino.read)(path)[0]
